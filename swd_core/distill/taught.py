"""The teacher's pictures made while a training goes on: what prompts alone are compared with."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..noise import stream_seed
from ..process import VarianceExploding
from ..transfer import picked, sent
from .buckets import shrink
from .conditioning import Conditioning, joined
from .draws import Draws
from .objective import Objective
from .scalewise import Interval, shifted
from .world import World

log = logging.getLogger(__name__)
Size = tuple[int, int]


class Autoencoder(Protocol):
    """Between latents (B, C, h, w) in the model's units and pictures with values in [0, 1]."""

    def pictures(self, latents: Tensor) -> Tensor:
        """(B, H, W, 3) on the CPU."""

    def latents(self, pictures: Tensor) -> Tensor:
        """Of (B, 3, H, W)."""


@dataclass(frozen=True)
class Group:
    """Pictures that were made together: latents (P, C, h, w) by size, and what was asked for."""

    latents: dict[Size, Tensor]
    text: Conditioning


@dataclass(frozen=True)
class Teaching:
    """How the teacher makes pictures of the training's prompts: guided Euler steps from noise.

    Args:
        autoencoder: smaller sizes are shrunk in pixels, as those of prepared pictures.
        count: of one process's pictures in a group. steps: of Euler, evenly spaced times.
        guidance: of classifier-free guidance; 1 for none.
    """

    objective: Objective
    autoencoder: Autoencoder
    count: int
    steps: int
    guidance: float
    world: World = field(default_factory=World)

    @property
    def total(self) -> int:
        """Pictures in a group."""
        return self.count * self.world.size

    @torch.no_grad()
    def group(self, number: int) -> Group:
        """All pictures of a group, which follows from the training's seed and its number."""
        batches, rows = self.objective.batches, self.world.part(self.total)
        draws = Draws(stream_seed(self.objective.config.seed, number, 0), self.world)
        steps = batches.steps(draws.rng)
        like, _, text = batches.draw(steps[-1], self.total, draws.rng)
        noise = sent(draws.noise((self.count, *like.shape[1:])), like.device)
        x0 = self._sampled(noise, text.rows(list(range(self.total))[rows]))
        with torch.autocast(x0.device.type, enabled=False):  # one by one, for the memory
            own = _joined([self._sized(one, [s.size for s in steps]) for one in x0.split(1)])
        every = {size: self.world.gathered(latents) for size, latents in own.items()}
        return Group(every, text.map(Tensor.cpu))

    def _sampled(self, noise: Tensor, text: Conditioning) -> Tensor:
        """The guided teacher's x0 (B, C, H, W)."""
        process, objective = self.objective.process, self.objective
        times = 1 - torch.arange(self.steps) / self.steps
        if not isinstance(process, VarianceExploding):
            times = shifted(times)
        levels = [float(sigma) for sigma in objective.level(times)]
        x = process.add_noise(torch.zeros_like(noise), noise, levels[0])
        for sigma, after in zip(levels, [*levels[1:], 0.0], strict=True):
            level = torch.full((len(x),), sigma, device=x.device)
            x0 = objective.guided(x, level, text, self.guidance).float()
            x = x0 + (x - x0) * (after / sigma)
        return x

    def _sized(self, x0: Tensor, sizes: list[Size]) -> dict[Size, Tensor]:
        """A picture (1, C, H, W) at every size; the last one is its own."""
        pixels = self.autoencoder.pictures(x0).permute(0, 3, 1, 2)
        cell = pixels.shape[-1] // x0.shape[-1]
        found = {sizes[-1]: x0}
        for height, width in sizes:
            if (height, width) not in found:
                small = shrink(pixels, (height * cell, width * cell))
                found[height, width] = self.autoencoder.latents(small).to(x0)
        return found


@dataclass
class Taught:
    """A pool of the teacher's pictures, of which every step exchanges a few, group by group.

    Which groups there are follows from the step: a training that goes on makes its pool again and
    has the same bits.

    Args:
        pool: how many pictures there are at least. renewed: how many of them a step exchanges.
    """

    teaching: Teaching
    pool: int
    renewed: int
    _groups: dict[int, Group] = field(default_factory=dict)
    _all: Group | None = None

    def numbers(self, step: int) -> range:
        """The groups of a step."""
        first = step * self.renewed // self.teaching.total
        return range(first, first + -(-self.pool // self.teaching.total))

    def draw(
        self,
        step: int,
        interval: Interval,
        count: int,
        part: slice,
        draws: Draws,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[Tensor, Conditioning]:
        """Latents at the interval's size and their text: of a batch of `count` the rows `part`.

        Args:
            between: called before each group that is made; what it raises ends it there.
        """
        if list(numbers := self.numbers(step)) != list(self._groups):
            if not self._groups and self.teaching.world.is_first:
                pictures = len(numbers) * self.teaching.total
                log.info("the teacher first makes %d pictures to compare with", pictures)
            self._groups = {i: self._group(i, between) for i in numbers}
            groups = self._groups.values()
            latents = _joined([group.latents for group in groups])
            self._all = Group(latents, joined(group.text for group in groups))
        latents, text = self._all.latents[interval.size], self._all.text
        chosen = torch.randint(len(latents), (count,), generator=draws.generator)[part].tolist()
        return picked(latents, chosen), text.rows(chosen).sent(latents.device)

    def _group(self, number: int, between: Callable[[], None]) -> Group:
        """One of the pool, or made now."""
        if number in self._groups:
            return self._groups[number]
        between()
        return self.teaching.group(number)


def _joined(parts: list[dict[Size, Tensor]]) -> dict[Size, Tensor]:
    """The rows of all parts, by size."""
    return {size: torch.cat([part[size] for part in parts]) for size in parts[0]}
