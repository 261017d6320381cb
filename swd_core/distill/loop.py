"""The loop of every training: warm-up, falling rate, saving, stopping between two batches."""

from collections.abc import Callable
from contextlib import suppress

from .stopping import Stopped
from .trainer import Trainer


def rate(step: int, warmup: int, done: float, decay: float) -> float:
    """What the student's rate is multiplied by.

    Args:
        warmup: steps over which it rises. done: share of the training that is behind.
        decay: last share of the training, over which it falls; 0 for none.
    """
    factor = min(1.0, (step + 1) / warmup)
    return min(factor, max(0.02, (1 - done) / decay)) if decay else factor


def train(
    trainer: Trainer,
    progress: Callable[[], float],
    decay: float,
    *,
    each: Callable[[int], None],
    due: Callable[[int], bool],
    save: Callable[[], object],
    between: Callable[[], None],
) -> None:
    """Trains until `progress`, the share that is done, is 1.

    Args:
        each: called with the number of each step when it is done, before it is saved.
        due: whether to save after a step; the last one is saved in any case.
        between: called before each batch; `Stopped` ends the training there, and saves.
    """
    trainer.between, saved = between, None
    with suppress(Stopped):
        while (done := progress()) < 1:
            trainer.train_step(rate(trainer.step, trainer.config.warmup, done, decay))
            try:
                each(trainer.step)
            finally:
                if due(trainer.step):
                    save()
                    saved = trainer.step
    trainer.forget_drawn()
    if saved != trainer.step or trainer.fake_done:
        save()
