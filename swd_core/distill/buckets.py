"""Finished sizes of about one area and many aspect ratios, and pictures cut to them."""

import io
import math

import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..pictures import pixels_of
from ..schedule import ScaleSchedule

MOST_OBLONG = 2.0


def buckets(side: int, step: int, most_oblong: float = MOST_OBLONG) -> list[tuple[int, int]]:
    """(height, width) in pixels, multiples of `step`, of at most about side^2 pixels.

    Args:
        side: of the square one. most_oblong: longest side over shortest; 1 gives the square alone.
    """
    found = {(side, side)}
    width = side
    while most_oblong > 1:
        width += step
        height = round(side * side / width / step) * step
        if height < step or width / height > most_oblong:
            break
        found |= {(height, width), (width, height)}
    return sorted(found)


def nearest_bucket(width: int, height: int, choices: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest, on a log scale."""
    return min(choices, key=lambda c: abs(math.log(width / height * c[0] / c[1])))


def check_schedule(schedule: ScaleSchedule, side: int, factor: int, multiple: int) -> None:
    """Raises ValueError if the VAE's factor and the model's patch can't make these sizes."""
    cell = factor * multiple
    if side % cell:
        raise ValueError(
            f"size {side} is not a multiple of {cell} px (the VAE's factor {factor} times the "
            f"model's patch {multiple}). The nearest is {max(cell, round(side / cell) * cell)}."
        )
    small = schedule.sizes(side // factor, side // factor, multiple)[0]
    wanted = side * schedule.scales[0]
    if abs(small[0] * factor - wanted) > wanted / 4:
        raise ValueError(
            f"The schedule's first scale is {wanted:g} px of {side}, but the VAE's factor {factor} "
            f"and the patch {multiple} allow only {small[0] * factor} px. Train at a larger size."
        )


def cut(data: bytes, size: tuple[int, int]) -> Tensor:
    """A picture file covering `size` (height, width), cropped in the middle: (3, H, W) in [0, 1].

    Raises:
        OSError: if the picture is broken. ValueError: if it is far too large to decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode not in ("RGB", "L"):
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            fitted = ImageOps.fit(image.convert("RGB"), size[::-1], Image.Resampling.LANCZOS)
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error
    return pixels_of(fitted).permute(2, 0, 1)


def shrink(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, 3, H, W) at `size` (height, width): area averaging, as the paper does it.

    Ours gives the whole pictures for every size, as sampling meets them; the authors' code shrinks
    the smaller picture of a pair from the larger one, which blurs it.
    """
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size=size, mode="area")
