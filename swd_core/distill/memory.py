"""Training data that fits into memory, as the node makes it from a batch of pictures."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule import ScaleSchedule
from .interface import Conditioning, Shown
from .scalewise import Interval, intervals


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

    def alike(self, place: int) -> list[int]:
        """The pictures that fit into one batch with `place`: those with as many tokens."""
        length = len(self.context[place])
        return [i for i, context in enumerate(self.context) if len(context) == length]

    def text(self, chosen: Sequence[int]) -> Conditioning:
        """(context, pooled, target) of some pictures with as many tokens each."""
        target = torch.tensor([self.target] * len(chosen), dtype=torch.float32)
        rows = list(chosen)
        context = torch.stack([self.context[i] for i in rows])
        return context, self.pooled[rows], target.to(context.device)

    def first(self, count: int, sigmas: Sequence[float]) -> Shown:
        """The first pictures that fit into one batch, `count` of them where there are as many."""
        chosen = self.alike(0)[:count]
        real = self.latents[self.sizes[-1]][chosen]
        captions = tuple(self.captions[i] for i in chosen)
        return Shown(captions, intervals(list(self.sizes), sigmas), real, self.text(chosen))

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
    """Draws from MemoryData."""

    data: MemoryData

    def draw(
        self, interval: Interval, count: int, rng: random.Random
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        first = rng.randrange(self.data.count)
        among = self.data.alike(first)
        chosen = [first, *(rng.choice(among) for _ in range(count - 1))]
        previous = self.data.latents[interval.previous][chosen] if interval.previous else None
        return self.data.latents[interval.size][chosen], previous, self.data.text(chosen)

    def unconditional(self, count: int) -> Conditioning:
        context, pooled = self.data.empty
        return context.expand(count, -1, -1), pooled.expand(count, -1)
