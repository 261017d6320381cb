"""Pictures of tensors and back, side by side and as an animation, and their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import written_whole

LIGHT_GREY = (224, 224, 224)
FRAME_MS, LAST_MS = 500, 1500


def in_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], of any shape, as uint8; what lies outside is cut off."""
    return pixels.clamp(0, 1).mul(255).round().byte()


def picture_of(pixels: Tensor) -> Image.Image:
    """A picture of pixels (H, W, 3) in [0, 1]; see `in_bytes`."""
    return Image.fromarray(in_bytes(pixels).cpu().numpy())


def pixels_of(picture: Image.Image) -> Tensor:
    """Pixels (H, W, 3) in [0, 1], float32, of a picture in RGB."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)


def strip_of(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """The pictures side by side at their own sizes, standing on one line, on light grey."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) + 1)
    height = max(p.height for p in pictures) + 2 * gap
    strip = Image.new("RGB", (width, height), LIGHT_GREY)
    x = gap
    for picture in pictures:
        strip.paste(picture, (x, height - gap - picture.height))
        x += picture.width + gap
    return strip


def frames_of(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Each picture at its own size in the middle of light grey as large as the last one."""
    frames = []
    for picture in pictures:
        frame = Image.new("RGB", pictures[-1].size, LIGHT_GREY)
        room = (frame.width - picture.width, frame.height - picture.height)
        frame.paste(picture, (room[0] // 2, room[1] // 2))
        frames.append(frame)
    return frames


def write_png(picture: Image.Image, path: Path, text: Mapping[str, str], overwrite: bool) -> None:
    """Writes a PNG with `text` in its metadata; see `written_whole`."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    with written_whole(path, overwrite) as file:
        picture.save(file, "PNG", pnginfo=info)


def write_animation(pictures: Sequence[Image.Image], path: Path, overwrite: bool) -> None:
    """Writes pictures that grow as an endless, lossless WebP; see `written_whole`."""
    frames = frames_of(pictures)
    shown = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    with written_whole(path, overwrite) as file:
        frames[0].save(
            file, "WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0,
            lossless=True,
        )  # fmt: skip
