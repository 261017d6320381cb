"""Where a lift raises the noise level, which levels should the run go on with?

    python benchmarks/growth_spacing.py

An exact denoiser of a Gaussian field with FLUX.1's published power law (64 x 64 cells of 1024
pixels' law, half size to full), so that what a run makes of each frequency is known without
statistics: every way starts from the same noise. Shown is the final power of frequencies relative
to the field's, in bands of the Nyquist frequency, and the root mean square distance of the final
values from those of the run at full size, relative to them.

published: the small size takes the levels as they are, the one at the lift is overwritten by the
raised one (arXiv 2605.18736, its code and ports). proportional: the rest is re-spaced between the
raised level and 0. one more: as published, with one step more in the middle of the long one. full:
the small size takes the levels at which it means the same as the full size; none is changed.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from paired import arguments, log, parser, table
from torch import Tensor

from swd_core.growing import GrowthState, OneField, euler, sample_growing
from swd_core.growth import GrowthSchedule, Stretch
from swd_core.latent_law import PUBLISHED, LatentLaw
from swd_core.lifts import dct_matrix, lift_spectral
from swd_core.noise import SeededNoise
from swd_core.process import FlowMatching

SIDE, CHANNELS = 64, 16
FLUX = PUBLISHED["FLUX.1"]
# Of 128 x 128 cells: the same powers at the same shares of the side.
LAW = LatentLaw(FLUX.power(1, FLUX.cells) * (SIDE / 2) ** FLUX.exponent, FLUX.exponent, SIDE**2)
BANDS = (0, 0.25, 0.45, 0.55, 0.75, 1.0)
PROCESS = FlowMatching()
Levels = tuple[float, ...]


def shifted(steps: int, shift: float) -> Levels:
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (1 - i / steps for i in range(steps)))


def power(rows: int, columns: int) -> Tensor:
    frequency = torch.hypot(torch.arange(rows)[:, None] / 2.0, torch.arange(columns)[None] / 2.0)
    return LAW.amplitude * rows * columns / LAW.cells * frequency.clamp(min=0.5) ** -LAW.exponent


def dct(x: Tensor) -> Tensor:
    return dct_matrix(x.shape[-2]) @ x.double() @ dct_matrix(x.shape[-1]).T


def denoise(x_t: Tensor, sigma: float) -> Tensor:
    p = power(*x_t.shape[-2:]).double()
    gain = (1 - sigma) * p / ((1 - sigma) ** 2 * p + sigma**2)
    rows, columns = (dct_matrix(n) for n in x_t.shape[-2:])
    return (rows.T @ (gain * dct(x_t)) @ columns).to(x_t.dtype)


def multistep(x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M), as the host's dpmpp_2m; it begins anew in every stretch."""
    x0 = last = None
    levels = stretch.sigmas
    for i, (sigma, after) in enumerate(zip(levels, levels[1:], strict=False)):
        x0 = denoise(x_t, sigma)
        target = x0
        if last is not None and after > 0:
            step, before = (math.log(a / b) for a, b in ((sigma, after), (levels[i - 1], sigma)))
            target = x0 + step / before / 2 * (x0 - last)
        x_t, last = target + (x_t - target) * (after / sigma), x0
    return x_t, x0


def full(growth: GrowthSchedule, side: int = SIDE) -> tuple[Stretch, ...]:
    return growth.stretches(side, side)


def published(growth: GrowthSchedule, side: int = SIDE) -> tuple[Stretch, ...]:
    small, large = full(growth, side)
    given = (*growth.sigmas, 0.0)[: small.steps + 1]
    raised = PROCESS.gain(given[-1], 2) * given[-1]
    return (
        Stretch(small.size, given, 0),
        Stretch(large.size, (raised, *large.sigmas[1:]), large.step),
    )


def proportional(growth: GrowthSchedule, side: int = SIDE) -> tuple[Stretch, ...]:
    small, large = published(growth, side)
    factor = large.sigmas[0] / small.sigmas[-1]
    rest = tuple(factor * s for s in (*growth.sigmas, 0.0)[large.step :])
    return small, Stretch(large.size, rest, large.step)


def one_more(growth: GrowthSchedule) -> tuple[Stretch, ...]:
    small, large = published(growth)
    raised, after, *rest = large.sigmas
    return small, Stretch(large.size, (raised, (raised + after) / 2, after, *rest), large.step)


WAYS: dict[str, Callable[[GrowthSchedule], tuple[Stretch, ...]]] = {
    "published": published,
    "proportional": proportional,
    "one more": one_more,
    "full": full,
}


def final(stretches: tuple[Stretch, ...], solve: Callable) -> Tensor:
    """The DCT coefficients that a run ends with."""
    noise = OneField(SeededNoise(0, (0,)), (SIDE, SIDE))
    state = sample_growing(
        solve, stretches, GrowthState(), noise, process=PROCESS,
        lift=partial(lift_spectral, levels=PROCESS), like=torch.zeros(1, CHANNELS, SIDE, SIDE),
    )  # fmt: skip
    return dct(state.x0)[0]


def row(stretches: tuple[Stretch, ...], solve: Callable, whole: Tensor, noise: Tensor) -> list[str]:
    found = final(stretches, solve)
    # Each coefficient is a factor times its own first noise.
    relative = (found / noise).square().mean(0) / power(SIDE, SIDE)
    axis = torch.arange(SIDE) / SIDE
    radius = torch.maximum(axis[:, None], axis[None])
    bands = [
        relative[(radius >= low) & (radius < high)].mean()
        for low, high in zip(BANDS, BANDS[1:], strict=False)
    ]
    cost = sum(s.steps * math.prod(s.size) for s in stretches) / SIDE**2
    distance = ((found - whole).square().sum() / whole.square().sum()).sqrt()
    finest = radius >= 0.5
    fine = ((found - whole)[:, finest].square().sum() / whole[:, finest].square().sum()).sqrt()
    return [
        f"{cost:.2f}", *(f"{float(b):.3f}" for b in bands), f"{float(distance):.4f}",
        f"{float(fine):.4f}",
    ]  # fmt: skip


def main() -> None:
    arguments(parser(__doc__))
    noise = dct(SeededNoise(0, (0,))(0, (1, CHANNELS, SIDE, SIDE)))[0]
    rows = []
    for name, solve in (("euler", euler(denoise)), ("dpmpp_2m", multistep)):
        for steps, shift in ((50, 3.0), (25, 3.0), (8, 3.0)):
            sigmas = shifted(steps, shift)
            plain = GrowthSchedule(sigmas, start=1.0).stretches(SIDE, SIDE)
            whole = final(plain, solve)
            setting = f"{name}, {steps} steps"
            rows.append([setting, "–", "full size", *row(plain, solve, whole, noise)])
            for delta in (0.01, 0.05, 0.1):
                growth = GrowthSchedule(sigmas, delta=delta, law=LAW)
                for way, stretches in WAYS.items():
                    cells = row(stretches(growth), solve, whole, noise)
                    rows.append([setting, f"{delta:g}", way, *cells])
    bands = [f"{a:g} to {b:g}" for a, b in zip(BANDS, BANDS[1:], strict=False)]
    log.info(
        table(["run", "delta", "levels", "cost", *bands, "distance", "of the finest half"], rows)
    )


if __name__ == "__main__":
    main()
