"""The teacher's pictures made while a training goes on: what prompts alone are compared with."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..noise import stream_seed
from ..process import VarianceExploding
from .buckets import shrink
from .conditioning import Conditioning, joined
from .draws import Draws
from .interface import Batches
from .objective import Objective
from .scalewise import Interval, shifted
from .transfer import sent
from .world import World

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


@dataclass
class Taught:
    """A pool of pictures that the teacher makes of the training's prompts, a few new in every step.

    It is made group by group, each as large as the training's own batches at the finished size. A
    group follows from the seed and its number, and which groups there are from the step: a
    training that goes on makes its pool again and has the same bits.

    Args:
        batches: of prompts alone. autoencoder: pictures are shrunk in pixels, as prepared ones.
        group: pictures of one process in a group. pool: how many there are at least. renewed: how
            many of them each step exchanges. steps: of Euler, evenly spaced times. guidance: of
            classifier-free guidance; 1 for none.
    """

    objective: Objective
    batches: Batches
    autoencoder: Autoencoder
    group: int
    pool: int
    renewed: int
    steps: int
    guidance: float
    seed: int
    world: World = field(default_factory=World)
    _groups: dict[int, Group] = field(default_factory=dict)
    _all: Group | None = None

    def numbers(self, step: int) -> range:
        """The groups of a step."""
        size = self.group * self.world.size
        first = step * self.renewed // size
        return range(first, first + -(-self.pool // size))

    def draw(
        self, step: int, interval: Interval, count: int, part: slice, draws: Draws
    ) -> tuple[Tensor, Conditioning]:
        """Latents at the interval's size and their text: of a batch of `count` the rows `part`."""
        if list(numbers := self.numbers(step)) != list(self._groups):
            self._groups = {i: self._groups.get(i) or self._made(i) for i in numbers}
            self._all = _together(list(self._groups.values()))
        latents, text = self._all.latents[interval.size], self._all.text
        chosen = torch.randint(len(latents), (count,), generator=draws.generator)[part].tolist()
        return latents[chosen], text.rows(chosen).sent(latents.device)

    @torch.no_grad()
    def _made(self, number: int) -> Group:
        draws = Draws(stream_seed(self.seed, number, 0), self.world)
        total = self.group * self.world.size
        steps = self.batches.steps(draws.rng)
        like, _, text = self.batches.draw(steps[-1], total, draws.rng)
        own = list(range(total))[self.world.part(total)]
        noise = sent(draws.noise((self.group, *like.shape[1:])), like.device)
        latents = self._at([s.size for s in steps], self._sampled(noise, text.rows(own)))
        every = {size: self.world.gathered(rows) for size, rows in latents.items()}
        return Group(every, text.map(Tensor.cpu))

    def _sampled(self, noise: Tensor, text: Conditioning) -> Tensor:
        """The guided teacher's x0 (B, C, H, W) by Euler steps from noise."""
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

    def _at(self, sizes: list[Size], x0: Tensor) -> dict[Size, Tensor]:
        """The same pictures at every size; smaller ones by way of their pixels."""
        found: dict[Size, list[Tensor]] = {size: [] for size in sizes}
        with torch.autocast(x0.device.type, enabled=False):
            for one in x0.split(1):  # one by one, for the memory
                pixels = self.autoencoder.pictures(one).permute(0, 3, 1, 2)
                cell = pixels.shape[-1] // one.shape[-1]
                for height, width in found:
                    small = shrink(pixels, (height * cell, width * cell))
                    same = small is pixels
                    latents = one if same else self.autoencoder.latents(small)
                    found[height, width].append(latents.to(one))
        return {size: torch.cat(parts) for size, parts in found.items()}


def _together(groups: list[Group]) -> Group:
    sizes = groups[0].latents
    latents = {size: torch.cat([group.latents[size] for group in groups]) for size in sizes}
    return Group(latents, joined(group.text for group in groups))
