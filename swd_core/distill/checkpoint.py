"""Checkpoints that survive a kill."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..files import check_plain, written_whole

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` so that `path` always holds either the old or the new checkpoint, whole.

    Raises:
        OSError: if it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own, raised while it handled the file's
            full = isinstance(error.__context__, OSError)
            reason = error.__context__ if full else str(error).splitlines()[0]
            raise OSError(f"{path} can't be written: {reason}") from error


def load_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any] | None:
    """Reads a checkpoint of `save_checkpoint`; None where there is none yet.

    Args:
        mmap: read only the tensors that are looked at.

    Raises:
        ValueError: if it is damaged, or none of ours; names the file.
    """
    if not os.path.lexists(path):
        return None
    try:
        check_plain(path)
        # Not onto the graphics card that it was saved from: each process has its own.
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap or None)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # whatever a damaged pickle leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"The checkpoint {path} can't be read ({reason}). Move it away."
        ) from error


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
