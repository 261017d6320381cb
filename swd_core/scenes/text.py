"""A prompt to the student's conditioning: meanings, each with one token, in a fixed order."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .catalogue import THINGS
from .words import EMOJI, FILLERS, KIND_WORDS, MEANINGS, MORE_THAN_TWO, PLURALS, TWO

MAX_TOKENS = 8
MAX_WORDS = 64  # of a prompt that are looked at
PAD = 0
WORD = re.compile(r"[a-z0-9]+")
DECIMAL = re.compile(r"\d+\.\d+")  # the weight of a word, "(fox:1.3)", is no number of things
LONGEST = max(phrase.count(" ") + 1 for phrases in MEANINGS.values() for phrase in phrases)
# Joiners, presentation selectors and skin tones only vary an emoji; a curly apostrophe is one too.
VARIATIONS: dict[int, str] = {c: "" for c in (0x200D, 0xFE0F, *range(0x1F3FB, 0x1F400))} | {
    0x2019: "'"
}


def vocabulary() -> tuple[str, ...]:
    """The meanings by token id; index 0 is padding."""
    return ("", *MEANINGS)


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, in order."""
    text = DECIMAL.sub(" ", text.lower())
    return WORD.findall(text.replace("'s", "").replace("'", ""))


def without_accents(text: str) -> str:
    """Accented letters as plain ones, "café" as "cafe"."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def unreadable(text: str) -> list[str]:
    """The runs of letters and symbols in a text that are not plain ones, accents aside."""

    def counts(c: str) -> bool:
        return not c.isascii() and (c.isalnum() or unicodedata.category(c) == "So")

    runs = re.findall(r"[^\x00-\x7f]+", text)
    return [part for run in runs for part in run.split() if any(map(counts, without_accents(part)))]


def singular(word: str) -> tuple[str, ...]:
    """What a word may be the plural of."""
    found = [word.removesuffix("s")] if word.endswith("s") else []
    found += [word.removesuffix("es")] if word.endswith("es") else []
    return tuple(found + ([word.removesuffix("ies") + "y"] if word.endswith("ies") else []))


@dataclass(frozen=True)
class SceneTokenizer:
    """Reads the meanings that a prompt names; their order in it does not matter.

    A plural of a thing means two of it. An unknown word becomes the nearest known one and an emoji
    what it shows; what is neither is left out. Each such change is reported, none is an error.

    Args:
        meanings: by token id, the first one is padding; see `vocabulary`.
    """

    meanings: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Token id by phrase."""
        known = {meaning: i for i, meaning in enumerate(self.meanings) if meaning}
        return {p: known[m] for m, phrases in MEANINGS.items() if m in known for p in phrases}

    @cached_property
    def countable(self) -> frozenset[int]:
        """Tokens whose plural means two."""
        names = (*THINGS, *KIND_WORDS)
        return frozenset(self.index[name] for name in names if name in self.index)

    @cached_property
    def things(self) -> frozenset[int]:
        return frozenset(self.index[name] for name in THINGS if name in self.index)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that means something by itself."""
        return tuple(phrase for phrase in self.index if " " not in phrase)

    @cached_property
    def emoji(self) -> dict[str, str]:
        things = {chr(int(thing.code, 16)): thing.name for thing in THINGS.values()}
        return {**things, **EMOJI, "🧸": "bear", "🐱": "cat", "🐶": "dog", "🐰": "rabbit"}

    def nearest(self, word: str) -> str | None:
        """The known word closest in spelling, or None."""
        word = word[:40]
        close = difflib.get_close_matches(word, self.words, n=5, cutoff=0.75)

        def likeness(known: str) -> float:
            # Who mistypes a word mostly gets its first letter right.
            return difflib.SequenceMatcher(None, known, word).ratio() + 0.1 * (known[0] == word[0])

        return max(close, key=likeness, default=None)

    def _plain(self, prompt: str) -> str:
        """Emoji as their names, and accented letters as plain ones."""
        prompt = prompt.translate(VARIATIONS)
        for emoji, name in self.emoji.items():
            prompt = prompt.replace(emoji, f" {name} ")
        # Only whole words become plain: other scripts are reported as they were typed.
        plain = ((part, without_accents(part)) for part in prompt.split())
        return " ".join(bare if bare.isascii() else part for part, bare in plain)

    def _phrase(self, words: Sequence[str]) -> tuple[int, int, bool] | None:
        """The longest known phrase that words begin with: its length, token, whether a plural."""
        for length in range(min(LONGEST, len(words)), 0, -1):
            phrase = " ".join(words[:length])
            if phrase in self.index:
                return length, self.index[phrase], False
            for stem in (PLURALS.get(phrase), *singular(phrase)):
                if stem in self.index:
                    token = self.index[stem]
                    return length, token, token in self.countable
        return None

    def encode(self, prompt: str) -> tuple[list[int], list[str]]:
        """Token ids (MAX_TOKENS of them, padded with 0) and messages about changed words."""
        if not prompt.isascii():
            prompt = self._plain(prompt)
        messages = [
            f"left out {text[:20]!r}: only English words and emoji are known"
            for text in unreadable(prompt)
        ]
        words = words_of(prompt)
        if len(words) > MAX_WORDS:
            messages.append(
                f"only the first {MAX_WORDS} words count; {len(words) - MAX_WORDS} left out"
            )
            words = words[:MAX_WORDS]
        found: list[int] = []
        more: dict[str, None] = {}  # things beyond two, in order
        while words:
            known = self._phrase(words)
            if known is not None:
                length, token, plural = known
                words = words[length:]
                if len(self.things & {*found, token}) > 2:
                    more[self.meanings[token]] = None
                    continue
                found += [self.index[TWO], token] if plural else [token]
                continue
            word, *words = words
            if word in FILLERS:
                continue
            if word in MORE_THAN_TWO.split():
                messages.append(f"read {word!r} as 'two': a picture has one or two things")
                found.append(self.index[TWO])
                continue
            near = self.nearest(word)
            if near is None:
                messages.append(f"left out {word[:20]!r}: no known word is near")
                continue
            messages.append(f"read {word[:20]!r} as {near!r}")
            words = [near, *words]
        if more:
            messages.append(f"a picture has one or two things; left out {', '.join(more)[:60]}")
        ids = sorted(set(found))
        if len(ids) > MAX_TOKENS:
            names = ", ".join(self.meanings[i] for i in ids[MAX_TOKENS:])
            messages.append(f"too much for one picture; left out {names[:60]}")
        return ids[:MAX_TOKENS] + [PAD] * (MAX_TOKENS - len(ids[:MAX_TOKENS])), messages


class SceneTextEncoder(nn.Module):
    """Meanings as context (B, T, D) and their sum as pooled vector (B, D)."""

    def __init__(self, meanings: int, dim: int = 256):
        super().__init__()
        self.words = nn.Embedding(meanings, dim)
        nn.init.normal_(self.words.weight)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) -> context (B, T, D), pooled (B, D). All padding is the empty prompt."""
        tokens = self.words(ids)
        real = (ids != PAD).unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * real).sum(1) / real.sum(1).clamp(min=1).sqrt()
        empty = real.sum(1) == 0
        return tokens, torch.where(empty, tokens[:, 0], mean)


def encode_batch(
    tokenizer: SceneTokenizer, prompts: Sequence[str]
) -> tuple[Tensor, list[list[str]]]:
    """ids (B, T) and each prompt's messages."""
    pairs = [tokenizer.encode(prompt) for prompt in prompts]
    return torch.tensor([ids for ids, _ in pairs]), [messages for _, messages in pairs]
