"""The figures that scenes are made of, cut out of the Fluent emoji (MIT)."""

from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from .catalogue import PACKAGE, PROPS, SEATED, THINGS, Body

NECK = 0.38  # of the seated body's height; what lies above is the head it had


class Sprites(Protocol):
    """Figures by name, RGBA without an empty border."""

    def thing(self, name: str) -> Image.Image: ...

    def prop(self, name: str) -> Image.Image: ...


class FluentSprites:
    """Figures from the unpacked package.

    Raises:
        FileNotFoundError: if a picture is missing.
    """

    def __init__(self, assets: Path):
        self.assets = assets
        self._things: dict[str, Image.Image] = {}
        self._props: dict[str, Image.Image] = {}

    def thing(self, name: str) -> Image.Image:
        if name not in self._things:
            self._things[name] = self._made(name)
        return self._things[name]

    def prop(self, name: str) -> Image.Image:
        if name not in self._props:
            self._props[name] = self._read(PROPS[name])
        return self._props[name]

    def _read(self, code: str) -> Image.Image:
        path = self.assets / f"{code}.webp"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. Unpack the npm package {PACKAGE} and give its assets folder "
                "(`make data` does both)."
            )
        picture = Image.open(path).convert("RGBA")
        return picture.crop(picture.getbbox())

    def _made(self, name: str) -> Image.Image:
        thing = THINGS[name]
        picture = self._read(thing.code)
        if thing.body is not None:
            picture = seated(picture, self._seated, thing.body)
        return without_colour(picture, thing.grey) if thing.grey else picture

    @cached_property
    def _seated(self) -> Image.Image:
        return self._read(SEATED)


def recoloured(picture: Image.Image, dark: tuple, light: tuple) -> Image.Image:
    """The picture in the shades from `dark` to `light`."""
    pixels = np.asarray(picture).astype(np.float32)
    grey = pixels[..., :3] @ np.float32([0.3, 0.59, 0.11])
    low, high = np.quantile(grey[pixels[..., 3] > 200], [0.02, 0.98])
    part = np.clip((grey - low) / max(high - low, 1), 0, 1)[..., None]
    shades = np.float32(dark) * (1 - part) + np.float32(light) * part
    return Image.fromarray(np.dstack([shades, pixels[..., 3]]).astype(np.uint8))


def without_colour(picture: Image.Image, share: float) -> Image.Image:
    """The picture with a share of its colours gone."""
    pixels = np.asarray(picture).astype(np.float32)
    grey = (pixels[..., :3] @ np.float32([0.36, 0.6, 0.04]))[..., None]
    pixels[..., :3] = np.clip(pixels[..., :3] * (1 - share) + grey * share, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def seated(head: Image.Image, sitting: Image.Image, body: Body) -> Image.Image:
    """A head on the body of a sitting figure, in colours that fit."""
    below = recoloured(sitting, body.dark, body.light)
    room = round(below.height * 0.27)
    pixels = np.array(below)
    pixels[: round(below.height * NECK)] = 0
    width = round(below.width * body.head)
    head = head.resize((width, round(head.height * width / head.width)), Image.Resampling.LANCZOS)
    whole = Image.new("RGBA", (below.width, below.height + room))
    whole.alpha_composite(Image.fromarray(pixels), (0, room))
    whole.alpha_composite(head, ((below.width - width) // 2, round(body.drop * below.height)))
    return whole.crop(whole.getbbox())
