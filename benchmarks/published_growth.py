"""The published spectral sampler, transcribed plainly: what growing is compared with.

arXiv 2605.18736 and github.com/howardhx/speed, as its ports to ComfyUI run it: the constants of
FLUX.1's latents at 128 x 128 cells serve every VAE and every size, the small size takes the run's
own noise levels, the level after the change overwrites one of them, and one stream of noise serves
the whole batch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from swd_core.lifts import dct_matrix
from swd_core.stretches import Stretch

A, BETA = 203.615097, 1.915461
DELTAS = (0.01, 0.05, 0.1, 0.2)  # those of its tables


def activation(side: int, delta: float) -> float:
    """The noise level from which a size of `side` cells is left (equation 9)."""
    power = A * (side / 2) ** -BETA
    return 1 / (1 + math.sqrt(delta / (power * (1 + power - delta))))


def changes_at(sigmas: Sequence[float], side: int, delta: float) -> int:
    """The number of the first step that runs at the larger size."""
    threshold = activation(side, delta)
    return next((i for i, sigma in enumerate(sigmas) if sigma <= threshold), len(sigmas))


def enlarged(
    x: Tensor, sigma: float, side: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """x (B, C, h, h) on `side` cells, all frequencies it hadn't filled with noise, and its level
    there (equations 5 and 6)."""
    old, ratio = x.shape[-1], side / x.shape[-1]
    waves = sigma * torch.randn(*x.shape[:2], side, side, generator=generator).to(x)
    small, large = (dct_matrix(n).to(x) for n in (old, side))
    waves[..., :old, :old] = small @ x @ small.T
    kappa = ratio / (1 + (ratio - 1) * sigma)
    return kappa * (large.T @ waves @ large), ratio * sigma / (1 + (ratio - 1) * sigma)


def sample(
    solve: Callable[[Tensor, Stretch], tuple[Tensor, Tensor]],
    sigmas: Sequence[float],
    shape: Sequence[int],
    start: int,
    delta: float,
    seed: int,
) -> tuple[Tensor, tuple[Stretch, ...]]:
    """Clean latents of `shape` (B, C, side, side) on the CPU, and what was run to get them.

    Args:
        solve: see `swd_core.growing`. sigmas: falling from 1, with the final 0. start: first side.
    """
    generator, side = torch.Generator().manual_seed(seed), shape[-1]
    first = changes_at(sigmas[:-1], start, delta)
    small = Stretch((start, start), tuple(sigmas[: first + 1]), 0)
    x = torch.randn(*shape[:2], start, start, generator=generator)
    if small.steps:
        x, _ = solve(x, small)
    x, level = enlarged(x, sigmas[first], side, generator)
    large = Stretch((side, side), (level, *sigmas[first + 1 :]), first)
    x, _ = solve(x, large) if large.steps else (x, x)
    return x, tuple(part for part in (small, large) if part.steps)
