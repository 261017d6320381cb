"""From one size to the next: what a sampler holds is lifted onto a larger grid.

All lifts have one form, `lift(x_t, x0, sigma, size, noise, ...) -> (x_t, sigma)`:

    x_t: what the solver holds at noise level `sigma`, (B, C, h, w) or (B, C, T, h, w).
    x0: the model's last clean prediction, of the same shape.
    size: the new (height, width), or (frames, height, width) of a video.
    noise: standard normal, (B, C, ..., *size); who draws it decides what it depends on.

They give back x_t of the new size, in its own number format, and the noise level it has there.
Which of them looks at x_t and which at x0 is what sets them apart.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import resample
from .process import Levels, Process

LIFTS = ("swd", "spectral", "pixels")


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II (n, n), float64: row k is the wave of k half periods."""
    wave = torch.arange(n)[:, None] * (2 * torch.arange(n) + 1)
    # Exact for any n: the whole turns are taken off while the numbers are whole.
    matrix = torch.cos(torch.pi / (2 * n) * (wave % (4 * n)).double()) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix


@lru_cache(maxsize=32)
def _between(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(new, old): the values on `new` cells with the DCT coefficients that both numbers have."""
    both = min(old, new)
    with torch.inference_mode(False):  # it outlives the run that it is made in
        return (dct_matrix(new)[:both].T @ dct_matrix(old)[:both]).to(device, dtype)


def regrid(x: Tensor, size: Sequence[int]) -> Tensor:
    """x on another grid, every orthonormal DCT-II coefficient that both grids have unchanged.

    White noise stays white noise of its variance: all of the smaller grid, or the low frequencies
    of the larger one. A picture is enlarged or shrunk exactly, but for its amplitude, which is
    1 / `size_ratio` of what it is at the new size. Two matrix products on x's own device.

    Args:
        x: (B, C, h, w) or (B, C, T, h, w). size: (height, width), or (frames, height, width) with
            the frames that x has.

    Returns:
        float32 (float64 where x is); x itself where its size is that already.

    Raises:
        ValueError: for another number of dimensions or frames.
    """
    frames, kept = tuple(x.shape[2:-2]), tuple(size[:-2])
    if x.ndim not in (4, 5) or len(size) < 2 or kept not in ((), frames):
        raise ValueError(
            f"Latents are (B, C, H, W) or (B, C, T, H, W), and frames stay; {tuple(x.shape)} can't "
            f"be brought to {tuple(size)}."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    (height, width), (rows, columns) = x.shape[-2:], size[-2:]
    if rows != height:
        x = _between(height, rows, x.device, x.dtype) @ x
    if columns != width:
        x = x @ _between(width, columns, x.device, x.dtype).mT
    return x


def size_ratio(old: Sequence[int], new: Sequence[int]) -> float:
    """By how much a grid's side grows: the root of the ratio of cells, where the axes differ.

    Args:
        old, new: (..., height, width) in cells.

    Example:
        >>> size_ratio((64, 64), (128, 128))
        2.0
    """
    return math.sqrt(math.prod(new[-2:]) / math.prod(old[-2:]))


def lift_swd(
    x_t: Tensor | None,
    x0: Tensor,
    sigma: float,
    size: Sequence[int],
    noise: Tensor,
    *,
    process: Process,
    upscale: Callable[[Tensor, Sequence[int]], Tensor] = resample.upscale,
) -> tuple[Tensor, float]:
    """The student's: x0 enlarged, then noised afresh (arXiv 2503.16397, algorithm 1)."""
    return process.add_noise(upscale(x0, size), noise, sigma), sigma


def lift_spectral(
    x_t: Tensor,
    x0: Tensor | None,
    sigma: float,
    size: Sequence[int],
    noise: Tensor,
    *,
    levels: Levels,
) -> tuple[Tensor, float]:
    """x_t itself goes on; only what the small grid couldn't hold is new noise.

    The low frequencies of the noise are replaced by those of x_t, so that all noise in the result
    is white and of one level. That level is higher than `sigma`, by `Levels.gain`: the larger grid
    holds more of the picture in each frequency, and as much noise as before.

    Equations 5 and 6 of arXiv 2605.18736 for flow matching, by the real number of cells; for
    variance exploding x_t and sigma both grow by the ratio of the sides.
    """
    if any(new < old for old, new in zip(x_t.shape[-2:], size[-2:], strict=True)):
        raise ValueError(f"{tuple(x_t.shape[-2:])} can't be lifted to the smaller {tuple(size)}.")
    if len(size) == 3 and size[0] != x_t.shape[2]:
        raise ValueError(
            f"A spectral lift keeps the frames: the video has {x_t.shape[2]}, the next size "
            f"{size[0]}. Let it grow in height and width alone, or use another lift."
        )
    gain = levels.gain(sigma, size_ratio(x_t.shape, size))
    fresh = levels.noise_scale * sigma * noise.to(torch.promote_types(x_t.dtype, torch.float32))
    lifted = fresh + regrid(x_t - regrid(fresh, x_t.shape[-2:]), size)
    return (gain * lifted).to(x_t.dtype), gain * sigma


def lift_pixels(
    x_t: Tensor | None,
    x0: Tensor,
    sigma: float,
    size: Sequence[int],
    noise: Tensor,
    *,
    process: Process,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    share: float = 0.4,
    weights: tuple[float, float] = (0.5, 1.0),
    mask: Tensor | None = None,
    method: str = "lanczos",
) -> tuple[Tensor, float]:
    """x0 enlarged through its picture where that matters most, then noised afresh.

    A latent enlarged cell by cell is sharp, but no latent that the autoencoder would give; one that
    went through pixels is, but softer. Where the two differ most, the second is taken.

    SelfLift "zero" (arXiv 2609.02036, equations 4 to 10).

    Args:
        decode, encode: between latents as x0 is and pictures (..., height, width).
        share: of a picture's places (of a video's, all frames together), 0..1.
        weights: of the way through pixels, at the least and the most different of those places.
        mask: 1 where the picture is made anew, (B or 1, 1, ..., *size); other places are neither
            chosen nor counted.
        method: how pictures are enlarged, one of `resample.METHODS`.

    Raises:
        ValueError: if share or weights are outside 0..1, or the encoder gives another size.
    """
    low, high = weights
    if not (0 <= share <= 1 and 0 <= low <= high <= 1):
        raise ValueError(
            f"share {share:g} and weights {low:g} to {high:g} must be in 0..1, the weights rising."
        )
    sharp = resample.resize(x0, size, "nearest-exact")
    picture = decode(x0)
    pixels = [
        round(side * new / old)
        for side, old, new in zip(picture.shape[-2:], x0.shape[-2:], size[-2:], strict=True)
    ]
    likely = encode(resample.resize(picture, pixels, method)).to(sharp)
    if likely.shape != sharp.shape:
        raise ValueError(
            f"The VAE made {tuple(likely.shape)} of a picture of {pixels[1]}x{pixels[0]} pixels, "
            f"where the model works on {tuple(sharp.shape)}: connect the VAE of this model."
        )
    weight = _most_different(likely - sharp, share, weights, mask)
    return process.add_noise(torch.lerp(sharp, likely, weight), noise, sigma), sigma


def _most_different(
    difference: Tensor, share: float, weights: tuple[float, float], mask: Tensor | None
) -> Tensor:
    """Weights (B, 1, ..., H, W): 0, but `weights` from least to most at the largest `share`."""
    score = difference.abs().mean(1, keepdim=True)
    inside = torch.ones_like(score, dtype=torch.bool) if mask is None else mask > 0
    inside = inside.expand_as(score).flatten(1)
    flat = torch.where(inside, score.flatten(1), -1)
    count = (share * inside.sum(1, keepdim=True)).round().long()
    ranked = flat.sort(1, descending=True).values
    chosen = inside & (flat >= ranked.gather(1, (count - 1).clamp(min=0))) & (count > 0)
    least = torch.where(chosen, flat, torch.inf).amin(1, keepdim=True)
    rise = (flat - least) / (ranked[:, :1] - least).clamp(min=torch.finfo(flat.dtype).tiny)
    low, high = weights
    return torch.where(chosen, low + (high - low) * rise, 0).view_as(score)
