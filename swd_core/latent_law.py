"""How the power of clean latents falls with frequency, and what of it noise hides.

Power is measured against white noise of unit variance, which has 1 in every coefficient of an
orthonormal transform. Frequencies are in cycles a picture: in `f` cycles a cell they are
`f * sqrt(cells)`, so that pictures of any shape follow one law. The same picture on r times the
cells has r times the power at each of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .lifts import dct_matrix
from .spectrum import PowerLaw, fit_power_law

LEAST_PICTURES, LEAST_SIDE = 8, 16
FLAT = 0.02  # of the usual power; what a VAE makes of one colour isn't quite constant
MOST_MISFIT = 1.0  # real pictures: .15; of one colour, or small on a white ground: 3 to 5


@dataclass(frozen=True)
class LatentLaw:
    """P(w) = amplitude * w^-exponent for pictures of `cells` latent cells.

    Args:
        amplitude, exponent: both above 0. cells: of the pictures it was fitted on.
        vae: whose latents they are. source: where the numbers come from.

    Raises:
        ValueError: if a number is not finite and above 0.
    """

    amplitude: float
    exponent: float
    cells: int = 128 * 128
    vae: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("amplitude", "exponent", "cells"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"The {name} of a latent spectrum must be above 0, not {value!r}.")

    def power(self, share: float, cells: int) -> float:
        """Power at the highest frequency that a grid of `share` of the side can hold.

        Args:
            cells: of the whole picture; the power is that of its latents at full size.
        """
        frequency = share * math.sqrt(cells) / 2
        return self.amplitude * cells / self.cells * frequency**-self.exponent

    def share(self, power: float, cells: int) -> float:
        """Of the side of the full size: the grid whose highest frequency has this power."""
        frequency = (power * self.cells / cells / self.amplitude) ** (-1 / self.exponent)
        return 2 * frequency / math.sqrt(cells)

    def safe_odds(self, share: float, cells: int, delta: float) -> float:
        """Noise over signal, at full size, down to which a smaller grid loses at most `delta`.

        At a frequency of power P under noise that is `u` times the signal the ideal velocity
        differs from the noise alone by P (1 + P) / (P + u^2) in mean square, the noise's own
        power being 1 (arXiv 2605.18736, equation 9). It is below delta from this u upwards, at
        all frequencies that the grid can't hold.
        """
        power = self.power(share, cells)
        return math.sqrt(power * (1 + power - delta) / delta)

    def safe_share(self, odds: float, cells: int, delta: float) -> float:
        """The smallest grid that loses at most `delta` there, as a share of the full side, 0..1."""
        if math.isinf(odds):
            return 0.0
        if odds < 1e-6:
            return 1.0
        half = (1 - delta) / 2
        hidden = delta * odds**2 / (half + math.sqrt(half**2 + delta * odds**2))
        return min(self.share(hidden, cells), 1.0)


_SPEED = "arXiv 2605.18736, github.com/howardhx/speed"
PUBLISHED = {
    "FLUX.1": LatentLaw(203.615097, 1.915461, vae="FLUX.1", source=_SPEED),
    "Wan 2.1": LatentLaw(219.484718, 2.422687, vae="Wan 2.1", source=_SPEED),
    # Standard errors by `fit_latents`: amplitude 1.7 %, exponent .010, safe sides .6 %.
    "scenes": LatentLaw(
        19.9, 2.13, cells=32 * 32, vae="scenes", source="measured on 512 of its pictures"
    ),
}


@dataclass(frozen=True)
class FittedLaw:
    """A law measured on pictures, with one standard error of each number.

    Args:
        amplitude_error: relative to the amplitude; it and the exponent's fall and rise together.
        side_error: relative, of the sides that are safe halfway through a run.
        misfit: root mean square distance of the measured powers from the line, as a factor - 1.
    """

    law: LatentLaw
    amplitude_error: float
    exponent_error: float
    side_error: float
    misfit: float
    pictures: int


def picture_spectra(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies (K,) in cycles a cell and each picture's mean power there (B, K).

    Powers of orthonormal DCT-II coefficients, averaged over channels, frames and rings of half a
    cycle along the shorter side, up to what both axes hold. The cosine transform goes on at the
    border by mirroring; with Fourier's the jump between opposite borders would look like detail.

    Args:
        latents: (B, C, H, W) or (B, C, T, H, W).
    """
    x = latents.double().cpu()
    rows, columns = (dct_matrix(n) for n in x.shape[-2:])
    power = (rows @ x @ columns.mT).square().flatten(1, -3).mean(1).flatten(1)
    height, width = x.shape[-2:]
    radius = torch.hypot(
        torch.arange(height)[:, None] / (2 * height), torch.arange(width)[None] / (2 * width)
    ).flatten()
    rings = min(height, width)
    ring = (2 * rings * radius).round().long()
    inside = (ring > 0) & (2 * rings * radius <= rings)
    ring, radius, power = ring[inside] - 1, radius[inside].double(), power[:, inside]
    counts = torch.bincount(ring)
    # A ring is as wide as its radius near the middle: it stands where a power of w^-2 has its mean.
    middle = torch.zeros(len(counts)).double().index_add_(0, ring, radius**-2) / counts
    means = torch.zeros(len(x), len(counts)).double().index_add_(1, ring, power) / counts
    return middle.rsqrt(), means


