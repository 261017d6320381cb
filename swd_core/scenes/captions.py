"""How somebody might ask for a scene: names or synonyms, parts left out, any order."""

import random

from .catalogue import Scene
from .words import (
    EITHER_PLACE,
    EITHER_WORDS,
    KINDS,
    PLACE_WORDS,
    THING_WORDS,
    TIME_WORDS,
)

WITHOUT_THINGS, WITHOUT_PLACE, WITHOUT_TIME = 0.06, 0.12, 0.15
BY_KIND, BY_SYNONYM, EITHER = 0.06, 0.25, 0.03
PREPOSITIONS = {
    "snow": ("in the snow",),
    "mountains": ("in the mountains",),
    "meadow": ("in a meadow", "on a meadow"),
    "forest": ("in a forest", "in the forest"),
    "desert": ("in the desert", "in a desert"),
    "beach": ("on a beach", "at the beach"),
    "lake": ("by a lake", "at the lake"),
    "town": ("in a town", "in town"),
    "day": ("by day", "at day"),
    "sunset": ("at sunset",),
    "night": ("at night", "by night"),
    "dawn": ("at dawn", "in the morning mist"),
}
IRREGULAR = {"snowman": "snowmen", "snow man": "snowmen", "calf": "calves"}


def plural(word: str) -> str:
    """The English plural of a thing's name."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _named(meaning: str, synonyms: str, rng: random.Random) -> str:
    others = synonyms.split()
    word = rng.choice(others) if others and rng.random() < BY_SYNONYM else meaning
    return word.replace("_", " ")


def _thing(name: str, rng: random.Random) -> str:
    kinds = [kind for kind, things in KINDS.items() if name in things]
    if kinds and rng.random() < BY_KIND:
        return rng.choice(kinds)
    return _named(name, THING_WORDS[name], rng)


def things_text(scene: Scene, rng: random.Random) -> str:
    """The things of a scene: "a fox", "two foxes", "robot and cat"."""
    first = _thing(scene.things[0], rng)
    article = "an" if first[0] in "aeiou" else "a"
    if len(scene.things) == 1:
        return f"{article} {first}" if rng.random() < 0.6 else first
    if scene.things[0] == scene.things[1]:
        number = rng.choice(("two", "two", "two", "2", "a pair of", "a couple of"))
        return f"{number} {plural(first)}"
    second = _thing(scene.things[1], rng)
    pair = [first, second]
    rng.shuffle(pair)
    return rng.choice(("{} and {}", "a {} and a {}", "{} with a {}", "{}, {}")).format(*pair)


def place_text(place: str, rng: random.Random) -> str:
    either = [word for word, places in EITHER_PLACE.items() if place in places]
    if either and rng.random() < EITHER:
        return _named(either[0], EITHER_WORDS[either[0]], rng)
    word = _named(place, PLACE_WORDS[place], rng)
    return rng.choice((*PREPOSITIONS[place], word)) if word == place else word


def time_text(time: str, rng: random.Random) -> str:
    word = _named(time, TIME_WORDS[time], rng)
    return rng.choice((*PREPOSITIONS[time], word)) if word == time else word


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many captions of a scene."""
    parts = []
    if rng.random() >= WITHOUT_THINGS:
        parts.append(things_text(scene, rng))
    if rng.random() >= WITHOUT_PLACE:
        parts.append(place_text(scene.place, rng))
    if rng.random() >= WITHOUT_TIME:
        parts.append(time_text(scene.time, rng))
    joint = rng.choice((" ", ", "))
    if joint == ", " or rng.random() < 0.3:
        rng.shuffle(parts)
    return joint.join(parts)


def plain_caption(scene: Scene) -> str:
    """The scene in its plainest words: "two foxes in a forest at sunset"."""
    first, *others = scene.things
    if not others:
        things = f"{'an' if first[0] in 'aeiou' else 'a'} {first}"
    elif others[0] == first:
        things = f"two {plural(first)}"
    else:
        things = f"{first} and {others[0]}"
    return f"{things} {PREPOSITIONS[scene.place][0]} {PREPOSITIONS[scene.time][0]}"
