"""What stands in the distance: hills, peaks, dunes, rows of firs, roofs."""

import numpy as np
from PIL import Image, ImageDraw

from .ground import overlay, shaded
from .noise import Array, below, colour, curve, field, lay, mix, sampled, smoothstep
from .sky import Sky


def hazed(rgb: Array, sky: Sky, nearness: float) -> Array:
    """A colour of the land at a distance: 0 is lost in haze, 1 is here."""
    return mix(sky.low, shaded(rgb, sky), 1 - sky.light.haze * (1 - nearness))


def hills(
    image: Array, sky: Sky, horizon: float, rgb, heights, rng: np.random.Generator, smooth=1.9
) -> None:
    """Layers of hills, the first the farthest; `heights` in parts of the picture."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None]
    for i, height in enumerate(heights):
        nearness = i / len(heights)
        line = horizon - size * height * (0.55 + 0.45 * curve(rng, size, smooth))
        face = hazed(colour(rgb, rng, 7), sky, nearness)
        down = np.clip((rows - line[None]) / (0.2 * size), 0, 1)[..., None]
        slope = np.gradient(line)[None, :, None] * (0.5 - sky.x) * 30
        lit = face * (1.06 - 0.12 * down) + np.clip(slope, -14, 14)
        lay(
            image,
            below(line, size),
            np.clip(mix(lit, sky.low, 0.25 * down * (1 - nearness)), 0, 255),
        )


def peaks(image: Array, sky: Sky, horizon: float, rng: np.random.Generator) -> None:
    """Two ranges of rock with snow on them."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None]
    columns = np.arange(size, dtype=np.float32)[None]
    for height, nearness in ((0.34, 0.15), (0.22, 0.5)):
        tent = np.zeros(size, np.float32)
        for x in (np.arange(5) + rng.uniform(-0.4, 0.4, 5)) / 4:
            slope = rng.uniform(2.2, 3.4) / (height * 5)
            tent = np.maximum(tent, rng.uniform(0.55, 1.0) - np.abs(columns[0] / size - x) * slope)
        line = horizon - size * height * (tent + 0.06 * curve(rng, size, 1.2)) - 2
        rough = sampled(field(int(rng.integers(4)), 1.35), rows * 0.9 + 0 * columns, columns * 1.2)
        depth = rows - line[None]
        across = np.clip(columns + rough * 4 + depth * rng.choice((-0.3, 0.3)), 0, size - 1)
        broad = np.convolve(np.pad(np.gradient(line), 2, "edge"), np.full(5, 0.2), "valid")
        slope = broad[across.astype(int)] * (1 if sky.x > 0.5 else -1)
        lit = smoothstep(slope + 0.15 * rough, -0.35, 0.35)[..., None]
        rock = colour((118, 118, 142), rng)
        face = mix(hazed(rock * 0.62, sky, nearness), hazed(rock * 1.12, sky, nearness), lit)
        white = mix(
            hazed(colour((168, 186, 224)), sky, nearness),
            hazed(colour((252, 253, 255)), sky, nearness),
            lit,
        )
        low = (rows - horizon) / (height * size) + 0.1 * rough
        snow = 1 - smoothstep(low, -0.62, -0.42)
        foot = smoothstep(depth, 0.3 * height * size, 1.1 * height * size)[..., None]
        face = mix(mix(face, white, snow[..., None]), sky.low, 0.45 * foot * sky.light.haze)
        lay(image, below(line, size), face)


def firs(
    image: Array,
    sky: Sky,
    base: Array,
    height: float,
    nearness: float,
    rgb,
    rng: np.random.Generator,
) -> None:
    """A row of firs along a line of rows (S,), mean height in parts of the picture."""
    size = image.shape[0]
    x = np.arange(size, dtype=np.float32)[None]
    count = int(rng.uniform(0.8, 1.4) / max(height, 0.05)) + 3
    centre = rng.uniform(-0.03, 1.03, count)[:, None] * size
    tall = height * size * rng.uniform(0.6, 1.25, count)[:, None]
    across = np.abs(x - centre) / (tall * rng.uniform(0.24, 0.34, count)[:, None])
    tiers = 0.09 * np.abs((across * 4) % 1.0 - 0.4)
    tops = (tall * np.clip(1 - across + tiers * (across > 0.08), -1, 1)).max(0)
    line = base - np.maximum(tops, 0.08 * height * size)
    rows = np.arange(size, dtype=np.float32)[:, None]
    face = hazed(colour(rgb, rng, 6), sky, nearness)
    down = np.clip((rows - line[None]) / (height * size), 0, 1)[..., None]
    lay(image, below(line, size), mix(face, face * 0.82, down))


