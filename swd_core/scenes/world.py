"""Training pictures from (seed, number) alone: one or two things in a place at a time of day."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from . import far
from .catalogue import THINGS, Scene, draw_training_scene
from .figures import Figure, put
from .ground import paint_ground, paint_sea, paint_surf, reflect
from .noise import Array, around, curve, field, lay, mix, sampled, smoothstep
from .sky import Sky, draw_sky, paint_sky
from .sprites import Sprites

SIDE = 256
AIR = 0.3  # how far above its place on the ground a thing in the air is drawn, for the order
Box = tuple[float, float, float, float]
# Props of a place: name, how large, how many at most.
DECOR = {
    "meadow": (("tree", 0.34, 2), ("sunflower", 0.15, 2), ("tulip", 0.11, 3)),
    "forest": (("pine", 0.5, 4), ("tree", 0.42, 1), ("mushroom", 0.10, 3), ("herb", 0.1, 2)),
    "snow": (("pine", 0.4, 4),),
    "desert": (("cactus", 0.3, 3), ("rock", 0.12, 2)),
    "beach": (("palm", 0.52, 2), ("shell", 0.09, 2)),
    "mountains": (("pine", 0.34, 4), ("rock", 0.14, 3)),
    "lake": (("tree", 0.36, 1), ("herb", 0.11, 3), ("pine", 0.4, 1)),
    "town": (("tree", 0.3, 2), ("garden house", 0.34, 1)),
}


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 (256, 256, 3). boxes: left, top, right, bottom of each thing, in pixels."""

    pixels: Array
    scene: Scene
    boxes: tuple[Box, ...]


class World:
    """All pictures of a seed.

    Example:
        >>> world = World(FluentSprites(assets), seed=0)
        >>> world.picture(12).scene
        Scene(things=('fox', 'fox'), place='lake', time='dawn')
    """

    def __init__(self, sprites: Sprites, seed: int = 0):
        self.sprites, self.seed = sprites, seed

    def picture(self, number: int) -> Picture:
        """Training picture `number`: always the same one, never of a held-out combination."""
        rng = np.random.default_rng((self.seed, number))
        return paint(draw_training_scene(rng), self.sprites, rng)

    def picture_of(self, scene: Scene, number: int) -> Picture:
        """Any scene, also one that is held out: one of its endlessly many pictures."""
        rng = np.random.default_rng((self.seed, number, 1))
        return paint(scene, self.sprites, rng)


def paint(scene: Scene, sprites: Sprites, rng: np.random.Generator) -> Picture:
    """Paints a scene; everything about it that the scene leaves open is drawn from `rng`."""
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    horizon = rng.uniform(0.42, 0.60)
    sky = draw_sky(rng, scene.time, horizon)
    paint_sky(image, sky, scene.time, horizon, rng)
    top, close = paint_land(image, scene, sky, horizon * SIDE, rng)
    things = arrange(scene, sprites, top, rng)
    figures = [*decor(scene.place, sprites, top, things, rng), *things]
    for figure in sorted(figures, key=lambda f: f.foot + f.lifted):
        put(image, figure, scene.place, sky, close, rng)
    finish(image, scene, sky, rng)
    pixels = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return Picture(pixels, scene, tuple(figure.box for figure in things))


def paint_land(
    image: Array, scene: Scene, sky: Sky, horizon: float, rng: np.random.Generator
) -> tuple[float, Array]:
    """Paints everything below the sky; returns the row where the ground begins and its colour."""
    place, top = scene.place, horizon
    if place == "meadow":
        far.hills(image, sky, horizon, (104, 160, 110), (0.14, 0.09, 0.05), rng)
    elif place == "forest":
        far.forest(image, sky, horizon, rng)
    elif place == "snow":
        far.hills(image, sky, horizon, (206, 220, 242), (0.2, 0.12), rng, smooth=1.75)
        base = horizon - 2 + 4 * curve(rng, SIDE, 1.8)
        far.firs(image, sky, base, rng.uniform(0.07, 0.12), 0.45, (96, 130, 130), rng)
    elif place == "desert":
        far.dunes(image, sky, horizon, rng)
    elif place == "beach":
        top = horizon + rng.uniform(0.3, 0.45) * (SIDE - horizon)
        if rng.random() < 0.4:
            far.hills(image, sky, horizon, (90, 140, 130), (rng.uniform(0.03, 0.07),), rng)
        paint_sea(image, sky, horizon, top, rng)
    elif place == "mountains":
        far.peaks(image, sky, horizon, rng)
        far.hills(image, sky, horizon, (92, 128, 96), (0.04,), rng)
    elif place == "lake":
        far.hills(image, sky, horizon, (96, 140, 128), (0.16, 0.09), rng, smooth=1.75)
        base = np.full(SIDE, horizon, np.float32)
        far.firs(image, sky, base, rng.uniform(0.06, 0.11), 0.55, (58, 112, 82), rng)
        reflect(image, horizon, sky, rng)
        top = horizon + rng.uniform(0.34, 0.46) * (SIDE - horizon)
    else:
        far.houses(image, sky, horizon, scene.time, rng)
    edge, close = paint_ground(image, place, sky, top, rng)
    if place == "beach":
        paint_surf(image, edge, sky, rng)
    return float(edge.mean()), close


