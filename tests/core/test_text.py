"""What the tokenizer does with known, unknown, foreign and endless prompts."""

import random

import pytest

from swd_core.emoji.catalogue import catalogue
from swd_core.emoji.text import MAX_WORDS, PAD, EmojiTokenizer, words_of
from swd_core.scenes.text import encode_batch

TOY = EmojiTokenizer(("", "apple", "cat", "dog", "maple", "red", "rocket"))


def read(tokenizer: EmojiTokenizer, prompt: str) -> list[str]:
    """The words the student sees."""
    return [tokenizer.vocabulary[i] for i in tokenizer.encode(prompt)[0] if i != PAD]


def test_known_words_keep_their_order_and_say_nothing():
    ids, messages = TOY.encode("Red APPLE, dog!")
    assert read(TOY, "Red APPLE, dog!") == ["red", "apple", "dog"]
    assert len(ids) == MAX_WORDS and messages == []


def test_empty_prompt_is_all_padding():
    assert TOY.encode("") == ([PAD] * MAX_WORDS, [])
    assert TOY.encode("  \n ")[0] == [PAD] * MAX_WORDS


def test_every_name_of_the_catalogue_is_known_word_for_word(tokenizer):
    for entry in catalogue():
        _, messages = tokenizer.encode(entry["name"])
        assert messages == [], entry["name"]
        known = [w for w in words_of(entry["name"]) if w in tokenizer.index]
        assert read(tokenizer, entry["name"]) == known[:MAX_WORDS]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dogs", "dog"),
        ("rockett", "rocket"),
        ("appel", "apple"),
        ("aple", "apple"),
        ("ROCKTE", "rocket"),
    ],
)
def test_unknown_word_is_read_as_the_nearest_and_reported(typed, meant):
    assert read(TOY, typed) == [meant]
    (message,) = TOY.encode(typed)[1]
    assert typed.lower() in message and meant in message


def test_word_with_nothing_near_is_left_out_and_reported():
    assert read(TOY, "red qqqqqqqq") == ["red"]
    assert "qqqqqqqq" in TOY.encode("red qqqqqqqq")[1][0]


@pytest.mark.parametrize("prompt", ["красное яблоко", "赤いりんご", "تفاحة", "नमस्ते", "빨간 사과"])
def test_other_scripts_are_reported_whole_and_leave_the_empty_prompt(tokenizer, prompt):
    ids, messages = tokenizer.encode(prompt)
    assert ids == [PAD] * MAX_WORDS
    assert len(messages) == len(prompt.split())
    for word, message in zip(prompt.split(), messages, strict=True):
        assert word in message


def test_accents_are_read_as_plain_letters(tokenizer):
    assert read(TOY, "ápple rockét") == ["apple", "rocket"]
    assert TOY.encode("ápple")[1] == []
    assert tokenizer.encode("piñata")[1] == []


def test_every_emoji_of_the_catalogue_is_read_as_its_name(tokenizer):
    for entry in catalogue():
        for emoji in {entry["emoji"], entry["emoji"].replace("\ufe0f", "")}:
            assert tokenizer.encode(emoji) == tokenizer.encode(entry["name"]), entry["name"]


def test_unknown_emoji_is_reported(tokenizer):
    ids, messages = tokenizer.encode(
        "\U0001f1e9\U0001f1ea"
    )  # a flag, which the catalogue leaves out
    assert ids == [PAD] * MAX_WORDS
    assert len(messages) == 1


def test_curly_apostrophe_is_an_apostrophe(tokenizer):
    assert tokenizer.encode("jack-o’-lantern") == tokenizer.encode("jack-o'-lantern")


def test_endless_prompt_is_cut_and_reported(tokenizer):
    rng = random.Random(0)
    text = " ".join(rng.choice(tokenizer.vocabulary[1:]) for _ in range(3000))[:10_000]
    ids, messages = tokenizer.encode(text)
    assert len(ids) == MAX_WORDS and PAD not in ids
    assert any("first 16 words" in m for m in messages)
    ids, messages = tokenizer.encode("x" * 10_000)
    assert len(ids) == MAX_WORDS and all(len(m) < 100 for m in messages)


def test_batch_encodes_each_prompt_as_if_alone():
    ids, messages = encode_batch(TOY, ["red apple", "", "dogs"])
    assert ids.tolist() == [TOY.encode(p)[0] for p in ("red apple", "", "dogs")]
    assert [len(m) for m in messages] == [0, 0, 1]