def forest(image: Array, sky: Sky, horizon: float, rng: np.random.Generator) -> None:
    """Rows of firs, one behind the other, with mist between them."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None]
    for i, (height, nearness) in enumerate(((0.30, 0.2), (0.26, 0.5), (0.2, 0.85))):
        base = np.full(size, horizon + (i - 1) * 0.03 * size, np.float32)
        firs(image, sky, base, height * rng.uniform(0.8, 1.2), nearness, (44, 104, 70), rng)
        mist = smoothstep(rows, horizon - 0.16 * size, horizon + 0.04 * size)
        lay(image, np.broadcast_to(mist * (0.3 - 0.12 * i), (size, size)), sky.low)


def dunes(image: Array, sky: Sky, horizon: float, rng: np.random.Generator) -> None:
    """Table mountains far off and dunes with a lit and a dark side."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None]
    mesa = np.clip(curve(rng, size, 1.3) * 3, 0, 1) * rng.uniform(0.06, 0.15)
    line = horizon - size * (mesa + 0.01)
    strata = np.sin(rows * 0.55 + curve(rng, size, 1.5)[None] * 2)[..., None]
    lay(
        image,
        below(line, size),
        hazed(colour((206, 122, 84), rng), sky, 0.45) * (1 + 0.05 * strata),
    )
    for height, nearness in ((0.10, 0.4), (0.07, 0.65), (0.04, 0.85)):
        ridge = curve(rng, size, 1.7)
        line = horizon - size * height * (0.3 + 0.7 * ridge) + nearness * 0.03 * size
        crest = int(np.argmin(line)) + (rows - line.min()) * rng.uniform(0.3, 0.9)
        dark = smoothstep(np.arange(size)[None] - crest, -2, 3)
        dark = dark if sky.x < 0.5 else 1 - dark
        sand = colour((234, 186, 116), rng, 5)
        face = mix(
            hazed(sand, sky, nearness), hazed(sand * 0.78, sky, nearness), 0.8 * dark[..., None]
        )
        lay(image, below(line, size), face)


WALLS = (
    (222, 170, 130),
    (206, 130, 110),
    (232, 206, 150),
    (170, 180, 190),
    (196, 150, 160),
    (150, 170, 150),
)
ROOFS = ((150, 70, 60), (110, 80, 90), (90, 90, 110))


def houses(image: Array, sky: Sky, horizon: float, time: str, rng: np.random.Generator) -> None:
    """A skyline in the haze and a row of houses before it, lit windows by night."""
    size = image.shape[0]
    drawn = Image.new("RGBA", (2 * size, 2 * size))
    draw = ImageDraw.Draw(drawn)
    foot = int(2 * horizon) + 4

    def fill(rgb) -> tuple[int, ...]:
        return (*(int(c) for c in np.clip(rgb, 0, 255)), 255)

    x = -20.0
    while x < 2 * size:
        wide, tall = rng.uniform(36, 72), rng.uniform(0.16, 0.42) * 2 * size
        face = hazed(colour((120, 130, 156), rng), sky, 0.25)
        draw.rectangle((x, foot - tall, x + wide, foot), fill=fill(face))
        lamps = {"night": 0.35, "sunset": 0.2}.get(time, 0.0)
        for i in range(int((wide - 4) // 16)):
            for j in range(int(tall // 24)):
                lit = rng.random() < lamps
                pane = (
                    np.float32((250, 214, 140)) if lit else face * (0.9 if time != "night" else 0.8)
                )
                left, top = x + 6 + 16 * i, foot - tall + 8 + 24 * j
                draw.rectangle((left, top, left + 8, top + 12), fill=fill(pane))
        x += wide + rng.uniform(-6, 14)
    x = rng.uniform(-40, 0)
    while x < 2 * size:
        wide, tall = rng.uniform(52, 92), rng.uniform(0.11, 0.2) * 2 * size
        wall = hazed(colour(WALLS[int(rng.integers(len(WALLS)))], rng, 5), sky, 0.85)
        roof = hazed(colour(ROOFS[int(rng.integers(len(ROOFS)))], rng, 5), sky, 0.85)
        draw.rectangle((x, foot - tall, x + wide, foot), fill=fill(wall))
        peak = rng.uniform(0.3, 0.55) * wide
        draw.polygon(
            [(x - 4, foot - tall), (x + wide + 4, foot - tall), (x + wide / 2, foot - tall - peak)],
            fill=fill(roof),
        )
        for i in range(int(wide // 24)):
            for j in range(int(tall // 34)):
                lit = rng.random() < {"night": 0.75, "sunset": 0.5}.get(time, 0.0)
                pane = np.float32((255, 216, 130)) if lit else shaded(colour((96, 120, 150)), sky)
                left, top = x + 9 + 24 * i, foot - tall + 9 + 30 * j
                draw.rectangle(
                    (left, top, left + 10, top + 14), fill=fill(pane), outline=fill(wall * 0.7)
                )
        x += wide + rng.uniform(0, 16)
    overlay(image, drawn)
