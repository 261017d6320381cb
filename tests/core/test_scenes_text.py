"""Captions of scenes and what the tokenizer reads in them and in other prompts."""

import random
import unicodedata
from collections import Counter

import pytest

from swd_core.scenes.captions import caption, plain_caption, plural
from swd_core.scenes.catalogue import PLACES, THINGS, TIMES, Scene, scene_of
from swd_core.scenes.text import MAX_TOKENS, PAD, SceneTokenizer, encode_batch, vocabulary
from swd_core.scenes.words import EITHER_PLACE, FILLERS, KINDS, MEANINGS, PLURALS, THING_WORDS, TWO

TOKENIZER = SceneTokenizer(vocabulary())


def read(prompt: str) -> set[str]:
    """The meanings that the student sees."""
    return {TOKENIZER.meanings[i] for i in TOKENIZER.encode(prompt)[0] if i != PAD}


def meant(scene: Scene) -> set[str]:
    alike = len(scene.things) == 2 and scene.things[0] == scene.things[1]
    return {*scene.things, scene.place, scene.time} | ({TWO} if alike else set())


def test_plain_captions_are_read_as_what_the_picture_shows():
    for number in range(300):
        scene = scene_of(1, number)
        prompt = plain_caption(scene)
        assert read(prompt) == meant(scene), prompt
        assert TOKENIZER.encode(prompt)[1] == [], prompt


def test_every_caption_says_nothing_but_the_truth():
    rng, parts = random.Random(0), Counter()
    for number in range(3000):
        scene = scene_of(2, number % 500)
        prompt = caption(scene, rng)
        ids, messages = TOKENIZER.encode(prompt)
        found = {TOKENIZER.meanings[i] for i in ids if i != PAD}
        kinds = {k for k, names in KINDS.items() if set(scene.things) & set(names)}
        either = {word for word, places in EITHER_PLACE.items() if scene.place in places}
        assert messages == [] and found <= meant(scene) | kinds | either, prompt
        things = found & (set(THINGS) | kinds)
        if things and TWO in meant(scene):
            assert TWO in found, prompt
        if things and len(set(scene.things)) == 2:
            assert len(things) == 2 or things & kinds, prompt
        parts.update(
            {
                "things": bool(things),
                "place": bool(found & ({scene.place} | either)),
                "time": scene.time in found,
                "exact": found == meant(scene),
            }
        )
    assert all(0.8 < parts[part] / 3000 < 0.96 for part in ("things", "place", "time"))
    assert 0.5 < parts["exact"] / 3000 < 0.8


def test_word_order_and_synonyms_do_not_matter():
    expected = TOKENIZER.encode("a fox in a forest at sunset")
    for prompt in ("sunset, forest, fox", "Dusk: FOX, woods!", "woodland at twilight with a vixen"):
        assert TOKENIZER.encode(prompt) == expected
    assert read("two penguins, snow, night") == {"two", "penguin", "snow", "night"}
    assert read("robot and cat on a beach") == {"robot", "cat", "beach"}


@pytest.mark.parametrize(
    ("prompt", "meanings"),
    [
        ("foxes", {"two", "fox"}),
        ("puppies in the snow", {"two", "dog", "snow"}),
        ("a bus", {"bus"}),
        ("buses", {"two", "bus"}),
        ("an octopus", {"octopus"}),
        ("octopi", {"two", "octopus"}),
        ("cattle and calves", {"two", "cow"}),
        ("kitties", {"two", "cat"}),
        ("a couple of T-Rex", {"two", "dinosaur"}),
        ("teddy bears", {"two", "bear"}),
        ("fox's forest", {"fox", "forest"}),
        ("birds", {"two", "bird"}),
        ("the alps at night time", {"mountains", "night"}),
    ],
)
def test_plurals_mean_two(prompt, meanings):
    assert read(prompt) == meanings
    assert TOKENIZER.encode(prompt)[1] == []


def test_every_thing_has_a_plural_that_is_read_as_two_of_it():
    for name in THINGS:
        assert read(plural(name)) == {"two", name}, plural(name)
        assert read(name) == {name}


def test_no_word_has_two_meanings_and_no_known_word_is_dropped():
    phrases = [phrase for group in MEANINGS.values() for phrase in group]
    assert len(phrases) == len(set(phrases))
    assert not FILLERS & set(phrases)
    assert set(MEANINGS) >= {*THINGS, *PLACES, *TIMES}
    assert set(THING_WORDS) == set(THINGS) and set(PLURALS.values()) <= set(THINGS)


