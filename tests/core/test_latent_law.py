"""Fits of fields whose law is known, and the sets of pictures that can't be fitted."""

import math

import pytest
import torch
from torch import Tensor

from swd_core.latent_law import LEAST_PICTURES, fit_latents, picture_spectra
from swd_core.spectrum import power_spectrum


def cosines(n: int) -> Tensor:
    k, i = torch.arange(n)[:, None].double(), torch.arange(n)[None].double()
    waves = torch.cos(math.pi * k * (i + 0.5) / n) * (2 / n) ** 0.5
    return torch.cat([waves[:1] / 2**0.5, waves[1:]])


def field(amplitude: float, exponent: float, *shape: int, seed: int = 0) -> Tensor:
    """Random waves of power A w^-B, w in cycles a square of as many cells."""
    height, width = shape[-2:]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    rows, columns = torch.arange(height) / height / 2, torch.arange(width) / width / 2
    frequency = torch.hypot(rows[:, None], columns[None]).double() * (height * width) ** 0.5
    frequency[0, 0] = 0.5
    waves = noise * (amplitude * frequency**-exponent).sqrt()
    return (cosines(height).T @ waves @ cosines(width)).float()


@pytest.mark.parametrize("size", [(64, 64), (48, 88), (96, 40)])
@pytest.mark.parametrize(("amplitude", "exponent"), [(203.6, 1.9155), (219.5, 2.4227), (5.0, 1.0)])
def test_a_law_is_found_again_within_its_error(size, amplitude, exponent):
    fitted = fit_latents(field(amplitude, exponent, 16, 8, *size), "a VAE", "a test")
    law = fitted.law
    assert (law.cells, law.vae, law.source) == (math.prod(size), "a VAE", "a test")
    assert law.exponent == pytest.approx(exponent, abs=4 * fitted.exponent_error)
    assert math.log(law.amplitude / amplitude) == pytest.approx(0, abs=4 * fitted.amplitude_error)
    assert fitted.exponent_error < 0.03 and fitted.amplitude_error < 0.1
    assert fitted.misfit < 0.1 and fitted.pictures == 16


def test_the_error_is_how_far_fits_of_other_pictures_lie_apart():
    fits = [fit_latents(field(100, 2.0, 12, 4, 32, 32, seed=s)) for s in range(24)]
    for name, values in (
        ("exponent_error", [f.law.exponent for f in fits]),
        ("amplitude_error", [math.log(f.law.amplitude) for f in fits]),
        ("side_error", [math.log(f.law.share(1.0, 32 * 32)) for f in fits]),
    ):
        apart = float(torch.tensor(values).std())
        said = sum(getattr(f, name) for f in fits) / len(fits)
        assert said == pytest.approx(apart, rel=0.35), name


def test_white_noise_has_power_one_everywhere():
    noise = torch.randn(200, 4, 24, 40, generator=torch.Generator().manual_seed(0))
    frequencies, powers = picture_spectra(noise)
    assert float(frequencies[0]) >= 0.5 / 40 and float(frequencies[-1]) <= 0.5
    assert (powers.mean(0) - 1).abs().max() < 0.06


def test_one_wave_has_its_power_at_its_frequency():
    y = (torch.arange(48) + 0.5) / 48
    wave = torch.cos(math.pi * 12 * y)[:, None].expand(1, 1, 48, 64)
    frequencies, powers = picture_spectra(wave)
    assert float(frequencies[powers[0].argmax()]) == pytest.approx(12 / 96, abs=1 / 96)


def test_opposite_borders_may_differ():
    """A picture that is no torus: a slope is no detail, however high the step at the border."""
    slope = torch.linspace(-8, 8, 64).expand(LEAST_PICTURES, 4, 64, 64)
    detail = field(50.0, 2.0, LEAST_PICTURES, 4, 64, 64)
    frequencies, plain = picture_spectra(detail)
    _, tilted = picture_spectra(detail + slope)
    fine = frequencies > 0.25
    assert (tilted / plain - 1)[:, fine].abs().max() < 0.1
    ours, fourier = (tilted - plain)[0, fine].sum(), power_spectrum(slope)[1][-16:].sum()
    assert float(fourier) > 100 * abs(float(ours))


def test_videos_are_measured_frame_by_frame():
    video = field(50.0, 2.0, 8, 4, 5, 32, 32)
    law = fit_latents(video).law
    assert law.exponent == pytest.approx(2.0, abs=0.1)
    assert law.cells == 32 * 32


def test_sets_that_can_t_be_fitted_are_refused():
    good = field(100, 2.0, LEAST_PICTURES, 4, 32, 32)
    with pytest.raises(ValueError, match="3 pictures can't tell.*at least 8"):
        fit_latents(good[:3])
    with pytest.raises(ValueError, match="1 picture can't tell"):
        fit_latents(good[:1])
    for bad in (torch.ones(4, 32, 32), torch.full((4, 32, 32), float("nan"))):
        with pytest.raises(ValueError, match="Picture 6 of 8 has no detail"):
            fit_latents(torch.cat([good[:5], bad[None], good[5:7]]))
    with pytest.raises(ValueError, match="40x12 cells hold too few"):
        fit_latents(field(100, 2.0, 8, 4, 12, 40))
    with pytest.raises(ValueError, match="does not fall"):
        fit_latents(field(1.0, -0.5, 8, 4, 32, 32))
    with pytest.raises(ValueError, match=r"not of \(4, 32, 32\)"):
        fit_latents(good[0])
    with pytest.raises(ValueError, match="Of the 9 pictures only 7 differ from the rest"):
        fit_latents(torch.cat([good[:7], good[:2]]))


def test_pictures_of_one_colour_are_refused():
    """What a VAE makes of one isn't quite constant: its borders differ."""
    good = field(100, 2.0, 12, 4, 32, 32)
    flat = field(0.2, 2.0, 1, 4, 32, 32)
    with pytest.raises(ValueError, match="Picture 12 of 12 has no detail"):
        fit_latents(torch.cat([good[:11], flat]))
    colours = torch.linspace(-1, 1, 12).view(-1, 1, 1, 1).expand(12, 4, 32, 32).clone()
    colours[..., 0, :] *= 1.1
    colours += 1e-3 * field(1.0, 2.0, 12, 4, 32, 32)
    with pytest.raises(ValueError, match="is no power law .misfit .*full of what you make"):
        fit_latents(colours)
