"""The growing run: the same bits however it is cut, and an exact denoiser whose result is known.

The oracle is a Gaussian field of a known power law. Its clean prediction is a factor on each
frequency, so that what any run makes of it can be told frequency by frequency.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from swd_core.growing import GrowthState, OneField, euler, sample_growing
from swd_core.growth import GrowthSchedule, Stretch
from swd_core.latent_law import LatentLaw
from swd_core.lifts import lift_pixels, lift_spectral, lift_swd
from swd_core.noise import SeededNoise
from swd_core.process import FlowMatching, VarianceExploding
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.schedule import ScaleSchedule

SIDE, RATIO = 64, 2.0
LAW = LatentLaw(203.615097, 1.915461, 128 * 128)


def shifted(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (1 - i / steps for i in range(steps)))


def cosines(n: int) -> Tensor:
    k, i = torch.arange(n)[:, None].double(), torch.arange(n)[None].double()
    waves = torch.cos(math.pi * k * (i + 0.5) / n) * (2 / n) ** 0.5
    return torch.cat([waves[:1] / 2**0.5, waves[1:]])


def dct(x: Tensor) -> Tensor:
    return cosines(x.shape[-2]) @ x.double() @ cosines(x.shape[-1]).T


def field_power(size: tuple[int, int], full: tuple[int, int]) -> Tensor:
    """Power of each DCT coefficient of the field on a grid: A w^-beta, w in cycles a picture.

    Flat below one cycle a picture; as many times larger as there are more cells.
    """
    rows, columns = (torch.arange(n).double() / (2 * f) for n, f in zip(size, full, strict=True))
    # A coefficient k of a grid is the wave of k half periods across the picture on every grid.
    frequency = torch.hypot(rows[:, None], columns[None]) * math.prod(full) ** 0.5
    cells = math.prod(size)
    return LAW.amplitude * cells / LAW.cells * frequency.clamp(min=1) ** -LAW.exponent


def oracle(process, full: tuple[int, int]):
    """denoise(x_t, sigma) -> E[x0 | x_t] of the field, on any grid."""
    flow = isinstance(process, FlowMatching)

    def denoise(x_t: Tensor, sigma: float) -> Tensor:
        height, width = x_t.shape[-2:]
        power, keep = field_power((height, width), full), 1 - sigma if flow else 1.0
        gain = keep * power / (keep**2 * power + (process.noise_scale * sigma) ** 2)
        return (cosines(height).T @ (gain * dct(x_t)) @ cosines(width)).to(x_t.dtype)

    return denoise


def run(growth: GrowthSchedule, size, noise, process, *, channels=4, solve=None, **settings):
    height, width = size
    like = torch.zeros(len(noise.indices), channels, height, width)
    settings = {"lift": partial(lift_spectral, levels=process), **settings}
    return sample_growing(
        solve or euler(oracle(process, (height, width))),
        growth.stretches(height, width),
        settings.pop("state", GrowthState()),
        settings.pop("field", OneField(noise, (height, width))),
        process=process,
        like=like,
        **settings,
    )


def schedule_of(process, steps: int, **settings) -> GrowthSchedule:
    sigmas = shifted(steps)
    if isinstance(process, FlowMatching):
        return GrowthSchedule(sigmas, law=LAW, noise_scale=process.noise_scale, **settings)
    odds = tuple(s / (1 - s) for s in sigmas[1:])
    top = 2 * odds[0]
    return GrowthSchedule((top, *odds), law=LAW, kind="exploding", top=top, **settings)


PROCESSES = [FlowMatching(), FlowMatching(3.0), VarianceExploding()]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("size", [(64, 64), (44, 90)])
@pytest.mark.parametrize("count", [2, 3])
def test_low_frequencies_are_those_of_the_run_at_full_size(process, size, count):
    """With the same seed and Euler steps: not as in the statistics, but number by number."""
    growth, noise = schedule_of(process, 25, count=count), SeededNoise(1, (0, 1))
    whole = schedule_of(process, 25, start=1.0)
    small = growth.stretches(*size)[0]
    assert small.size != size and small.steps >= 5
    grown, full = (dct(run(g, size, noise, process).x0) for g in (growth, whole))
    rows, columns = small.size
    if isinstance(process, FlowMatching):
        torch.testing.assert_close(
            grown[..., :rows, :columns], full[..., :rows, :columns], atol=1e-3, rtol=1e-3
        )
    # Variance exploding models begin at their one largest sigma on every grid: a longer first step.
    ratio = grown[..., :rows, :columns].square().mean() / full[..., :rows, :columns].square().mean()
    assert float(ratio) == pytest.approx(1, abs=0.02)
    # What the small size couldn't hold falls short by no more than delta allows for.
    power = field_power(size, size)
    kept = grown.square().mean((0, 1)) / full.square().mean((0, 1))
    beyond = torch.ones(size, dtype=torch.bool)
    beyond[:rows, :columns] = False
    lost = growth.delta / (1 + power)
    assert (1 - kept[beyond].mean()) < lost[beyond].mean() + 0.01
    assert kept[beyond].max() < 1.05


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", [8, 50])
def test_the_spectrum_is_that_of_full_size_runs_of_other_seeds(process, steps):
    """Bands from low to high frequencies, by statistics alone: four standard errors and delta."""
    growth, whole = schedule_of(process, steps), schedule_of(process, steps, start=1.0)
    size, images = (SIDE, SIDE), 12
    grown, full = (
        dct(run(g, size, SeededNoise(seed, tuple(range(images))), process).x0)
        for seed, g in enumerate((growth, whole))
    )
    power = field_power(size, size)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    band = torch.from_numpy((np.maximum(rows, columns) * 8).astype(int))
    for number in range(8):
        inside = band == number
        a, b = (((x.square() / power)[..., inside]) for x in (grown, full))
        error = 4 * (a.mean() * (2 / a.numel()) ** 0.5 + b.mean() * (2 / b.numel()) ** 0.5)
        allowed = growth.delta * float(b.mean()) if number >= 4 else 0
        assert -error - allowed < a.mean() - b.mean() < error, number
    # And the full run is what many Euler steps make of the field itself.
    if steps == 50 and process == FlowMatching():
        assert float((full.square() / power).mean()) == pytest.approx(0.87, abs=0.05)


def test_the_published_way_falls_short_of_it():
    """Levels of the small size taken from the schedule as they are, one overwritten: 7 % less.

    So that the tests above are known to tell the difference.
    """
    process, size, noise = FlowMatching(), (SIDE, SIDE), SeededNoise(1, (0, 1))
    growth = schedule_of(process, 50)
    small, full = growth.stretches(*size)
    given = (*growth.sigmas, 0.0)
    own = given[: small.steps + 1]
    raised = process.gain(own[-1], RATIO) * own[-1]
    as_published = (
        Stretch(small.size, own, 0),
        Stretch(full.size, (raised, *full.sigmas[1:]), full.step),
    )

    def low_power(run_of) -> float:
        state = sample_growing(
            euler(oracle(process, size)), run_of, GrowthState(), OneField(noise, size),
            lift=partial(lift_spectral, levels=process), process=process,
            like=torch.zeros(2, 4, *size),
        )  # fmt: skip
        return float((dct(state.x0).square() / field_power(size, size))[..., :16, :16].mean())

    assert low_power(as_published) / low_power((small, full)) == pytest.approx(0.93, abs=0.03)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_same_bits_however_it_is_cut(process):
    growth, noise = schedule_of(process, 12, count=3), SeededNoise(5, (0, 3))
    straight = run(growth, (32, 48), noise, process)
    assert straight.stretches == 3 and straight.x0.shape == (2, 4, 32, 48)
    assert torch.equal(straight.x_t, straight.x0)
    for cut in (0, 1, 2, 3):
        half = run(growth, (32, 48), noise, process, until=cut)
        assert half.stretches == cut
        # A state that is saved and read again has lost nothing.
        state = GrowthState(*(None if x is None else x.clone() for x in (half.x_t, half.x0)), cut)
        rest = run(growth, (32, 48), SeededNoise(5, (0, 3)), process, state=state)
        assert torch.equal(rest.x0, straight.x0)
    again = run(growth, (32, 48), noise, process, state=straight, until=1)
    assert again.stretches == 3 and torch.equal(again.x0, straight.x0)


def test_an_image_does_not_depend_on_its_batch():
    growth, process = schedule_of(FlowMatching(), 12), FlowMatching()
    batch = run(growth, (32, 32), SeededNoise(9, (0, 2, 7)), process).x0
    for row, index in enumerate((0, 2, 7)):
        alone = run(growth, (32, 32), SeededNoise(9, (index,)), process).x0
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [1.0, 0.95])
def test_one_size_is_the_plain_solver(start):
    """Euler's method, written out."""
    process, noise = FlowMatching(), SeededNoise(2, (0, 1))
    growth = schedule_of(process, 9, start=start)
    denoise, x = oracle(process, (16, 16)), noise(0, (2, 4, 16, 16))
    sigmas = (*growth.sigmas, 0.0)
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - denoise(x, sigma)) / sigma * (after - sigma)
    torch.testing.assert_close(run(growth, (16, 16), noise, process).x0, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
@pytest.mark.parametrize("shape", [(2, 4, 32, 24), (2, 4, 3, 32, 24)])
def test_a_student_is_the_special_case(process, shape):
    """Stretches of one step and the student's lift: the bits of the scale-wise loop."""
    schedule = ScaleSchedule((0.5, 0.625, 0.75, 1.0), (1.0, 0.8959, 0.7371, 0.6022))
    sizes, noise = schedule.sizes(32, 24), SeededNoise(5, (0, 1))
    levels = (*schedule.sigmas, 0.0)
    stretches = [Stretch(size, levels[i : i + 2], i) for i, size in enumerate(sizes)]

    def denoise(x_t: Tensor, sigma: float) -> Tensor:
        return torch.tanh(1.7 * x_t.roll(1, -1) - 0.3 * x_t) / (0.5 + sigma)

    def solve(x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        x0 = denoise(x_t, stretch.sigmas[0])
        return x0, x0

    like = torch.zeros(shape)
    ours = sample_growing(
        solve, stretches, GrowthState(), noise,
        lift=partial(lift_swd, process=process), process=process, like=like,
    )  # fmt: skip
    theirs = sample_scalewise(
        denoise, schedule.sigmas, sizes, ScaleState(), noise, process=process, like=like
    )
    assert torch.equal(ours.x0, theirs.x0)


def test_pictures_through_pixels_grow_and_can_be_stopped():
    process, noise = FlowMatching(), SeededNoise(4, (0,))
    growth = schedule_of(process, 8, lift="pixels", count=3)
    lift = partial(
        lift_pixels,
        process=process,
        decode=lambda x0: torch.nn.functional.interpolate(x0[:, :3], scale_factor=4),
        encode=lambda x: torch.nn.functional.avg_pool2d(x, 4)[:, [0, 1, 2, 0]],
    )
    straight = run(growth, (32, 32), noise, process, lift=lift, field=noise)
    assert straight.x0.shape == (1, 4, 32, 32) and torch.isfinite(straight.x0).all()
    half = run(growth, (32, 32), noise, process, lift=lift, field=noise, until=1)
    again = run(growth, (32, 32), noise, process, lift=lift, field=noise, state=half)
    assert torch.equal(again.x0, straight.x0)


@pytest.mark.parametrize("process", PROCESSES)
def test_image_to_image_starts_with_the_amplitude_of_a_small_picture(process):
    """A model that knows the picture at any size gives it back; what else it sees is noise."""
    size, noise = (32, 48), SeededNoise(1, (0,))
    waves = 50 * dct(noise(9, (1, 4, *size)))
    waves[..., 12:, :] = waves[..., 12:] = 0  # what the smallest size holds

    def picture(height: int, width: int) -> Tensor:
        """The same waves on another grid: the sum of squares is one for each cell."""
        fitting = waves[..., :height, :width] * (height * width / 32 / 48) ** 0.5
        return (cosines(height).T @ fitting @ cosines(width)).float()

    latent = picture(*size)
    growth = schedule_of(process, 12, count=2)
    stretches = growth.stretches(*size, sigmas=(*growth.sigmas, 0.0)[3:])
    assert len(stretches) == 2
    seen = []

    def denoise(x_t: Tensor, sigma: float) -> Tensor:
        x0 = picture(*x_t.shape[-2:])
        rest = x_t - process.add_noise(x0, torch.zeros_like(x0), sigma)
        seen.append((x_t.shape[-2:], rest, sigma))
        return x0

    state = sample_growing(
        euler(denoise), stretches, GrowthState(), OneField(noise, size), latent=latent,
        lift=partial(lift_spectral, levels=process), process=process,
        like=torch.zeros_like(latent),
    )  # fmt: skip
    torch.testing.assert_close(state.x0, latent, atol=1e-3, rtol=1e-4)
    # All else it sees, at every step, is white noise of the step's own level.
    for shape, rest, sigma in seen:
        unit = rest / sigma / process.noise_scale
        samples = math.prod(shape) * 4
        assert float(unit.square().mean()) == pytest.approx(1, abs=4 * (2 / samples) ** 0.5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("disable_noise", [False, True])
def test_image_to_image_is_that_of_the_run_at_full_size(process, disable_noise):
    """With all the detail of the picture it begins with; also where that is noised already."""
    size, noise, sigma = (32, 48), SeededNoise(1, (0, 1)), shifted(12)[3]
    sigma = sigma if isinstance(process, FlowMatching) else sigma / (1 - sigma)
    waves = noise(9, (2, 4, *size)).double() * field_power(size, size).sqrt()
    latent = (cosines(32).T @ waves @ cosines(48)).float()
    signal = float(process.add_noise(torch.ones(()), torch.zeros(()), sigma))
    if disable_noise:  # x_t / signal, as the host hands it from one sampler to the next
        latent = process.add_noise(latent, noise(0, latent.shape), sigma) / signal
        noise_of_run = lambda step, shape: torch.zeros(shape)  # noqa: E731
    else:
        noise_of_run = noise
    sigmas = (*schedule_of(process, 12).sigmas, 0.0)[3:]
    assert sigmas[0] == pytest.approx(sigma)

    def result(start: float) -> Tensor:
        growth = schedule_of(process, 12, start=start)
        stretches = growth.stretches(*size, sigmas=sigmas)
        assert len(stretches) == (1 if start == 1 else 2)
        return sample_growing(
            euler(oracle(process, size)), stretches, GrowthState(),
            OneField(noise_of_run, size, latent, process.odds(sigma)), latent=latent,
            lift=partial(lift_spectral, levels=process), process=process, like=latent,
        ).x0  # fmt: skip

    grown, full = (dct(result(start)) for start in (0.5, 1.0))
    torch.testing.assert_close(grown[..., :16, :24], full[..., :16, :24], atol=1e-3, rtol=1e-3)
    power = field_power(size, size)
    off = ((grown - full).square() / power)[..., 16:, :].mean() ** 0.5
    assert float(off) < 0.05


def test_a_video_grows_frame_by_frame():
    process, noise, growth = FlowMatching(), SeededNoise(3, (0,)), schedule_of(FlowMatching(), 8)
    like = torch.zeros(1, 4, 3, 24, 32)
    video = sample_growing(
        euler(oracle(process, (24, 32))), growth.stretches(24, 32, frames=3), GrowthState(),
        OneField(noise, (24, 32)), lift=partial(lift_spectral, levels=process), process=process,
        like=like,
    ).x0  # fmt: skip
    assert video.shape == like.shape
    field = noise(0, like.shape)
    for t in range(3):
        frame = sample_growing(
            euler(oracle(process, (24, 32))), growth.stretches(24, 32), GrowthState(),
            OneField(lambda step, shape, t=t: field[:, :, t], (24, 32)),
            lift=partial(lift_spectral, levels=process), process=process, like=like[:, :, t],
        ).x0  # fmt: skip
        torch.testing.assert_close(video[:, :, t], frame, atol=1e-5, rtol=1e-5)