def test_more_than_two_is_read_as_two_and_said():
    ids, messages = TOKENIZER.encode("five cats")
    assert ids == TOKENIZER.encode("two cats")[0]
    assert len(messages) == 1 and "five" in messages[0]


def test_a_third_thing_is_left_out_and_said():
    for prompt in ("a fox, a cat and a dog on a beach", "dog, fox, fox, beach, cat, dog"):
        named = [name for name in prompt.replace(",", " ").split() if name in THINGS]
        kept = list(dict.fromkeys(named))[:2]
        (message,) = TOKENIZER.encode(prompt)[1]
        assert read(prompt) == {*kept, "beach"}, prompt
        assert message.endswith("left out " + ({"fox", "cat", "dog"} - {*kept}).pop())
    assert TOKENIZER.encode("a fox and a pet cat")[1] == [], "a kind of the same is no third thing"


def test_the_weight_of_a_word_is_no_number_of_things():
    assert TOKENIZER.encode("(fox:1.3) in the snow") == TOKENIZER.encode("fox in the snow")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("pengiun", "penguin"), ("forrest", "forest"), ("sunsett", "sunset"), ("elefant", "elephant")],
)
def test_unknown_word_is_read_as_the_nearest_and_reported(typed, meant):
    assert read(typed) == {meant}
    (message,) = TOKENIZER.encode(typed)[1]
    assert typed in message and meant in message


def test_word_with_nothing_near_is_left_out_and_reported():
    ids, messages = TOKENIZER.encode("a fox qqqqqqqq")
    assert ids == TOKENIZER.encode("a fox")[0]
    assert len(messages) == 1 and "qqqqqqqq" in messages[0]


def test_empty_prompt_is_all_padding():
    for prompt in ("", "  \n ", "!!!", "the of a"):
        assert TOKENIZER.encode(prompt) == ([PAD] * MAX_TOKENS, [])


@pytest.mark.parametrize("prompt", ["красное яблоко", "赤いりんご", "تفاحة", "नमस्ते", "빨간 사과"])
def test_other_scripts_are_reported_whole_and_leave_the_empty_prompt(prompt):
    ids, messages = TOKENIZER.encode(prompt)
    assert ids == [PAD] * MAX_TOKENS
    assert len(messages) == len(prompt.split())
    for word, message in zip(prompt.split(), messages, strict=True):
        assert word in message


def test_accents_and_emoji_are_read():
    assert read("fôx in the fórest") == {"fox", "forest"}
    assert read("🦊🌲🌇") == {"fox", "forest", "sunset"}
    for thing in THINGS.values():
        emoji = chr(int(thing.code, 16))
        assert read(emoji) == {thing.name}, unicodedata.name(emoji)
        assert read(emoji + "\ufe0f") == {thing.name}
    assert TOKENIZER.encode("🍕")[1] != []


def test_a_prompt_that_names_everything_keeps_to_its_room():
    ids, messages = TOKENIZER.encode(" ".join((*PLACES, *TIMES)))
    assert len(ids) == MAX_TOKENS and PAD not in ids and len(messages) == 1
    ids, messages = TOKENIZER.encode(" ".join(THINGS))
    assert len(ids) == MAX_TOKENS and ids.count(PAD) == MAX_TOKENS - 2 and len(messages) == 1


def test_endless_prompts_are_cut_and_said():
    ids, messages = TOKENIZER.encode("fox " * 2500)
    assert ids == TOKENIZER.encode("fox")[0] and len(messages) == 1
    ids, messages = TOKENIZER.encode("x" * 10_000)
    assert ids == [PAD] * MAX_TOKENS and all(len(m) < 200 for m in messages)


def test_random_text_never_fails():
    rng = random.Random(0)
    for _ in range(200):
        prompt = "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.randrange(60)))
        ids, messages = TOKENIZER.encode(prompt)
        assert len(ids) == MAX_TOKENS and all(isinstance(m, str) for m in messages)


def test_batches_keep_their_order():
    ids, messages = encode_batch(TOKENIZER, ["a fox", "", "zzzzzzz"])
    assert ids.tolist() == [TOKENIZER.encode(p)[0] for p in ("a fox", "", "zzzzzzz")]
    assert [len(m) for m in messages] == [0, 0, 1]


def test_a_word_of_a_longer_phrase_alone_is_left_out_or_read_as_another():
    for word in {w for group in MEANINGS.values() for phrase in group for w in phrase.split()}:
        ids, messages = TOKENIZER.encode(word)
        assert len(ids) == MAX_TOKENS and len(messages) <= 1, word
        assert not (messages and word in TOKENIZER.index), word