def arrange(scene: Scene, sprites: Sprites, top: float, rng: np.random.Generator) -> list[Figure]:
    """Places the things: large, whole, and beside each other."""
    count = len(scene.things)
    while True:
        figures = [loose(name, count, sprites, top, rng) for name in scene.things]
        boxes = sorted(figure.box for figure in figures)
        if count == 1 or boxes[0][2] - boxes[1][0] < 0.08 * min(f.width for f in figures):
            return figures


def loose(name: str, count: int, sprites: Sprites, top: float, rng: np.random.Generator) -> Figure:
    """One thing anywhere, whole within the picture."""
    sprite = sprites.thing(name)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    nearness = float(rng.uniform(0.1, 1.0))
    low, high = (0.40, 0.62) if count == 1 else (0.35, 0.47)
    size = SIDE * (low + (high - low) * np.clip(nearness + rng.uniform(-0.5, 0.5), 0, 1))
    figure = Figure(sprite, 0.0, 0.0, float(size), nearness, AIR * SIDE * THINGS[name].air)
    half = figure.width / 2 + 4
    x = float(rng.uniform(half, SIDE - half))
    if THINGS[name].air:
        foot = figure.height + rng.uniform(0.03, 0.22) * SIDE
        foot = min(foot, 0.8 * SIDE)
    else:
        foot = top + (SIDE - 6 - top) * (0.2 + 0.8 * nearness)
    return replace(figure, x=x, foot=float(max(foot, figure.height + 4)))


def decor(
    place: str, sprites: Sprites, top: float, things: list[Figure], rng: np.random.Generator
) -> list[Figure]:
    """Props of the place, behind the things or beside them."""
    found: list[Figure] = []
    for name, large, most in DECOR[place]:
        for _ in range(int(rng.integers(0, most + 1))):
            nearness = float(rng.uniform(0.05, 0.75))
            foot = top + (SIDE - top) * (0.06 + 0.9 * nearness)
            size = SIDE * large * rng.uniform(0.8, 1.2) * (0.45 + 0.75 * nearness)
            sprite = sprites.prop(name)
            if rng.random() < 0.5:
                sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for _ in range(6):
                figure = Figure(sprite, float(rng.uniform(0.02, 0.98)) * SIDE, foot, size, nearness)
                if not any(hides(figure, other) for other in (*things, *found)):
                    found.append(figure)
                    break
    return found


def hides(prop: Figure, other: Figure) -> bool:
    """Whether a prop stands before another figure, or too much of it would be hidden behind it."""
    left, top, right, bottom = prop.box
    a, b, c, d = other.box
    across, down = min(right, c) - max(left, a), min(bottom, d) - max(top, b)
    if across <= 0 or down <= 0:
        return False
    return prop.foot >= other.foot or across > 0.55 * (right - left)


def finish(image: Array, scene: Scene, sky: Sky, rng: np.random.Generator) -> None:
    """Mist, snowfall and a slight fall-off to the corners."""
    rows = np.arange(SIDE, dtype=np.float32)[:, None]
    columns = np.arange(SIDE, dtype=np.float32)[None]
    if scene.time == "dawn":
        drift = sampled(
            field(2, 1.7), rows * 1.6 + 0 * columns, columns * 0.7 + rng.uniform(0, 512)
        )
        mist = (0.06 + 0.16 * smoothstep(drift, -0.5, 1.5)) * (1.2 - 0.6 * rows / SIDE)
        lay(image, mist, mix(sky.low, np.float32((255, 255, 255)), 0.3))
    if scene.place == "snow" and rng.random() < 0.5:
        snowfall(image, rng)
    reach = np.hypot(rows / SIDE - 0.5, columns / SIDE - 0.5)
    image *= (1 - 0.16 * smoothstep(reach, 0.4, 0.75))[..., None]


def snowfall(image: Array, rng: np.random.Generator) -> None:
    """Soft flakes of several sizes."""
    for _ in range(int(rng.integers(30, 90))):
        y, x, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0.7, 2.2)
        spot = around(SIDE, y, x, 4)
        i, j = np.mgrid[spot]
        flake = np.clip(r - np.hypot(i - y, j - x) + 0.5, 0, 1) * rng.uniform(0.4, 0.9)
        lay(image[spot], flake, np.float32((255, 255, 255)))
