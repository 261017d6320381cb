"""A run as stretches: some steps at one size, one after another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Some steps at one size.

    Args:
        size: (height, width) or (frames, height, width) in latent cells.
        sigmas: the size's own noise levels, from the one it begins at to the one it ends at.
        step: number of the first step in the whole run, from 0.
    """

    size: tuple[int, ...]
    sigmas: tuple[float, ...]
    step: int

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def step_of(sigma: float, table: Sequence[float]) -> int | None:
    """The schedule's step whose sigma this is, near enough; None if it is of another scheduler."""
    nearest = min(range(len(table)), key=lambda step: abs(table[step] - sigma))
    return nearest if math.isclose(table[nearest], sigma, rel_tol=1e-4) else None


def scales_at(
    sigmas: Sequence[float], table: Sequence[float], scales: Sequence[float]
) -> list[float]:
    """The scale each of `sigmas` runs at: that of the first step whose own sigma is not above it.

    So SIGMAS may be cut (SplitSigmas) or come from another scheduler: a size is used down to the
    noise level it is meant for and no further. `scales` may also be a schedule's shares of time.

    Args:
        sigmas: without the one that the run ends at. table, scales: of each step of the schedule.
    """

    def scale(sigma: float) -> float:
        step = step_of(sigma, table)
        if step is not None:
            return scales[step]
        return next((s for level, s in zip(table, scales, strict=True) if level < sigma), 1.0)

    return [scale(sigma) for sigma in sigmas]


def step_numbers(sigmas: Sequence[float], table: Sequence[float]) -> list[int]:
    """Which of the schedule's steps each of `sigmas` is; 0, 1, 2 ... if one is not of the schedule.

    The noise goes by them, so that a run cut in two draws what the whole one draws.

    Args:
        sigmas, table: see `scales_at`.
    """
    found = [step_of(sigma, table) for sigma in sigmas]
    known = [step for step in found if step is not None]
    return known if len(known) == len(sigmas) else list(range(len(sigmas)))
