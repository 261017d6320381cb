"""Skies: gradients, clouds, sun, moon and stars, and the light that they give."""

from dataclasses import dataclass

import numpy as np

from .noise import Array, around, colour, field, lay, mix, sampled, smoothstep

# From the zenith to the horizon, several for each time.
SKIES = {
    "day": (
        ((46, 120, 218), (120, 186, 246), (206, 232, 250)),
        ((64, 146, 232), (142, 204, 246), (226, 240, 244)),
        ((30, 138, 200), (112, 202, 226), (212, 242, 236)),
    ),
    "sunset": (
        ((72, 52, 124), (222, 96, 112), (255, 190, 108)),
        ((54, 60, 134), (196, 100, 150), (255, 168, 118)),
        ((112, 50, 92), (240, 108, 80), (255, 208, 122)),
    ),
    "night": (
        ((7, 10, 36), (18, 28, 78), (46, 66, 124)),
        ((14, 10, 42), (36, 28, 90), (82, 64, 134)),
        ((5, 20, 42), (12, 46, 82), (36, 92, 112)),
    ),
    "dawn": (
        ((140, 168, 212), (204, 204, 226), (250, 220, 212)),
        ((146, 184, 196), (208, 222, 216), (250, 234, 200)),
        ((158, 152, 204), (222, 198, 220), (252, 222, 208)),
    ),
}


@dataclass(frozen=True)
class Light:
    """What a time of day does to everything below the sky.

    Args:
        land, things: factors on their colours. beam: colour of the light's edge on things, and how
            strong it is. haze: how fast the distance fades. shadow: how dark shadows are.
    """

    land: tuple[float, float, float]
    things: tuple[float, float, float]
    beam: tuple[int, int, int]
    edge: float
    haze: float
    shadow: float


LIGHTS = {
    "day": Light((1, 1, 1), (1, 1, 1), (255, 250, 225), 0.25, 0.4, 0.42),
    "sunset": Light((1.0, 0.76, 0.66), (1.0, 0.86, 0.78), (255, 190, 120), 0.65, 0.5, 0.5),
    "night": Light((0.38, 0.45, 0.82), (0.66, 0.72, 0.95), (190, 214, 255), 0.75, 0.45, 0.45),
    "dawn": Light((0.84, 0.86, 0.92), (0.97, 0.94, 0.94), (255, 236, 214), 0.35, 0.9, 0.22),
}


@dataclass(frozen=True)
class Sky:
    """One picture's sky: its colours (3,), where its light stands and whether that is seen."""

    zenith: Array
    middle: Array
    low: Array
    light: Light
    x: float
    y: float
    visible: bool


def draw_sky(rng: np.random.Generator, time: str, horizon: float) -> Sky:
    """Chooses a sky above a horizon (row in 0..1 of the picture)."""
    zenith, middle, low = (
        colour(c, rng, 6) for c in SKIES[time][int(rng.integers(len(SKIES[time])))]
    )
    x = rng.uniform(0.08, 0.92)
    height = {"day": (0.6, 0.92), "sunset": (-0.02, 0.3), "night": (0.5, 0.9), "dawn": (0.1, 0.5)}
    y = horizon * (1 - rng.uniform(*height[time]))
    seen = {"day": 0.4, "sunset": 0.8, "night": 0.75, "dawn": 0.7}[time]
    return Sky(zenith, middle, low, LIGHTS[time], x, y, bool(rng.random() < seen))


def paint_sky(image: Array, sky: Sky, time: str, horizon: float, rng: np.random.Generator) -> None:
    """Fills an image (S, S, 3), 0..255, with a sky down to somewhat below its horizon."""
    size = image.shape[0]
    rows = np.arange(size, dtype=np.float32)[:, None] / (horizon * size)
    part = np.clip(rows, 0, 1)[..., None]
    gradient = mix(sky.zenith, sky.middle, smoothstep(part, 0.0, 0.62))
    image[:] = mix(gradient, sky.low, smoothstep(part, 0.5, 1.02))
    if time == "night":
        paint_stars(image, horizon, rng)
    paint_disc(image, sky, time, rng)
    paint_clouds(image, sky, time, horizon, rng)


