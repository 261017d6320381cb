"""Training data that fits into memory, as the node makes it from a batch of pictures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule import ScaleSchedule
from .interface import Conditioning, Shown
from .scalewise import Interval, intervals


@dataclass(frozen=True)
class MemoryData:
    """Latents (N, C, h, w) by size, context (N, T, C), pooled (N, P), and those of no prompt."""

    schedule: ScaleSchedule
    sizes: tuple[tuple[int, int], ...]
    latents: dict[tuple[int, int], Tensor]
    context: Tensor
    pooled: Tensor
    empty: tuple[Tensor, Tensor]
    captions: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.context)

    def first(self, count: int, sigmas: Sequence[float]) -> Shown:
        """The first pictures, `count` of them where there are as many."""
        real = self.latents[self.sizes[-1]][:count]
        text = (self.context[:count], self.pooled[:count])
        return Shown(self.captions[:count], intervals(list(self.sizes), sigmas), real, text)


@dataclass
class MemoryBatches:
    """Draws from MemoryData."""

    data: MemoryData

    def draw(
        self, interval: Interval, count: int, rng: random.Random
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        chosen = torch.tensor([rng.randrange(self.data.count) for _ in range(count)])
        previous = self.data.latents[interval.previous][chosen] if interval.previous else None
        text = (self.data.context[chosen], self.data.pooled[chosen])
        return self.data.latents[interval.size][chosen], previous, text

    def unconditional(self, count: int) -> Conditioning:
        context, pooled = self.data.empty
        return context.expand(count, -1, -1), pooled.expand(count, -1)
