"""Training pictures of scenes: reproducible, as their labels say, never of what is held out."""

import colorsys
import zlib
from itertools import combinations_with_replacement

import numpy as np
import pytest
from PIL import Image, ImageDraw

from swd_core.scenes.catalogue import (
    PLACES,
    THINGS,
    TIMES,
    Scene,
    held_out,
    pair_held_out,
    scene_of,
    triple_held_out,
)
from swd_core.scenes.sprites import FluentSprites
from swd_core.scenes.world import SIDE, World

GROUND = ("fox", "robot", "castle")


class DrawnSprites:
    """A plain ellipse for each thing, a triangle for each prop."""

    def thing(self, name: str) -> Image.Image:
        picture = Image.new("RGBA", (120, 100))
        ImageDraw.Draw(picture).ellipse((0, 0, 119, 99), fill=(*colour_of(name), 255))
        return picture

    def prop(self, name: str) -> Image.Image:
        picture = Image.new("RGBA", (60, 90))
        ImageDraw.Draw(picture).polygon([(30, 0), (0, 89), (59, 89)], fill=(90, 90, 90, 255))
        return picture


def colour_of(name: str) -> tuple[int, int, int]:
    hue = zlib.crc32(name.encode()) % 360 / 360
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.9, 0.9))


@pytest.fixture(scope="module")
def world() -> World:
    return World(DrawnSprites(), seed=3)


def test_a_picture_is_always_the_same_and_no_other(world):
    again = World(DrawnSprites(), seed=3)
    first, second = world.picture(5), world.picture(6)
    assert (first.pixels == again.picture(5).pixels).all() and first.scene == again.picture(5).scene
    assert np.abs(first.pixels.astype(int) - second.pixels).mean() > 3
    other = World(DrawnSprites(), seed=4).picture(5)
    assert np.abs(first.pixels.astype(int) - other.pixels).mean() > 3


def test_what_a_picture_shows_is_known_without_painting_it(world):
    for number in range(4):
        assert scene_of(3, number) == world.picture(number).scene


def test_pictures_are_whole(world):
    for number in range(6):
        pixels = world.picture(number).pixels
        assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
        assert pixels.std() > 10


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("time", TIMES)
def test_every_place_and_time_can_be_painted(world, place, time):
    scene = Scene(("fox", "ufo"), place, time)
    picture = world.picture_of(scene, 1)
    assert picture.scene == scene and len(picture.boxes) == 2


def test_things_are_where_the_boxes_say(world):
    """The same random picture with a red thing and with a blue one differs only at the thing."""

    class Painted(DrawnSprites):
        def __init__(self, hue):
            self.hue = hue

        def thing(self, name):
            flat = np.array(super().thing(name))
            flat[..., :3] = self.hue
            return Image.fromarray(flat)

    for number in range(8):
        scene = Scene((GROUND[number % 3],), PLACES[number], "day")
        red = World(Painted((255, 0, 0)), 3).picture_of(scene, number)
        blue = World(Painted((0, 0, 255)), 3).picture_of(scene, number)
        changed = np.abs(red.pixels.astype(int) - blue.pixels).sum(-1) > 60
        rows, columns = np.nonzero(changed)
        left, top, right, bottom = red.boxes[0]
        assert abs(columns.min() - left) < 6 and abs(columns.max() + 1 - right) < 6
        assert abs(rows.min() - top) < 6 and abs(rows.max() + 1 - bottom) < 14


def test_things_are_large_whole_and_apart(world):
    for number in range(16):
        scene = scene_of(3, number)
        boxes = world.picture_of(scene, number).boxes
        for left, top, right, bottom in boxes:
            assert 0 <= left and right <= SIDE and 0 <= top and bottom <= SIDE
            assert 0.33 * SIDE < max(right - left, bottom - top) < 0.65 * SIDE
        if len(boxes) == 2:
            first, second = sorted(boxes)
            assert first[2] - second[0] < 0.1 * (first[2] - first[0])


def test_held_out_combinations_are_never_drawn():
    scenes = [scene_of(0, number) for number in range(5000)]
    for scene in scenes:
        assert not held_out(scene)
        if len(scene.things) == 2:
            assert not pair_held_out(*scene.things)
        for thing in scene.things:
            assert not triple_held_out(scene.place, scene.time, thing)
    assert {t for s in scenes for t in s.things} == set(THINGS)
    assert {s.place for s in scenes} == set(PLACES) and {s.time for s in scenes} == set(TIMES)
    alike = np.mean([len(s.things) == 2 and s.things[0] == s.things[1] for s in scenes])
    assert 0.15 < alike < 0.3


def test_a_share_of_the_combinations_is_held_out_in_either_order():
    pairs = [p for p in combinations_with_replacement(THINGS, 2) if pair_held_out(*p)]
    assert 0.05 < len(pairs) / (len(THINGS) * (len(THINGS) - 1) / 2) < 0.15
    assert all(pair_held_out(b, a) for a, b in pairs)
    assert not any(pair_held_out(name, name) for name in THINGS)
    triples = [(p, t, n) for p in PLACES for t in TIMES for n in THINGS if triple_held_out(p, t, n)]
    assert 0.04 < len(triples) / (len(PLACES) * len(TIMES) * len(THINGS)) < 0.12


def test_missing_package_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="`make data` does both"):
        FluentSprites(tmp_path).thing("fox")
