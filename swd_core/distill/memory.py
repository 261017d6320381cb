"""Training data that fits into memory, as the node makes it from a batch of pictures."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import ScaleSchedule
from ..transfer import sent
from .conditioning import PROMPT, Conditioning, joined, masked
from .interface import Shown
from .scalewise import Interval, intervals


@dataclass(frozen=True)
class MemoryData:
    """Encoded pictures of one size with their captions.

    sizes: of the schedule's steps, in latent cells. latents: (N, C, h, w) by size. text: of each
    picture by itself; long captions may have more tokens. empty: of no prompt. target: the finished
    (height, width) in pixels.
    """

    schedule: ScaleSchedule
    sizes: tuple[tuple[int, int], ...]
    latents: dict[tuple[int, int], Tensor]
    text: tuple[Conditioning, ...]
    empty: Conditioning
    captions: tuple[str, ...]
    target: tuple[int, int]

    @property
    def count(self) -> int:
        return len(self.text)

    def identity(self) -> dict[str, Any]:
        """What tells this data from other: words and sizes exactly, pictures and encoded text by
        some of their numbers, which are nearly the same when they are encoded again."""
        lengths = [text.context.shape[1] for text in self.text]
        words = repr((self.captions, self.sizes, self.target, lengths))
        smallest = self.latents[self.sizes[0]].float().cpu()
        parts = [text.parts[name] for name in PROMPT for text in self.text if name in text.parts]
        text = [float(part.float().abs().mean()) for part in parts]
        return {
            "captions or sizes": hashlib.sha256(words.encode("utf-8", "replace")).hexdigest(),
            "pictures": F.adaptive_avg_pool2d(smallest, 2),
            "encoded captions": torch.tensor(text),
        }

    def mapped(
        self, latent: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]
    ) -> "MemoryData":
        """The same data with every tensor passed through one of two functions."""
        return replace(
            self,
            latents={size: latent(x) for size, x in self.latents.items()},
            text=tuple(one.map(text) for one in self.text),
            empty=self.empty.map(text),
        )


@dataclass
class MemoryBatches:
    """Draws from MemoryData onto a device.

    Args:
        sigmas: the schedule's noise levels in the process's own terms.
    """

    data: MemoryData
    sigmas: Sequence[float]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def steps(self, rng: random.Random) -> list[Interval]:
        return intervals(list(self.data.sizes), self.sigmas)

    def draw(
        self, interval: Interval, count: int, rng: random.Random, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        chosen = [rng.randrange(self.data.count) for _ in range(count)][part]
        previous = self._latents(interval.previous, chosen) if interval.previous else None
        return self._latents(interval.size, chosen), previous, self._text(chosen)

    def first(self, count: int) -> Shown:
        """The first `count` pictures, or as many as there are."""
        chosen = list(range(min(count, self.data.count)))
        steps = intervals(list(self.data.sizes), self.sigmas)
        captions = tuple(self.data.captions[i] for i in chosen)
        return Shown(captions, steps, self._latents(steps[-1].size, chosen), self._text(chosen))

    def unconditional(self, count: int) -> Conditioning:
        return self.data.empty.sent(self.device).expand(count)

    def _latents(self, size: tuple[int, int], chosen: list[int]) -> Tensor:
        return sent(self.data.latents[size][chosen], self.device)

    def _text(self, chosen: list[int]) -> Conditioning:
        """Prompts of different lengths with a mask of the tokens that each of them has."""
        size = torch.tensor([self.data.target] * len(chosen), dtype=torch.float32)
        text = joined(masked(self.data.text[i]) for i in chosen).trimmed()
        return replace(text.sent(self.device), size=size)
