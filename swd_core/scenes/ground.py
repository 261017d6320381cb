"""The ground that things stand on: texture in perspective, blades, tiles, ripples and water."""

import numpy as np
from PIL import Image, ImageDraw

from .noise import Array, below, colour, curve, field, lay, mix, sampled, smoothstep
from .sky import Sky

# Ground colours, far and near.
GROUNDS = {
    "meadow": ((150, 190, 96), (92, 176, 66)),
    "forest": ((86, 138, 82), (62, 118, 58)),
    "snow": ((206, 222, 242), (240, 246, 254)),
    "desert": ((226, 178, 116), (240, 200, 132)),
    "beach": ((240, 222, 176), (250, 226, 172)),
    "mountains": ((120, 150, 104), (104, 150, 92)),
    "lake": ((120, 160, 92), (84, 148, 76)),
    "town": ((176, 172, 178), (188, 180, 176)),
}
GRASSY = {"meadow": 1.0, "forest": 0.6, "mountains": 0.5, "lake": 1.0}
SOFT = {"snow": 1.0, "desert": 0.6, "beach": 0.6}


def shaded(rgb: Array, sky: Sky) -> Array:
    """A colour of the land in the light of the time."""
    return np.clip(rgb * np.float32(sky.light.land), 0, 255)


def perspective(size: int, top: float) -> tuple[Array, Array, Array]:
    """Rows v and columns u of the plane below row `top`, and how near each row (S, 1) is, 0..1."""
    rows = np.arange(size, dtype=np.float32)[:, None]
    near = np.clip((rows - top) / (size - top), 0, 1)
    away = 1 / (near * 0.9 + 0.1)
    u = (np.arange(size, dtype=np.float32)[None] - size / 2) * away * 0.6
    v = np.broadcast_to(away * 120, u.shape)
    return v, u, near


