"""What a training leaves to look at: losses and measures, line by line, and TensorBoard's."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import read_text, write_text
from ..pictures import write_png

log = logging.getLogger(__name__)
LOSSES = "losses.jsonl"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
MOST_RECORD = 1 << 30  # bytes


class Record:
    """losses.jsonl and samples/ always; TensorBoard where tensorboard is installed."""

    def __init__(self, run: Path, step: int, tensorboard: bool):
        self.run, self.path = run, run / LOSSES
        self._forget_after(step)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run / TENSORBOARD), purge_step=step)
            except ImportError:
                log.info("tensorboard is not installed; the losses are in %s", self.path)

    def _forget_after(self, step: int) -> None:
        """Drops the lines of steps that will be done again, and a half-written last one."""
        if not self.path.is_file():
            return
        kept = []
        for line in read_text(self.path, MOST_RECORD).splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                break
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def losses(self, step: int, values: dict[str, float]) -> None:
        """One line {"step": …, "mmd": …}."""
        self._line({"step": step, **values})
        self._scalars("loss", step, values)

    def evaluation(self, step: int, values: dict[str, float], sheet: Image.Image) -> None:
        """One line {"step": …, "evaluation": {…}} and the sheet, samples/step_000250.png."""
        self._line({"step": step, "evaluation": values})
        self._scalars("evaluation", step, values)
        folder = self.run / SAMPLES
        folder.mkdir(exist_ok=True)
        write_png(sheet, folder / f"step_{step:06}.png", {}, overwrite=True)
        if self.board is not None:
            self.board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
            self.board.flush()

    def _line(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)
