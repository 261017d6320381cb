"""What an optimiser step draws at random: the same numbers in however many processes it runs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..noise import draw_noise
from .world import World


@dataclass
class Draws:
    """The random numbers of one optimiser step; all of them follow from `seed`.

    `rng` and `generator` are for what concerns the whole batch and give the same in every process.
    Noise is addressed by (seed, picture, pass), so that a process draws the rows of its own
    pictures and no others.
    """

    seed: int
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self._passes = 0

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Fresh standard normal noise for this process's batch (B, C, H, W), on the CPU."""
        rows = self.world.part(shape[0] * self.world.size)
        self._passes += 1
        return draw_noise(self.seed, range(rows.start, rows.stop), self._passes, shape[1:])

    def levels(self, count: int, choices: Tensor | None, low: float, high: float) -> Tensor:
        """Noise levels (count,) of this process's pictures.

        Args:
            choices: what they are drawn from; evenly from low..high if None.
        """
        total = count * self.world.size
        if choices is None:
            drawn = low + (high - low) * torch.rand(total, generator=self.generator)
        else:
            drawn = choices[torch.randint(len(choices), (total,), generator=self.generator)]
        return drawn[self.world.part(total)]
