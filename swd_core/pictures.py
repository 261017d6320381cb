"""Pictures side by side, and PNG files that are written whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

LIGHT_GREY = (224, 224, 224)


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


def write_png(picture: Image.Image, path: Path, text: Mapping[str, str], overwrite: bool) -> None:
    """Writes a PNG with `text` in its metadata, aside first and then renamed.

    Raises:
        OSError: if it can't be written, or `path` exists and may not be replaced.
    """
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    aside = path.with_name(f".swd-{os.getpid()}.part")
    try:
        picture.save(aside, "PNG", pnginfo=info)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists by now; nothing was overwritten.")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
