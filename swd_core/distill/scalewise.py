"""The scale-wise training step: what the student sees at one interval of the schedule."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..process import FlowMatching, Process
from ..resample import upscale

PROCESS = FlowMatching()
T = TypeVar("T", float, Tensor)


def shifted(time: T, shift: float = 3.0) -> T:
    """A flow's noise level at a time 0..1, as SD3 and FLUX space their steps."""
    return shift * time / (1 + (shift - 1) * time)


def _grid(steps: int = 28) -> tuple[float, ...]:
    """Noise levels of diffusers' flow-matching scheduler, from 1 to 0.0089.

    It shifts its range of times first, and the even steps through that range once more.
    """
    last = shifted(1 / 1000)
    return tuple(shifted(1 - (1 - last) * i / (steps - 1)) for i in range(steps))


# What the authors noise pictures to for their losses (yandex-research/swd, main.py and losses.py).
GRID = _grid()


@dataclass(frozen=True)
class Interval:
    """One step of the schedule in latent units: its size, its noise level, the size before it.

    bucket: the finished size's name in prepared data; several aspect ratios may share small sizes.
    """

    size: tuple[int, int]
    sigma: float
    previous: tuple[int, int] | None
    bucket: str = ""


def intervals(
    sizes: list[tuple[int, int]], sigmas: tuple[float, ...], bucket: str = ""
) -> list[Interval]:
    """Pairs each step's size with the one before it; the first has none."""
    before: list[tuple[int, int] | None] = [None, *sizes[:-1]]
    steps = zip(sizes, sigmas, before, strict=True)
    return [Interval(size, sigma, previous, bucket) for size, sigma, previous in steps]


def student_input(
    interval: Interval,
    x0: Tensor,
    x0_previous: Tensor | None,
    noise: Tensor,
    process: Process = PROCESS,
) -> Tensor:
    """x_t that the student is trained on (arXiv 2503.16397, section 3.2).

    Args:
        x0: real latents (B, C, H, W) at the interval's size.
        x0_previous: the same pictures encoded at the size before; unused by the first interval.
        noise: standard normal, the shape of x0. process: the model's own; flow matching by default.
    """
    if interval.previous is None or x0_previous is None:
        start = x0
    elif x0_previous.shape[-2:] == x0.shape[-2:]:
        start = x0_previous
    else:
        start = upscale(x0_previous, interval.size)
    return process.add_noise(start, noise, interval.sigma)
