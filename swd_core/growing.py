"""The run over the sizes of a growing picture: solve a stretch, lift, solve the next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lifts import regrid, size_ratio
from .process import Process
from .sampling import Denoise, Noise
from .stretches import Stretch
from .transfer import sent

Solve = Callable[[Tensor, Stretch], tuple[Tensor, Tensor]]
Lift = Callable[[Tensor, Tensor, float, Sequence[int], Tensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class GrowthState:
    """A run after `stretches` of its stretches, before the lift to the next; 0 has no tensors.

    Args:
        x_t: what the solver holds, (B, C, ..., H, W), at the level that stretch ends at.
        x0: the last clean prediction, of the same size: what a draft shows.
    """

    x_t: Tensor | None = None
    x0: Tensor | None = None
    stretches: int = 0


def shrunk(latent: Tensor, size: Sequence[int]) -> Tensor:
    """A clean latent on a smaller grid, as a spectral lift would enlarge it again."""
    return regrid(latent, size) * size_ratio(latent.shape, size)


def sample_growing(
    solve: Solve,
    stretches: Sequence[Stretch],
    state: GrowthState,
    noise: Noise,
    *,
    lift: Lift,
    process: Process,
    like: Tensor,
    latent: Tensor | None = None,
    shrink: Callable[[Tensor, Sequence[int]], Tensor] = shrunk,
    until: int | None = None,
    on_state: Callable[[GrowthState], None] | None = None,
) -> GrowthState:
    """Solves stretch after stretch, each on what the one before holds, lifted to its size.

    Running to the end in one call or in several with the returned state in between gives the same
    bits: a solver starts anew at every size, and nothing else is carried over.

    Args:
        solve: `solve(x_t, stretch) -> (x_t, x0)`, what it holds where the stretch ends and its last
            clean prediction.
        stretches: of a `GrowthSchedule`, or for a student one for each step.
        state: where to begin; `GrowthState()` is the beginning.
        noise: `noise(step, shape)`, standard normal, once for each stretch, with its first step.
        lift: one of `lifts`, with all but its first five arguments bound.
        process: the model's forward process, for the beginning.
        like: any tensor (B, C, ..., H, W) whose batch, channels, dtype and device the run has.
        latent: a clean latent to start from, at full size, where the first level is below pure
            noise. shrink: how it is brought to the first size.
        until: stop after this many stretches (all by default).
        on_state: called with the state after each stretch.
    """
    until = len(stretches) if until is None else until
    for number in range(state.stretches, until):
        stretch = stretches[number]
        shape = (*like.shape[: like.ndim - len(stretch.size)], *stretch.size)
        fresh = sent(noise(stretch.step, shape), like.device).to(like.dtype)
        if number:
            before = stretches[number - 1].sigmas[-1]
            x_t, _ = lift(state.x_t, state.x0, before, stretch.size, fresh)
        else:
            clean = like.new_zeros(shape) if latent is None else shrink(latent, stretch.size)
            x_t = process.add_noise(clean.to(like.dtype), fresh, stretch.sigmas[0])
        state = GrowthState(*solve(x_t, stretch), number + 1)
        if on_state is not None:
            on_state(state)
    return state


@dataclass(frozen=True)
class OneField:
    """`noise(step, shape)` for spectral lifts: the same field on the grid of every size.

    A lift keeps the low frequencies that it has and fills in the others, which no smaller size has
    used. They are what a run at full size would hold there, as long as its picture has none: what
    it began with, at the level it has come down to. So a grown picture is that run's, but for what
    the schedule's delta lets go.

    Args:
        noise: draws the run's first noise, at full size, as step 0. target: the full (height,
            width). latent: the clean latent of full size that the run begins with, if any, and
            odds: noise over signal there, at full size.
    """

    noise: Noise
    target: tuple[int, int]
    latent: Tensor | None = None
    odds: float = math.inf

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        field = self.noise(0, (*shape[:-2], *self.target))
        if step and self.latent is not None:
            field = field + self.latent / self.odds
        return regrid(field, shape[-2:])


def euler(denoise: Denoise) -> Solve:
    """Euler's method over a stretch, for models that are called as the loop of a student does."""

    def solve(x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        x0 = torch.zeros_like(x_t)
        for sigma, after in zip(stretch.sigmas, stretch.sigmas[1:], strict=False):
            x0 = denoise(x_t, sigma)
            x_t = x0 if after == 0 else x0 + (x_t - x0) * (after / sigma)
        return x_t, x0

    return solve
