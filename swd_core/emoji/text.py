"""Words of a prompt to the student's conditioning: a small vocabulary and one embedding per word."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .data import catalogue

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

    def nearest(self, word: str) -> str | None:
        """The known word closest in spelling, or None."""
        for stem in (word.removesuffix("s"), word.removesuffix("es"), word + "s"):
            if stem in self.index:
                return stem
        close = difflib.get_close_matches(word[:40], self.index, n=1, cutoff=0.72)
        return close[0] if close else None

    def encode(self, prompt: str) -> tuple[list[int], list[str]]:
        """Token ids (MAX_WORDS of them, padded with 0) and messages about changed words."""
        for entry in catalogue():
            prompt = prompt.replace(entry["emoji"], f" {entry['name']} ")
        foreign = re.findall(r"[^\W\d_a-zA-Z]+", prompt)
        messages = [f"left out {text[:20]!r}: only English words and emoji are known" for text in foreign]
        words = [w for w in words_of(prompt) if w in self.index or w not in FILLERS]
        if len(words) > MAX_WORDS:
            messages.append(f"only the first {MAX_WORDS} words count; {len(words) - MAX_WORDS} left out")
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


def encode_batch(tokenizer: EmojiTokenizer, prompts: Sequence[str]) -> tuple[Tensor, list[list[str]]]:
    """ids (B, T) and each prompt's messages."""
    pairs = [tokenizer.encode(prompt) for prompt in prompts]
    return torch.tensor([ids for ids, _ in pairs]), [messages for _, messages in pairs]
