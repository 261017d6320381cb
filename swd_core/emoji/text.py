"""A prompt's words to the student's conditioning: a small vocabulary, one embedding per word."""

import difflib
import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..scenes.text import VARIATIONS, unreadable, without_accents
from .catalogue import catalogue

MAX_WORDS = 16
PAD = 0
WORD = re.compile(r"[a-z0-9]+")
FILLERS = {"a", "an", "the", "of", "and", "with", "in", "on", "emoji", "picture", "image", "3d"}


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, in order."""
    return WORD.findall(text.lower().replace("'", ""))


def build_vocabulary() -> tuple[str, ...]:
    """Every word of the catalogue's names and keywords; index 0 is padding."""
    words = {w for e in catalogue() for text in (e["name"], *e["keywords"]) for w in words_of(text)}
    return ("", *sorted(words))


@dataclass(frozen=True)
class EmojiTokenizer:
    """Splits a prompt into words the student knows.

    An unknown word becomes the nearest known one and an emoji character becomes its name; what is
    neither is left out. Each such change is reported, none is an error.
    """

    vocabulary: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.vocabulary) if word}

    @cached_property
    def emoji_names(self) -> dict[str, str]:
        """Name by emoji, the longest first: some begin with another one."""
        names = {e["emoji"].translate(VARIATIONS): e["name"] for e in catalogue()}
        return dict(sorted(names.items(), key=lambda pair: -len(pair[0])))

    def nearest(self, word: str) -> str | None:
        """The known word closest in spelling, or None."""
        for stem in (word.removesuffix("s"), word.removesuffix("es"), word + "s"):
            if stem in self.index:
                return stem
        word = word[:40]
        close = difflib.get_close_matches(word, self.index, n=5, cutoff=0.72)

        def likeness(known: str) -> float:
            # Who mistypes a word mostly gets its first letter right.
            return difflib.SequenceMatcher(None, known, word).ratio() + 0.1 * (known[0] == word[0])

        return max(close, key=likeness, default=None)

    def _plain(self, prompt: str) -> str:
        """Emoji as their names, and accents dropped where the accented word isn't known."""
        prompt = prompt.translate(VARIATIONS)
        for emoji, name in self.emoji_names.items():
            prompt = prompt.replace(emoji, f" {name} ")
        known = (all(w in self.index for w in words_of(part)) for part in prompt.split())
        parts = zip(prompt.split(), known, strict=True)
        return " ".join(part if keep else without_accents(part) for part, keep in parts)

    def encode(self, prompt: str) -> tuple[list[int], list[str]]:
        """Token ids (MAX_WORDS of them, padded with 0) and messages about changed words."""
        if not prompt.isascii():
            prompt = self._plain(prompt)
        messages = [
            f"left out {text[:20]!r}: only English words and emoji are known"
            for text in unreadable(prompt)
        ]
        words = [w for w in words_of(prompt) if w in self.index or w not in FILLERS]
        if len(words) > MAX_WORDS:
            messages.append(
                f"only the first {MAX_WORDS} words count; {len(words) - MAX_WORDS} left out"
            )
        ids: list[int] = []
        for word in words[:MAX_WORDS]:
            known = word if word in self.index else self.nearest(word)
            if known is None:
                messages.append(f"left out {word[:20]!r}: no known word is near")
                continue
            if known != word:
                messages.append(f"read {word[:20]!r} as {known!r}")
            ids.append(self.index[known])
        return ids + [PAD] * (MAX_WORDS - len(ids)), messages


class EmojiTextEncoder(nn.Module):
    """Word and place embeddings as context (B, T, D) and their mean as pooled vector (B, D)."""

    def __init__(self, words: int, dim: int = 256):
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.places = nn.Embedding(MAX_WORDS, dim)
        nn.init.normal_(self.words.weight)
        nn.init.normal_(self.places.weight, std=0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) -> context (B, T, D), pooled (B, D). All padding is the empty prompt."""
        tokens = self.words(ids)
        real = (ids != PAD).unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * real).sum(1) / real.sum(1).clamp(min=1).sqrt()
        empty = real.sum(1) == 0
        pooled = torch.where(empty, tokens[:, 0], mean)
        return tokens + self.places.weight, pooled
