"""Spectra of synthetic fields whose spectrum is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from swd_core.spectrum import (
    PowerLaw,
    crossover_sigma,
    fit_power_law,
    power_spectrum,
    safe_side,
    top_octave_ratio,
)


def power_law_field(amplitude: float, exponent: float, *shape: int, seed: int = 0) -> torch.Tensor:
    """White noise shaped in Fourier space to P(f) = amplitude * f^-exponent."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    height, width = shape[-2:]
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    radius[0, 0] = 1
    gain = (amplitude * radius**-exponent).sqrt()
    return torch.fft.ifft2(torch.fft.fft2(noise) * gain).real


def test_white_noise_is_flat_at_its_variance():
    frequencies, power = power_spectrum(
        2 * torch.randn(64, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(frequencies, torch.arange(1, 17) / 32)
    assert (power / 4 - 1).abs().max() < 0.08


def test_a_wave_is_one_line():
    columns = torch.arange(64)
    x = torch.cos(2 * math.pi * 5 / 64 * columns).expand(1, 1, 48, 64)
    frequencies, power = power_spectrum(x)
    assert abs(float(frequencies[power.argmax()]) - 5 / 64) <= 0.5 / 48
    others = power.clone()
    others[power.argmax()] = 0
    assert others.max() < 1e-6 * power.max()


def test_the_mean_does_not_count():
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(
        power_spectrum(x)[1], power_spectrum(x + 100)[1], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_power_law_is_found_again(exponent, size):
    law = fit_power_law(*power_spectrum(power_law_field(0.3, exponent, 8, 16, *size)))
    # The innermost rings are wide relative to their radius, which steepens the estimate a little.
    assert law.exponent == pytest.approx(exponent, abs=0.12)
    assert law.power(0.2) == pytest.approx(0.3 * 0.2**-exponent, rel=0.1)


def test_fit_of_an_exact_law_is_exact():
    f = torch.arange(1, 65) / 128
    law = fit_power_law(f, 0.7 * f**-1.7)
    assert (law.amplitude, law.exponent) == (
        pytest.approx(0.7, rel=1e-5),
        pytest.approx(1.7, rel=1e-5),
    )


def test_crossover_is_where_signal_and_noise_are_equal():
    assert crossover_sigma(1.0) == 0.5
    for power in (1e-4, 0.3, 9.0, 1e4):
        sigma = crossover_sigma(power)
        assert (1 - sigma) ** 2 * power == pytest.approx(sigma**2)


@pytest.mark.parametrize("multiple", [2, 4])
def test_safe_side_is_the_smallest_whose_lost_frequencies_are_below_the_noise(multiple):
    law = PowerLaw(0.1, 2.0)
    for sigma in torch.linspace(0.05, 0.95, 40).tolist():
        side = safe_side(law, sigma, 128, multiple)
        assert side % multiple == 0
        lost = [f for k in range(1, 65) if (f := k / 128) > 0.5 * side / 128]
        assert all(crossover_sigma(law.power(f)) <= sigma for f in lost)
        if side > multiple:
            assert crossover_sigma(law.power(0.5 * (side - multiple) / 128)) > sigma


def test_safe_side_falls_with_the_noise_and_has_ends():
    law = PowerLaw(0.1, 2.0)
    sides = [safe_side(law, s / 20, 128) for s in range(21)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 128 and sides[-1] == 2


def test_safe_sides_of_the_paper():
    """128 x 128 latents: t=800: 32 safe, 16 not; t=600: 80 safe, 32 not; t=500: 96 safe, 48 not."""
    law = fit_power_law(*power_spectrum(power_law_field(0.1, 2.0, 8, 16, 128, 128)))
    for sigma, unsafe, safe in ((0.8, 16, 32), (0.6, 32, 80), (0.5, 48, 96)):
        assert unsafe < safe_side(law, sigma, 128) <= safe


def test_top_octave_ratio():
    real = power_law_field(0.1, 2.0, 16, 3, 64, 64)
    assert top_octave_ratio(real, real) == 1
    other = power_law_field(0.1, 2.0, 32, 3, 64, 64, seed=1)
    assert top_octave_ratio(other, real) == pytest.approx(1, abs=0.05)
    assert top_octave_ratio(2 * other, real) == pytest.approx(4, abs=0.2)
    assert top_octave_ratio(F.avg_pool2d(other, 3, 1, 1), real) < 0.3
    small = F.interpolate(
        F.interpolate(other, scale_factor=0.5, mode="area"), scale_factor=2, mode="bicubic"
    )
    assert top_octave_ratio(small, real) < 0.7
    assert top_octave_ratio(other + torch.randn_like(other), real) > 1.3


def test_what_can_t_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) != \(3, 16, 16\)"):
        top_octave_ratio(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="flat"):
        top_octave_ratio(torch.randn(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match="B, C, H, W"):
        power_spectrum(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="outside 0..1"):
        safe_side(PowerLaw(1, 2), 1.5, 128)
    with pytest.raises(ValueError, match="rises"):
        safe_side(PowerLaw(1, -0.5), 0.5, 128)
