"""Figures in a landscape: their light, their shadow and how they touch the ground."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .ground import GRASSY, SOFT, blade, overlay
from .noise import Array, colour, lay, mix
from .sky import Sky


@dataclass(frozen=True)
class Figure:
    """A sprite at its place.

    Args:
        x: its middle, foot: its lowest row, size: its longer side, all in pixels. nearness: 0 is at
            the horizon, 1 in front. lifted: rows above the ground below it.
    """

    sprite: Image.Image
    x: float
    foot: float
    size: float
    nearness: float
    lifted: float = 0.0

    @property
    def width(self) -> int:
        return max(2, round(self.sprite.width * self.size / max(self.sprite.size)))

    @property
    def height(self) -> int:
        return max(2, round(self.sprite.height * self.size / max(self.sprite.size)))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom in pixels."""
        left = self.x - self.width / 2
        return left, self.foot - self.height, left + self.width, self.foot


def blurred(mask: Array, radius: float) -> Array:
    """A mask (H, W) in 0..1, blurred."""
    picture = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))).astype(np.float32) / 255


def window(image: Array, row: int, column: int, height: int, width: int):
    """The slices of an image and of a patch at (row, column) where both are."""
    top, left = max(0, row), max(0, column)
    bottom, right = min(image.shape[0], row + height), min(image.shape[1], column + width)
    inside = np.s_[top : max(top, bottom), left : max(left, right)]
    return inside, np.s_[
        top - row : max(top, bottom) - row, left - column : max(left, right) - column
    ]


def lit(rgb: Array, alpha: Array, figure: Figure, sky: Sky, close: Array, side: int) -> Array:
    """Colours (H, W, 3) of a figure in the light of the sky."""
    height, width = alpha.shape
    padded = np.pad(alpha, 8)
    body = blurred(padded, 0.09 * max(height, width))[8:-8, 8:-8]
    rim = blurred(padded, max(1.0, 0.018 * max(height, width)))[8:-8, 8:-8]
    gy, gx = np.gradient(body)
    length = np.hypot(gx, gy) + 1e-3
    toward_x = np.clip((sky.x * side - figure.x) / (0.35 * side), -1, 1)
    toward_y = -1.0 if sky.y * side < figure.foot - 0.7 * height else -0.35
    norm = np.hypot(toward_x, toward_y)
    facing = -(gx * toward_x + gy * toward_y) / (length * norm)  # 1 where a side faces the light
    strength = np.clip(length * 0.06 * max(height, width), 0, 1)
    rgb = rgb * np.float32(sky.light.things)
    rgb = rgb * (1 + 0.16 * facing * strength * (1 + sky.light.edge))[..., None]
    edge = np.clip((1 - rim) * 1.9, 0, 1) * np.clip(facing, 0, 1) ** 1.5 * sky.light.edge
    rgb = mix(rgb, np.maximum(rgb, colour(sky.light.beam)), edge[..., None])
    if figure.lifted == 0:
        low = np.clip((np.arange(height, dtype=np.float32) / height - 0.72) / 0.28, 0, 1)[:, None]
        rgb = mix(
            rgb, rgb * (0.45 + 0.55 * close / max(float(close.max()), 1)), 0.5 * low[..., None]
        )
    haze = sky.light.haze * 0.55 * (1 - figure.nearness) ** 1.5
    return np.clip(mix(rgb, sky.low, haze), 0, 255)


