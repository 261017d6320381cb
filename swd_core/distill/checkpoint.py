"""Checkpoints that survive a kill: written aside, then renamed."""

import os
from pathlib import Path
from typing import Any

import torch


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
    return torch.load(path, weights_only=True) if path.is_file() else None