def fit_latents(latents: Tensor, vae: str = "", source: str = "") -> FittedLaw:
    """The power law of a set of latents, with its error by leaving out one picture at a time.

    Args:
        latents: (B, C, H, W) or (B, C, T, H, W) of any proportions, in the model's own units: as
            they are noised, not as the VAE gives them.
        vae, source: for the law.

    Raises:
        ValueError: if there are too few different pictures, they are too small, one is flat or
            broken, or their power is no falling power law.
    """
    _check_set(latents)
    frequencies, powers = picture_spectra(latents)
    _check_pictures(powers)
    law, misfit = _falling_law(frequencies, powers.mean(0))
    count, cells = len(powers), latents.shape[-2] * latents.shape[-1]
    rest = (powers.sum(0) - powers) / (count - 1)
    laws = [fit_power_law(frequencies, power) for power in rest]
    return FittedLaw(
        LatentLaw(_amplitude(law, cells), law.exponent, cells, vae, source),
        _jackknife([math.log(_amplitude(one, cells)) for one in laws]),
        _jackknife([one.exponent for one in laws]),
        _jackknife([math.log(one.frequency(1.0)) for one in laws]),
        misfit,
        count,
    )


def _check_set(latents: Tensor) -> None:
    if latents.ndim not in (4, 5):
        raise ValueError(
            f"A spectrum is taken of latents (B, C, H, W) or (B, C, T, H, W), not of "
            f"{tuple(latents.shape)}."
        )
    count, (height, width) = latents.shape[0], latents.shape[-2:]
    if count < LEAST_PICTURES:
        raise ValueError(
            f"{count} picture{'s' * (count != 1)} can't tell how far the spectrum is certain: give "
            f"at least {LEAST_PICTURES}, better 32, as different as what you make."
        )
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"Latents of {width}x{height} cells hold too few frequencies; give pictures of at "
            f"least {LEAST_SIDE} cells a side."
        )


def _check_pictures(powers: Tensor) -> None:
    """Of powers (B, F): none of a flat or broken picture, and enough different ones."""
    count, total = len(powers), powers.sum(1)
    for number, of_one in enumerate(powers, 1):
        sound = torch.isfinite(of_one).all() and (of_one > 1e-12).all()
        if not (sound and of_one.sum() >= FLAT * total.nanmedian()):
            raise ValueError(
                f"Picture {number} of {count} has no detail at some frequencies, or holds NaN: it "
                "is flat or broken. Take it out."
            )
    different = len(torch.unique(powers, dim=0))
    if different < LEAST_PICTURES:
        raise ValueError(
            f"Of the {count} pictures only {different} differ{'s' * (different == 1)} from the "
            f"rest: give at least {LEAST_PICTURES} different ones, better 32."
        )


def _falling_law(frequencies: Tensor, power: Tensor) -> tuple[PowerLaw, float]:
    """The law of powers (F,) at `frequencies`, and by what share it typically misses them."""
    law = fit_power_law(frequencies, power)
    if law.exponent <= 0:
        raise ValueError(
            f"The power of these latents does not fall with frequency (exponent "
            f"{law.exponent:.2f}): they are noise, or no clean latents."
        )
    fitted = torch.tensor([law.power(float(f)) for f in frequencies]).double()
    misfit = float((power / fitted).log().square().mean().sqrt().expm1())
    if misfit > MOST_MISFIT:
        raise ValueError(
            f"The power of these latents is no power law (misfit {misfit:.0%}, at most "
            f"{MOST_MISFIT:.0%}): pictures of one colour, or small ones on an empty ground, tell "
            "nothing of yours. Give pictures that are full of what you make."
        )
    return law, misfit


def _amplitude(law: PowerLaw, cells: int) -> float:
    """Of a law in cycles a cell, in cycles a picture of `cells`."""
    return law.amplitude * math.sqrt(cells) ** law.exponent


def _jackknife(left_out: list[float]) -> float:
    """Standard error of an estimate, from what it is without each of the pictures."""
    values = torch.tensor(left_out).double()
    return float(((len(left_out) - 1) * (values - values.mean()).square().mean()).sqrt())
