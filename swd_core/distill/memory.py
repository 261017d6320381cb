"""Training data that fits into memory, as the node makes it from a batch of pictures."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import ScaleSchedule
from .interface import Conditioning, Shown
from .scalewise import Interval, intervals
from .transfer import sent


@dataclass(frozen=True)
class MemoryData:
    """Encoded pictures of one size with their captions.

    sizes: of the schedule's steps, in latent cells. latents: (N, C, h, w) by size. context: one
    (T, C) for each picture; long captions may have more tokens. pooled: (N, P). empty: context
    (1, T, C) and pooled (1, P) of no prompt. target: the finished (height, width) in pixels.
    """

    schedule: ScaleSchedule
    sizes: tuple[tuple[int, int], ...]
    latents: dict[tuple[int, int], Tensor]
    context: tuple[Tensor, ...]
    pooled: Tensor
    empty: tuple[Tensor, Tensor]
    captions: tuple[str, ...]
    target: tuple[int, int]

    @property
    def count(self) -> int:
        return len(self.context)

    def identity(self) -> dict[str, Any]:
        """What tells this data from other: words and sizes exactly, pictures and encoded text by
        some of their numbers, which are nearly the same when they are encoded again."""
        lengths = [len(context) for context in self.context]
        words = repr((self.captions, self.sizes, self.target, lengths))
        smallest = self.latents[self.sizes[0]].float().cpu()
        text = [float(part.float().abs().mean()) for part in (*self.context, *self.pooled)]
        return {
            "captions or sizes": hashlib.sha256(words.encode("utf-8", "replace")).hexdigest(),
            "pictures": F.adaptive_avg_pool2d(smallest, 2),
            "encoded captions": torch.tensor(text),
        }

    def alike(self, place: int) -> list[int]:
        """The pictures that fit into one batch with `place`: those with as many tokens."""
        length = len(self.context[place])
        return [i for i, context in enumerate(self.context) if len(context) == length]

    def mapped(
        self, latent: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]
    ) -> "MemoryData":
        """The same data with every tensor passed through one of two functions."""
        return dataclasses.replace(
            self,
            latents={size: latent(x) for size, x in self.latents.items()},
            context=tuple(text(context) for context in self.context),
            pooled=text(self.pooled),
            empty=(text(self.empty[0]), text(self.empty[1])),
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
        first = rng.randrange(self.data.count)
        among = self.data.alike(first)
        chosen = [first, *(rng.choice(among) for _ in range(count - 1))][part]
        previous = self._latents(interval.previous, chosen) if interval.previous else None
        return self._latents(interval.size, chosen), previous, self._text(chosen)

    def first(self, count: int) -> Shown:
        """The first pictures that fit into one batch, `count` of them where there are as many."""
        chosen = self.data.alike(0)[:count]
        steps = intervals(list(self.data.sizes), self.sigmas)
        captions = tuple(self.data.captions[i] for i in chosen)
        return Shown(captions, steps, self._latents(steps[-1].size, chosen), self._text(chosen))

    def unconditional(self, count: int) -> Conditioning:
        context, pooled = (sent(part, self.device) for part in self.data.empty)
        return context.expand(count, -1, -1), pooled.expand(count, -1)

    def _latents(self, size: tuple[int, int], chosen: list[int]) -> Tensor:
        return sent(self.data.latents[size][chosen], self.device)

    def _text(self, chosen: list[int]) -> Conditioning:
        """(context, pooled, target) of pictures with as many tokens each."""
        context = torch.stack([self.data.context[i] for i in chosen])
        target = torch.tensor([self.data.target] * len(chosen), dtype=torch.float32)
        text = (sent(part, self.device) for part in (context, self.data.pooled[chosen]))
        return (*text, target)