def cast(image: Array, alpha: Array, figure: Figure, sky: Sky) -> None:
    """The shadow on the ground: a soft one away from the light and a dark one at the feet."""
    side = image.shape[0]
    height, width = alpha.shape
    low = sky.y > 0.3 and sky.visible
    lean = np.clip((figure.x - sky.x * side) / side, -0.7, 0.7) * (1.5 if low else 0.9)
    flat = round(height * (0.42 if low else 0.26))
    pad = round(height * 0.7) + 8
    small = (
        np.asarray(
            Image.fromarray((alpha * 255).astype(np.uint8)).resize(
                (width, max(2, flat)), Image.Resampling.BOX
            )
        ).astype(np.float32)
        / 255
    )
    small = small[::-1] if low else small  # before it if the light is behind it, else behind it
    canvas = np.zeros((flat + 16, width + 2 * pad), np.float32)
    for i in range(small.shape[0]):
        away = i if low else small.shape[0] - 1 - i
        shift = pad + int(lean * away * 1.6)
        fade = 1 - 0.75 * away / small.shape[0]
        canvas[i + 8, shift : shift + width] = small[i] * fade
    canvas = blurred(canvas, max(1.0, 0.018 * height))
    row = round(figure.foot - 0.03 * height) - 8 - (0 if low else flat - round(0.05 * height))
    inside, part = window(image, row, round(figure.x - width / 2) - pad, *canvas.shape)
    image[inside] *= 1 - sky.light.shadow * canvas[part][..., None] * np.float32((1, 0.95, 0.85))
    feet = alpha[-max(2, round(0.06 * height)) :].max(0)
    tall = max(3, round(0.05 * height))
    contact = np.zeros((4 * tall, width + 4 * tall), np.float32)
    contact[2 * tall - tall // 2 : 2 * tall + tall // 2 + 1, 2 * tall : 2 * tall + width] = feet
    contact = blurred(contact, 0.55 * tall)
    row, column = round(figure.foot) - 2 * tall - 1, round(figure.x - width / 2) - 2 * tall
    inside, part = window(image, row, column, *contact.shape)
    dark = min(0.75, sky.light.shadow * 1.3 + 0.12)
    image[inside] *= 1 - dark * contact[part][..., None] * np.float32((1, 0.96, 0.88))


def trodden(image: Array, figure: Figure, close: Array) -> Array:
    """The ground's colour (3,) beside a figure's feet."""
    side, (left, _, right, foot) = image.shape[0], figure.box
    rows = image[min(side - 3, max(0, round(foot) - 2)) :][:5]
    beside = [rows[:, max(0, round(x)) : min(side, round(x) + 5)] for x in (left - 9, right + 4)]
    seen = [part.reshape(-1, 3) for part in beside if part.size]
    return mix(np.concatenate(seen).mean(0), close, 0.25) if seen else close


def settle(
    image: Array, alpha: Array, figure: Figure, place: str, close: Array, rng: np.random.Generator
) -> None:
    """Grass, snow or sand over the lowest part of a figure that stands in it."""
    height, width = alpha.shape
    feet = np.flatnonzero(alpha[-max(2, round(0.05 * height)) :].max(0) > 0.5)
    if not feet.size:
        return
    left, top = round(figure.x - width / 2), round(figure.foot)
    close = trodden(image, figure, close)
    tall = max(4, round(0.11 * height))
    drawn = Image.new("RGBA", (2 * width + 8 * tall, 4 * tall))
    draw = ImageDraw.Draw(drawn)
    line = 2.35 * tall

    def fill(low: float, high: float, opacity: int = 255) -> tuple[int, ...]:
        return (*(int(c) for c in np.clip(close * rng.uniform(low, high), 0, 255)), opacity)

    if place in GRASSY:
        for x in rng.choice(feet, int(6 + 30 * GRASSY[place] * feet.size / width)):
            root = 4 * tall + 2 * x + rng.uniform(-3, 3)
            long = tall * rng.uniform(0.5, 1.25)
            blade(draw, root, line, long, rng.uniform(-0.6, 0.6), fill(0.72, 1.12))
    elif place in SOFT:
        deep = SOFT[place] * 0.55 * tall
        for x in rng.choice(feet, 14):
            root, wide = 4 * tall + 2 * x, tall * rng.uniform(0.7, 1.5)
            high = deep * rng.uniform(0.5, 1.0)
            draw.ellipse(
                (root - wide, line - high, root + wide, line + high * 0.4), fill=fill(0.96, 1.0)
            )
        drawn = drawn.filter(ImageFilter.GaussianBlur(max(1.0, 0.2 * tall)))
    overlay(image, drawn, top - tall, left - 2 * tall)


def put(
    image: Array, figure: Figure, place: str, sky: Sky, close: Array, rng: np.random.Generator
) -> None:
    """Draws a figure with its light, shadow and footing on an image (S, S, 3), in place."""
    picture = figure.sprite.resize((figure.width, figure.height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture).astype(np.float32)
    alpha = pixels[..., 3] / 255
    if figure.lifted == 0:
        cast(image, alpha, figure, sky)
    left, top, _, _ = figure.box
    inside, part = window(image, round(top), round(left), *alpha.shape)
    shades = lit(pixels[..., :3], alpha, figure, sky, close, image.shape[0])
    lay(image[inside], alpha[part], shades[part])
    if figure.lifted == 0:
        settle(image, alpha, figure, place, close, rng)
