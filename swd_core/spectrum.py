"""Power spectra: which latent size is safe at which noise level, and which pictures are blurred.

Frequencies are in cycles per cell, 0.5 at the Nyquist limit. Power is scaled so that white noise of
unit variance has 1 at every frequency.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NYQUIST = 0.5


def _power(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power (H, W) over pictures and channels, and the radial frequency (H, W)."""
    if x.ndim != 4:
        raise ValueError(f"A spectrum is taken of pictures (B, C, H, W), not of {tuple(x.shape)}.")
    height, width = x.shape[-2:]
    x = x.float() - x.float().mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
    rows = torch.fft.fftfreq(height, device=x.device)
    columns = torch.fft.fftfreq(width, device=x.device)
    return power, torch.hypot(rows[:, None], columns[None, :])


def power_spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum, without the mean of each picture and channel.

    Args:
        x: (B, C, H, W), latents or pictures, sides at least 4.

    Returns:
        frequencies (K,) from 1/n to 0.5 in steps of 1/n, with n the shorter side, and the mean
        power (K,) of the rings around them.

    Raises:
        ValueError: for another number of dimensions.

    Example:
        >>> frequencies, power = power_spectrum(torch.randn(8, 16, 32, 32))
        >>> bool((power - 1).abs().max() < 0.5)
        True
    """
    power, radius = _power(x)
    n = min(x.shape[-2:])
    ring = (radius * n).round().long().flatten()
    sums = torch.zeros(int(ring.max()) + 1, device=x.device).index_add_(0, ring, power.flatten())
    counts = torch.bincount(ring)
    frequencies = torch.arange(1, n // 2 + 1, device=x.device) / n
    return frequencies, (sums / counts)[1 : n // 2 + 1]


@dataclass(frozen=True)
class PowerLaw:
    """P(f) = amplitude * f^-exponent, f in cycles per cell."""

    amplitude: float
    exponent: float

    def power(self, frequency: float) -> float:
        return self.amplitude * frequency**-self.exponent

    def frequency(self, power: float) -> float:
        """Where the law falls to `power`."""
        return (self.amplitude / power) ** (1 / self.exponent)


def fit_power_law(frequencies: Tensor, power: Tensor) -> PowerLaw:
    """The line through a spectrum in log-log space that weighs every octave alike.

    Args:
        frequencies, power: (K,), both positive, K at least 2; see `power_spectrum`.
    """
    f, p = frequencies.double().log(), power.double().log()
    weight = 1 / frequencies.double()  # rings lie evenly in f: an octave up holds twice as many
    weight = weight / weight.sum()
    f_mean, p_mean = (weight * f).sum(), (weight * p).sum()
    slope = (weight * (f - f_mean) * (p - p_mean)).sum() / (weight * (f - f_mean).square()).sum()
    return PowerLaw(float((p_mean - slope * f_mean).exp()), float(-slope))


def crossover_sigma(power: float) -> float:
    """Noise level of flow matching at which noise and a signal of this power are equally strong.

    From (1 - sigma)^2 P = sigma^2 (arXiv 2503.16397, section 3.1): sigma = sqrt(P) / (1 + sqrt(P)).
    """
    root = math.sqrt(power)
    return root / (1 + root)


def safe_side(law: PowerLaw, sigma: float, side: int, multiple: int = 2) -> int:
    """Smallest side that loses nothing at this noise level: all it can't hold is below the noise.

    Args:
        law: spectrum of full-size latents with a falling power (exponent above 0).
        sigma: noise level of flow matching, 0..1.
        side: the full side in cells. multiple: what the result is a multiple of, as `side` is.

    Returns:
        a side of `multiple`..`side`; `side` itself where no smaller one is safe.

    Raises:
        ValueError: if sigma is outside 0..1 or the law does not fall.
    """
    if not 0 <= sigma <= 1:
        raise ValueError(f"The noise level {sigma:g} is outside 0..1.")
    if law.exponent <= 0:
        raise ValueError(
            f"The spectrum rises (exponent {law.exponent:.2f}); no smaller size is safe."
        )
    if sigma == 0:
        return side
    if sigma == 1:
        return multiple
    hidden_above = law.frequency((sigma / (1 - sigma)) ** 2)
    # `s` cells across the picture hold frequencies up to 0.5 s / side cycles per full-size cell.
    smallest = math.ceil(hidden_above / NYQUIST * side / multiple) * multiple
    return min(max(smallest, multiple), side)


def top_octave_energy(x: Tensor) -> float:
    """Mean power of (B, C, H, W) at the finest frequencies, 0.25 to 0.5 cycles per cell."""
    power, radius = _power(x)
    return float(power[(radius > NYQUIST / 2) & (radius <= NYQUIST)].mean())


def top_octave_ratio(images: Tensor, reference: Tensor) -> float:
    """Energy of the finest details relative to real pictures of the same size.

    Args:
        images, reference: (B, C, H, W) in the same units; the numbers of pictures may differ.

    Returns:
        1 for pictures as detailed as the reference, below 0.7 for blurred ones, above 1 for noise.

    Raises:
        ValueError: if sizes or channels differ, or the reference has no fine detail at all.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"Pictures and reference must have the same channels and size: "
            f"{tuple(images.shape[1:])} != {tuple(reference.shape[1:])}."
        )
    energy = top_octave_energy(reference)
    if energy <= 0:
        raise ValueError(
            "The reference pictures are flat: they have no fine detail to compare with."
        )
    return top_octave_energy(images) / energy
