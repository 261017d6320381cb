"""Checkpoints that survive a kill: written aside, then renamed."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` so that `path` always holds either the old or the new checkpoint, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError):  # a full disk: give back the room
        aside.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint of `save_checkpoint`; None where there is none yet."""
    if not path.is_file():
        return None
    # Not onto the graphics card that it was saved from: each process has its own.
    return torch.load(path, weights_only=True, map_location="cpu")


def save_training(path: Path, parts: dict[str, Any], step: int, seconds: float) -> None:
    """Writes modules and optimisers (whatever has a `state_dict`), the step and the time spent."""
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(path, {**states, "step": step, "seconds": seconds})


def resume_training(path: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Loads what `save_training` wrote into `parts`; (step, seconds), both 0 without a file."""
    state = load_checkpoint(path)
    if state is None:
        return 0, 0.0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    log.info("resumed at step %d, %.1f min", state["step"], state["seconds"] / 60)
    return state["step"], state["seconds"]
