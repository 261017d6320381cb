"""What a student of scenes is trained on: latents of painted scenes, or pairs of its first step."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distill.conditioning import Conditioning
from ..distill.draws import Draws
from ..distill.scalewise import Interval
from ..distill.trainer import Trainer
from ..resample import downscale, upscale
from ..scenes.captions import caption
from ..scenes.catalogue import scene_of
from ..scenes.text import MAX_TOKENS, PAD, SceneTextEncoder, SceneTokenizer
from ..transfer import sent
from .latents import LatentShards
from .pairs import Pairs


@dataclass
class SceneBatches:
    """Latents of painted scenes at every size with freshly drawn captions.

    Only pictures that are encoded at every size are drawn; `count` is their number.

    Args:
        latent_space: the smaller sizes are shrunk from the largest size's latents, not from the
            pictures; the paper advises against it.
        pairs: what the first step learns from instead of pictures (`PairedFirst`).
        first: share of batches, 0 to 1, that are the first step's whatever the others are.
        early: share of batches that are of the first two steps alone, which is what a draft is.

    Raises:
        ValueError: if there are no such pictures.
    """

    data: LatentShards
    tokenizer: SceneTokenizer
    text: SceneTextEncoder
    schedule: list[Interval]
    latent_space: bool = False
    pairs: Pairs | None = None
    first: float = 0.0
    early: float = 0.0

    def __post_init__(self) -> None:
        sides = sorted({step.size[0] for step in self.schedule})
        needed = sides[-1:] if self.latent_space else sides
        self.count = min(self.data.counts.get(side, 0) for side in needed)
        if not self.count:
            raise ValueError(
                f"{self.data.folder} has no pictures that are encoded at all of {needed} cells: "
                "run `python -m swd_core.lab.latents` first."
            )

    def steps(self, rng: random.Random) -> list[Interval]:
        early = self.early and rng.random() < self.early
        if self.first and rng.random() < self.first:
            return self.schedule[:1]
        return self.schedule[:2] if early else self.schedule

    def draw(
        self, interval: Interval, count: int, rng: random.Random, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        """See `Batches`; with pairs, the first step's noise stands for the size before."""
        if self.pairs is not None and interval.previous is None:
            return self._paired(self.pairs, count, rng, part)
        chosen = [rng.randrange(self.count) for _ in range(count)]
        prompts = [caption(scene_of(self.data.seed, i), rng) for i in chosen][part]
        real = self._latents(interval.size, chosen[part])
        previous = self._latents(interval.previous, chosen[part]) if interval.previous else None
        return real, previous, self._encoded(prompts)

    def _paired(
        self, pairs: Pairs, count: int, rng: random.Random, part: slice
    ) -> tuple[Tensor, Tensor, Conditioning]:
        rows = [rng.randrange(len(pairs.latents)) for _ in range(count)][part]
        device = self.data.device
        with torch.no_grad():
            text = Conditioning(*self.text(sent(pairs.prompts[rows], device)))
        return sent(pairs.latents[rows].float(), device), sent(pairs.noise(rows), device), text

    def _latents(self, size: tuple[int, int], chosen: list[int]) -> Tensor:
        side = self.schedule[-1].size[0] if self.latent_space else size[0]
        rows = sent(torch.tensor(chosen), self.data.device)
        return downscale(self.data.latents[side][rows].float(), size)

    @torch.no_grad()
    def _encoded(self, prompts: list[str]) -> Conditioning:
        ids = torch.tensor([self.tokenizer.encode(prompt)[0] for prompt in prompts])
        return Conditioning(*self.text(sent(ids, self.data.device)))

    @torch.no_grad()
    def unconditional(self, count: int) -> Conditioning:
        ids = torch.full((count, MAX_TOKENS), PAD, device=self.data.device)
        return Conditioning(*self.text(ids))


class NoiseFirst(Trainer):
    """Trains a student for pictures that are noised before they are enlarged."""

    def input(
        self, interval: Interval, real: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        if previous is None:
            return super().input(interval, real, previous, draws)
        noise = self._noise(previous.shape, draws)
        return upscale(self.process.add_noise(previous, noise, interval.sigma), interval.size)


class PairedFirst(Trainer):
    """Trains a student whose first step gets the noise of its pairs."""

    def input(
        self, interval: Interval, real: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        if interval.previous is None and previous is not None:
            return previous
        return super().input(interval, real, previous, draws)