def distance(size: int, x: float, y: float) -> Array:
    """How far every pixel (S, S) is from a point in 0..1, in parts of the side."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.hypot(axis[None] - x, axis[:, None] - y)


def paint_disc(image: Array, sky: Sky, time: str, rng: np.random.Generator) -> None:
    """The sun or moon with its glow; the glow alone where it is not to be seen."""
    size, far = image.shape[0], distance(image.shape[0], sky.x, sky.y)
    glow = {"day": 0.35, "sunset": 0.75, "night": 0.3, "dawn": 0.7}[time]
    reach = {"day": 0.12, "sunset": 0.22, "night": 0.10, "dawn": 0.24}[time]
    if not sky.visible:
        glow *= 0.5
    beam = colour(sky.light.beam)
    lay(image, glow * np.exp(-far / reach) * 0.9, beam)
    if not sky.visible:
        return
    radius = rng.uniform(0.035, 0.07)
    disc = {"day": (255, 250, 220), "sunset": (255, 232, 170), "night": (240, 243, 252)}
    mask = np.clip((radius - far) * size + 0.5, 0, 1)
    if time == "dawn":
        mask = mask * 0.8
    lay(image, mask, colour(disc.get(time, (255, 250, 236))))
    if time != "night":
        return
    craters = sampled(field(1, 1.2), *np.mgrid[0:size, 0:size] * 1.0 + rng.uniform(0, 500))
    lay(image, mask * 0.16 * smoothstep(craters, 0.2, 1.0), colour((150, 160, 195)))
    if rng.random() < 0.5:
        shift = radius * rng.choice((-0.75, 0.75))
        bite = distance(size, sky.x + shift, sky.y - radius * 0.25)
        dark = np.clip((radius * 0.95 - bite) * size + 0.5, 0, 1)
        lay(image, mask * dark * 0.93, mix(sky.zenith, sky.middle, 0.5))


def paint_stars(image: Array, horizon: float, rng: np.random.Generator) -> None:
    size, count = image.shape[0], int(rng.integers(20, 45))
    rows, columns = rng.random(count) ** 1.3 * horizon * size, rng.random(count) * size
    for y, x in zip(rows, columns, strict=True):
        spot = around(size, y, x, 3)
        i, j = np.mgrid[spot]
        gleam = np.exp(-(((i - y) ** 2 + (j - x) ** 2) / rng.uniform(0.8, 2.6)))
        lay(image[spot], gleam * rng.uniform(0.5, 1.0), colour((240, 244, 255)))


def paint_clouds(
    image: Array, sky: Sky, time: str, horizon: float, rng: np.random.Generator
) -> None:
    """Clouds in perspective, lighter towards the light."""
    size = image.shape[0]
    cover = rng.uniform(-0.2, 1.0) if time != "night" else rng.uniform(0.3, 1.4)
    bottom = max(2, int(horizon * size))
    rows = np.arange(bottom, dtype=np.float32)[:, None]
    away = 1 / ((bottom - rows) / size + 0.16)  # far off near the horizon
    u = (np.arange(size, dtype=np.float32)[None] / size - 0.5) * away * 62 + rng.uniform(0, 512)
    v = np.broadcast_to(away * 95, u.shape) + rng.uniform(0, 512)
    noise = field(int(rng.integers(4)), 2.0)
    body = sampled(noise, v, u)
    toward = 7 if sky.x > 0.5 else -7
    ahead = sampled(noise, v - 5, u + toward)
    mask = smoothstep(body, cover, cover + 1.1) * np.clip((bottom - rows) / (0.1 * size), 0, 1)
    lit = np.clip(0.55 + 0.9 * (body - ahead), 0, 1)[..., None]
    bright = {"day": (255, 255, 255), "sunset": (255, 208, 160), "dawn": (255, 246, 238)}
    top = colour(bright.get(time, (96, 110, 160)))
    under = mix(sky.middle, top, {"day": 0.55, "sunset": 0.12, "night": 0.25, "dawn": 0.6}[time])
    if time == "sunset":
        under = mix(sky.zenith, colour((235, 110, 110)), 0.55)
    dense = {"day": 0.9, "sunset": 0.8, "night": 0.55, "dawn": 0.6}[time]
    lay(image[:bottom], mask * dense, mix(under, top, lit))