def paint_ground(
    image: Array, place: str, sky: Sky, top: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Paints the ground below about row `top`; returns its upper edge (S,) and its near colour."""
    size = image.shape[0]
    bumps = {"town": 0.0, "beach": 0.0, "desert": 0.03, "snow": 0.025}.get(place, 0.02)
    edge = top + curve(rng, size, 1.9) * size * bumps
    if place == "beach":
        slope = rng.uniform(-0.08, 0.08)
        edge = top + np.linspace(-slope, slope, size) * size + curve(rng, size, 2.0) * 0.02 * size
        edge = edge.astype(np.float32)
    far, close = (shaded(colour(c, rng, 5), sky) for c in GROUNDS[place])
    v, u, near = perspective(size, float(edge.min()))
    ground = mix(mix(sky.low, far, 1 - sky.light.haze * 0.55), close, near[..., None] ** 0.6)
    ground = np.broadcast_to(ground, image.shape).copy()
    u, v = u + rng.uniform(0, 512), v + rng.uniform(0, 512)
    if place == "town":
        pave(ground, v, u, near)
    else:
        strength = {"snow": 0.025, "beach": 0.02, "desert": 0.025}.get(place, 0.05)
        broad = sampled(field(int(rng.integers(4)), 1.7), v * 1.2, u * 1.2)
        fine = sampled(field(5, 1.3), v * 2, u * 2) * near
        ground *= (1 + strength * (broad + 0.6 * fine))[..., None]
        if place in ("desert", "beach"):
            ripples = np.sin(v * 0.4 + 2 * broad + u * 0.03)
            ground *= (1 + 0.03 * ripples * smoothstep(near, 0.25, 0.8))[..., None]
        if place == "snow":
            blue = smoothstep(broad, 0.2, 1.6)[..., None]
            ground = mix(ground, ground * np.float32((0.84, 0.91, 1.0)), blue)
    ground *= (1.03 - 0.16 * near**2)[..., None]
    lay(image, below(edge, size), np.clip(ground, 0, 255))
    if place in GRASSY:
        blades(image, edge, close, GRASSY[place], rng)
    if place in ("meadow", "lake"):
        flowers(image, edge, sky, rng)
    return edge, close


def pave(ground: Array, v: Array, u: Array, near: Array) -> None:
    """Stone slabs whose joints fade with the distance."""
    u, v = u / 40, v / 20
    joint = np.minimum(np.abs(u - np.round(u)) * 40, np.abs(v - np.round(v)) * 30) * near
    seen = smoothstep(near, 0.1, 0.6)
    shade = np.sin(np.floor(v + 0.5) * 12.9 + np.floor(u + 0.5) * 78.2) * 0.035
    ground *= (1 + (shade - 0.16 * (1 - smoothstep(joint, 0.3, 2.2))) * seen)[..., None]


def overlay(image: Array, drawn: Image.Image, row: int = 0, column: int = 0) -> None:
    """Lays an RGBA picture of twice the size onto an image (H, W, 3), smoothly."""
    half = drawn.resize((drawn.width // 2, drawn.height // 2), Image.Resampling.BOX)
    height, width = image.shape[:2]
    top, left = max(0, row), max(0, column)
    bottom, right = min(height, row + half.height), min(width, column + half.width)
    if bottom <= top or right <= left:
        return
    pixels = np.asarray(half).astype(np.float32)
    pixels = pixels[top - row : bottom - row, left - column : right - column]
    lay(image[top:bottom, left:right], pixels[..., 3] / 255, pixels[..., :3])


def blade(draw: ImageDraw.ImageDraw, x: float, y: float, length: float, lean: float, fill) -> None:
    wide = max(1.0, length * 0.13)
    draw.polygon([(x - wide, y), (x + wide, y), (x + lean * length, y - length)], fill=fill)


def blades(
    image: Array, edge: Array, close: Array, amount: float, rng: np.random.Generator
) -> None:
    """Tufts of grass all over the ground, larger to the front."""
    size = image.shape[0]
    drawn = Image.new("RGBA", (2 * size, 2 * size))
    draw = ImageDraw.Draw(drawn)
    for depth in np.sort(rng.random(int(40 * amount))):
        x = rng.uniform(0, size)
        y = edge[int(x)] + (size - edge[int(x)]) * (0.06 + 0.98 * depth**1.3)
        tone = close * rng.uniform(0.72, 1.22) * np.float32((1.02, 1.04, 0.9))
        fill = (*(int(c) for c in np.clip(tone, 0, 255)), 230)
        for lean in rng.uniform(-0.5, 0.5, 3):
            blade(
                draw,
                2 * x + lean * 5,
                2 * y,
                2 * (4 + 8 * depth) * rng.uniform(0.7, 1.2),
                lean,
                fill,
            )
    overlay(image, drawn)


BLOSSOMS = ((250, 250, 250), (255, 214, 70), (240, 110, 150), (170, 120, 230), (235, 80, 70))


def flowers(image: Array, edge: Array, sky: Sky, rng: np.random.Generator) -> None:
    """Small blossoms in one or two colours."""
    size = image.shape[0]
    drawn = Image.new("RGBA", (2 * size, 2 * size))
    draw = ImageDraw.Draw(drawn)
    kinds = rng.permutation(len(BLOSSOMS))[:2]
    for depth in np.sort(rng.random(int(rng.integers(6, 26)))):
        x = rng.uniform(0, size)
        y = edge[int(x)] + (size - edge[int(x)]) * (0.1 + 0.9 * depth**1.2)
        tone = colour(BLOSSOMS[int(rng.choice(kinds))]) * np.float32(sky.light.things)
        fill = tuple(int(c) for c in tone)
        r = 2.6 + 4.0 * depth
        for angle in np.arange(5) * 1.2566 + 0.3:
            cx, cy = 2 * x + r * np.cos(angle), 2 * y + 0.75 * r * np.sin(angle)
            draw.ellipse((cx - r * 0.75, cy - r * 0.6, cx + r * 0.75, cy + r * 0.6), fill=fill)
        heart = (255, 220, 90) if fill[2] > 150 else (120, 70, 40)
        draw.ellipse(
            (2 * x - r * 0.5, 2 * y - r * 0.4, 2 * x + r * 0.5, 2 * y + r * 0.4), fill=heart
        )
    overlay(image, drawn)


def paint_sea(
    image: Array, sky: Sky, horizon: float, shore: float, rng: np.random.Generator
) -> None:
    """The sea from the horizon to past the shore (rows), with waves and the light's path."""
    size = image.shape[0]
    deep, shallow = colour((34, 110, 184), rng), colour((86, 200, 204), rng)
    rows = np.arange(size, dtype=np.float32)[:, None]
    part = np.clip((rows - horizon) / max(shore - horizon, 1), 0, 1)
    water = mix(shaded(deep, sky), shaded(shallow, sky), smoothstep(part, 0.25, 1.0)[..., None])
    water = mix(water, sky.low, 0.45 * (1 - part[..., None]) ** 2 + 0.08)
    u = np.arange(size, dtype=np.float32)[None]
    away = 1 / (part * 0.9 + 0.1)
    waves = sampled(
        field(int(rng.integers(4)), 1.5), np.broadcast_to(away * 110, (size, size)), u * away * 0.35
    )
    water = water + (9 * waves * (0.4 + part))[..., None] * np.float32((1, 1.1, 1.1))
    path = np.exp(-(((u / size - sky.x) / (0.05 + 0.1 * part)) ** 2))
    glitter = smoothstep(waves, 0.1, 1.2) * path * (0.75 if sky.visible else 0.3)
    water = mix(water, colour(sky.light.beam), glitter[..., None])
    lay(
        image,
        np.broadcast_to(np.clip(rows - horizon + 0.5, 0, 1), (size, size)),
        np.clip(water, 0, 255),
    )


def paint_surf(image: Array, edge: Array, sky: Sky, rng: np.random.Generator) -> None:
    """Foam and wet sand along the shore (S,)."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None]
    offset = rows - edge[None]
    wet = smoothstep(offset, -1, 2) * (1 - smoothstep(offset, 4, 13))
    image *= (1 - 0.2 * wet)[..., None]
    foam = shaded(colour((252, 254, 255)), sky)
    ragged = sampled(field(6, 0.9), rows * 2 + np.zeros((1, size)), np.arange(size)[None] * 2.0)
    for shift, width, strength in ((0, 2.2, 0.95), (-6.5, 1.2, 0.5), (-13, 0.8, 0.3)):
        line = np.exp(-(((offset - shift - 1.2 * curve(rng, size, 1.6) * 2 - ragged) / width) ** 2))
        lay(image, strength * line, foam)


def reflect(image: Array, shore: float, sky: Sky, rng: np.random.Generator) -> None:
    """Still water below row `shore` that mirrors what is above it."""
    size, first = image.shape[0], int(shore)
    depth = size - first
    rows = np.arange(depth, dtype=np.float32)[:, None]
    ripple = sampled(
        field(int(rng.integers(4)), 1.4),
        9000 / (rows + 20) + np.zeros((1, size)),
        np.arange(size, dtype=np.float32)[None] * 0.6 + rng.uniform(0, 512),
    )
    source = np.clip(first - 1 - rows * 1.1 + ripple * (0.6 + rows * 0.05), 0, first - 1)
    mirrored = image[source.astype(int), np.arange(size)[None]]
    tint = shaded(colour((70, 130, 170), rng), sky)
    part = np.clip(0.18 + 0.3 * rows / depth, 0, 0.45)[..., None]
    water = mix(mirrored, tint, part) + 6 * ripple[..., None] * (0.3 + rows[..., None] / depth)
    image[first:] = np.clip(water, 0, 255)
    image[first] = mix(image[first], sky.low, 0.5)
