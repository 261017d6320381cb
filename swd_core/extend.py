"""Schedules made longer for targets beyond the size their student was trained at."""

import math
from bisect import bisect_left
from functools import lru_cache

from .schedule import ScaleSchedule

STILL_TRAINED, LARGEST_GROWTH = 1.1, 1.5  # of the side; the published ladders grow by 1.2 to 2


@lru_cache(maxsize=1)
def _table() -> list[float]:
    """Log of noise over signal at SDXL's timesteps 0..999 (its "scaled linear" betas)."""
    kept, logs = 1.0, []
    for i in range(1000):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999
        kept *= 1 - root**2
        logs.append(0.5 * math.log((1 - kept) / kept))
    return logs


def _log_ratio(level: float, kind: str) -> float:
    """Log of noise over signal at a noise level of a schedule."""
    if kind == "flow":
        return math.log(level / (1 - level))
    table = _table()
    low = min(int(level), len(table) - 2)
    return table[low] + min(level - low, 1) * (table[low + 1] - table[low])


def _level(log_ratio: float, kind: str) -> float:
    """The noise level of a log of noise over signal; the inverse of `_log_ratio`."""
    if kind == "flow":
        return 1 / (1 + math.exp(-log_ratio))
    table = _table()
    high = min(max(bisect_left(table, log_ratio), 1), len(table) - 1)
    return high - 1 + (log_ratio - table[high - 1]) / (table[high] - table[high - 1])


def extend_schedule(
    schedule: ScaleSchedule, height: int, width: int, trained: int
) -> ScaleSchedule:
    """The trained sizes of a schedule as they are, then more steps up to a larger target.

    The target counts by its area. Each added step grows the side by the same factor, at most 1.5.
    Noise over signal, sigma / (1 - sigma), falls from the last trained step on with the square root
    of the size: with the power spectrum f^-3 that the paper's safe sizes point to (arXiv
    2503.16397, section 3.1: 32 of 128 cells are safe at 0.8, 80 at 0.6, 96 at 0.5), that hides what
    the size before could not hold, step after step of the same growth.

    Args:
        height, width: of the target, in latent cells.
        trained: side in latent cells of the square that the schedule was trained for.

    Returns:
        the schedule itself for targets up to 1.1 times the trained side.

    Raises:
        ValueError: if `trained` is below 1, the last step is pure noise (sigma 1), or the schedule
            is for videos.

    Example:
        >>> extend_schedule(ScaleSchedule((0.5, 1), (1.0, 0.6)), 256, 256, 128).sizes(256, 256)
        [(64, 64), (128, 128), (182, 182), (256, 256)]
    """
    if trained < 1:
        raise ValueError(f"The trained side is {trained} cells; it must be 1 or more.")
    if schedule.frames:
        raise ValueError(
            f"The schedule {schedule.name} is for videos, which can't be extended: no rule says "
            "how many frames an added step has. Stretch it to the target instead."
        )
    ratio = math.sqrt(height * width) / trained
    if ratio <= STILL_TRAINED:
        return schedule
    kind, last = schedule.sigma_kind, schedule.sigmas[-1]
    if kind == "flow" and last == 1:
        raise ValueError(
            "The schedule ends at pure noise (sigma 1); no larger size can go on from there."
        )
    added = math.ceil(math.log(ratio, LARGEST_GROWTH) - 1e-9)
    sizes = [ratio ** (step / added) for step in range(1, added + 1)]
    start = _log_ratio(last, kind)
    return ScaleSchedule(
        (*(s / ratio for s in schedule.scales), *(s / ratio for s in sizes[:-1]), 1.0),
        (*schedule.sigmas, *(_level(start - 0.5 * math.log(s), kind) for s in sizes)),
        kind,
        f"{schedule.name} extended".strip(),
        eta=schedule.eta,
    )
