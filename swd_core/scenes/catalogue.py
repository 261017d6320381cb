"""What the training pictures show: things, places and times, and what is never trained on."""

import zlib
from dataclasses import dataclass
from itertools import combinations

import numpy as np

PACKAGE = "@lobehub/fluent-emoji-3d"
PLACES = ("meadow", "forest", "snow", "desert", "beach", "mountains", "lake", "town")
TIMES = ("day", "sunset", "night", "dawn")
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Body:
    """A seated body for a head: two colours, the head's width and drop in parts of the body's."""

    dark: Colour
    light: Colour
    head: float = 0.92
    drop: float = 0.0


@dataclass(frozen=True)
class Thing:
    """Something a picture is of.

    Args:
        code: its picture in the package of emoji. air: it flies. body: for pictures that are heads
            only. grey: share of its colours to take out.
    """

    name: str
    code: str
    air: bool = False
    body: Body | None = None
    grey: float = 0.0


THINGS = {
    thing.name: thing
    for thing in (
        Thing("fox", "1f98a", body=Body((200, 70, 20), (255, 160, 70), 0.95)),
        Thing("cat", "1f408", grey=0.9),
        Thing("dog", "1f415"),
        Thing("panda", "1f43c", body=Body((30, 26, 60), (120, 110, 150), 0.9, 0.09)),
        Thing("koala", "1f428", body=Body((100, 95, 120), (190, 185, 205), 0.9, 0.04)),
        Thing("lion", "1f981", body=Body((190, 110, 30), (255, 205, 100), 0.95)),
        Thing("frog", "1f438", body=Body((20, 130, 80), (90, 230, 140), 0.9, 0.04)),
        Thing("robot", "1f916", body=Body((120, 115, 150), (235, 232, 250), 0.9)),
        Thing("bear", "1f9f8"),
        Thing("rabbit", "1f407"),
        Thing("tiger", "1f405"),
        Thing("horse", "1f40e"),
        Thing("cow", "1f404"),
        Thing("pig", "1f416"),
        Thing("giraffe", "1f992"),
        Thing("elephant", "1f418"),
        Thing("monkey", "1f412"),
        Thing("hedgehog", "1f994"),
        Thing("turtle", "1f422"),
        Thing("snail", "1f40c"),
        Thing("crab", "1f980"),
        Thing("octopus", "1f419"),
        Thing("dragon", "1f409"),
        Thing("dinosaur", "1f996"),
        Thing("butterfly", "1f98b", air=True),
        Thing("penguin", "1f427"),
        Thing("duck", "1f986"),
        Thing("owl", "1f989"),
        Thing("flamingo", "1f9a9"),
        Thing("parrot", "1f99c"),
        Thing("ghost", "1f47b"),
        Thing("snowman", "26c4"),
        Thing("car", "1f697"),
        Thing("bus", "1f68c"),
        Thing("tractor", "1f69c"),
        Thing("train", "1f682"),
        Thing("rocket", "1f680", air=True),
        Thing("ufo", "1f6f8", air=True),
        Thing("balloon", "1f388", air=True),
        Thing("castle", "1f3f0"),
    )
}
SEATED = "1f9f8"  # whose body heads are set on
PROPS = {
    "pine": "1f332",
    "tree": "1f333",
    "palm": "1f334",
    "cactus": "1f335",
    "tulip": "1f337",
    "sunflower": "1f33b",
    "mushroom": "1f344",
    "herb": "1f33f",
    "shell": "1f41a",
    "house": "1f3e0",
    "garden house": "1f3e1",
    "rock": "1faa8",
}


@dataclass(frozen=True)
class Scene:
    """What one picture shows: one or two things in a place at a time."""

    things: tuple[str, ...]
    place: str
    time: str


def _chosen(share: float, *words: str) -> bool:
    """Whether these words, always the same for the same ones, fall into a share of all."""
    return zlib.crc32(" ".join(words).encode()) % 1000 < 1000 * share


def pair_held_out(first: str, second: str) -> bool:
    """Whether two different things are never trained on together."""
    return first != second and _chosen(0.1, *sorted((first, second)))


def triple_held_out(place: str, time: str, thing: str) -> bool:
    """Whether a thing is never trained on in this place at this time."""
    return _chosen(0.08, place, time, thing)


def held_out(scene: Scene) -> bool:
    """Whether a scene belongs to the test of composition and never to the training."""
    return any(pair_held_out(a, b) for a, b in combinations(scene.things, 2)) or any(
        triple_held_out(scene.place, scene.time, thing) for thing in scene.things
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Any scene: one thing (45 %), two alike (20 %) or two different ones."""
    names, kind = tuple(THINGS), rng.random()
    first, second = (names[int(i)] for i in rng.permutation(len(names))[:2])
    things = (first,) if kind < 0.45 else (first, first) if kind < 0.65 else (first, second)
    return Scene(things, str(rng.choice(PLACES)), str(rng.choice(TIMES)))


def draw_training_scene(rng: np.random.Generator) -> Scene:
    """A scene that is not held out."""
    while held_out(scene := draw_scene(rng)):
        pass
    return scene


def scene_of(seed: int, number: int) -> Scene:
    """What training picture `number` of a seed shows."""
    return draw_training_scene(np.random.default_rng((seed, number)))
