"""The losses of a training (arXiv 2503.16397, section 4): each one's needs, function and weight.

A new loss of the student is one function below, and one weight of its name in `DistillConfig`. One
that only a single caller has is the same `Loss`, handed to the `Trainer` with its weight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..process import VarianceExploding
from ..transfer import sent
from . import losses
from .adapters import adapter
from .conditioning import Conditioning
from .draws import Draws
from .interface import Batches, DistillConfig, DistillModel
from .precision import single_precision
from .scalewise import GRID


@dataclass
class Seen:
    """What a student's losses may look at; None where none of them needs it.

    real, x0: real latents and the student's prediction (B, C, H, W). text: their conditioning.
    draws: what is drawn at random in this step. teacher, fake: what the guided
    teacher and the fake score make of x0 with noise of `dmd_sigma` on it, without gradient.
    logits: the discriminator's of the same. real_tokens, tokens: the watched block's (B, N, width)
    of both with noise of `mmd_sigma` on them.
    """

    config: DistillConfig
    real: Tensor
    x0: Tensor
    text: Conditioning
    draws: Draws
    teacher: Tensor | None = None
    fake: Tensor | None = None
    logits: Tensor | None = None
    real_tokens: Tensor | None = None
    tokens: Tensor | None = None


class Loss(NamedTuple):
    """A loss of the student, the fields of `Seen` that are made for it, and its weight."""

    function: Callable[[Seen], Tensor]
    needs: frozenset[str] = frozenset()
    weight: float = 1.0


LOSSES: dict[str, Loss] = {}
OF_SCORES = {"teacher", "fake", "logits"}
TRAINED = {"fake", "logits"}  # what the fake score and its head have to be trained for


def loss(*needs: str) -> Callable[[Callable[[Seen], Tensor]], Callable[[Seen], Tensor]]:
    """Makes a function of `Seen` a loss of its name, given the fields that it `needs`."""

    def register(function: Callable[[Seen], Tensor]) -> Callable[[Seen], Tensor]:
        LOSSES[function.__name__] = Loss(function, frozenset(needs))
        return function

    return register


@loss("teacher", "fake")
def dmd(seen: Seen) -> Tensor:
    return losses.dmd_loss(seen.x0, seen.teacher, seen.fake)


@loss("logits")
def gan(seen: Seen) -> Tensor:
    return losses.gan_student_loss(seen.logits)


@loss("real_tokens", "tokens")
def mmd(seen: Seen) -> Tensor:
    c = seen.config
    return losses.mmd_loss(seen.real_tokens, seen.tokens, c.kernel, c.mmd_per_batch)


@loss()
def regression(seen: Seen) -> Tensor:
    return (seen.x0.float() - seen.real.float()).square().mean()


def weighed(config: DistillConfig) -> dict[str, Loss]:
    """The losses that a config gives a weight."""
    weights = {name: getattr(config, name) for name in LOSSES}
    return {name: LOSSES[name]._replace(weight=w) for name, w in weights.items() if w}


@dataclass
class Objective:
    """The losses of one config on a model, its discriminator's head and data.

    Args:
        extra: losses of the caller's own, by name.
    """

    model: DistillModel
    head: nn.Module
    batches: Batches
    config: DistillConfig
    extra: Mapping[str, Loss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next(self.model.module.parameters()).device
        self.process = self.model.process
        chosen = weighed(self.config) | self.extra
        self.scores = {name: loss for name, loss in chosen.items() if loss.needs & OF_SCORES}
        self.others = {name: loss for name, loss in chosen.items() if name not in self.scores}

    @property
    def needs_fake(self) -> bool:
        return any(loss.needs & TRAINED for loss in self.scores.values())

    @property
    def needs_real(self) -> bool:
        """Whether anything is compared with real latents."""
        return bool(_needs(self.scores | self.others) & {"real_tokens", "logits"})

    @property
    def parts(self) -> tuple[Callable[..., dict[str, Tensor]], ...]:
        """The student's losses by name, from (real, x0, text, draws), in parts: each one's graph
        ends at x0 and can be freed before the next one is made."""
        return self.of_scores, self.of_others

    def of_scores(
        self, real: Tensor, x0: Tensor, text: Conditioning, draws: Draws
    ) -> dict[str, Tensor]:
        """What the teacher, the fake score and its head say of x0."""
        seen, needs = Seen(self.config, real, x0, text, draws), _needs(self.scores)
        if not needs:
            return {}
        sigma, (noisy,) = self.renoise(self.config.dmd_sigma, draws, x0)
        if "teacher" in needs:
            seen.teacher = self.guided(noisy, sigma, text, self.config.guidance)
        with adapter(self.model.module, "fake"):
            tokens = None
            if {"fake", "logits"} <= needs:
                seen.fake, tokens = self.model.score_with_features(noisy, sigma, text)
            elif "fake" in needs:
                with torch.no_grad():
                    seen.fake = self.model.predict(noisy, sigma, text)
            elif "logits" in needs:
                tokens = self.model.features(noisy, sigma, text)
        if tokens is not None:
            seen.logits = self._logits(tokens)
        return _values(self.scores, seen)

    def of_others(
        self, real: Tensor, x0: Tensor, text: Conditioning, draws: Draws
    ) -> dict[str, Tensor]:
        """How x0 differs from the real latents, in the watched block's tokens and by itself."""
        seen = Seen(self.config, real, x0, text, draws)
        if _needs(self.others):
            sigma, (noisy_real, noisy) = self.renoise(self.config.mmd_sigma, draws, real, x0)
            with adapter(self.model.module, "fake" if self.needs_fake else None):
                with torch.no_grad():
                    seen.real_tokens = self.model.features(noisy_real, sigma, text)
                seen.tokens = self.model.features(noisy, sigma, text)
        return _values(self.others, seen)

    @torch.no_grad()
    def guided(self, noisy: Tensor, sigma: Tensor, text: Conditioning, scale: float) -> Tensor:
        """The teacher's x0, with classifier-free guidance unless `scale` is 1."""
        with adapter(self.model.module, None):
            guided = self.model.predict(noisy, sigma, text)
            if scale == 1.0:
                return guided
            empty = text.prompted(self.batches.unconditional(len(noisy)))
            plain = self.model.predict(noisy, sigma, empty)
        return plain + scale * (guided - plain)

    def fake(
        self, x0: Tensor, noisy: Tensor, sigma: Tensor, text: Conditioning
    ) -> dict[str, Tensor]:
        """The fake score's diffusion loss on the student's x0, and the head's on the same pass."""
        with adapter(self.model.module, "fake"):
            predicted, tokens = self.model.predict_with_features(noisy, sigma, text)
        error = predicted.float() - x0.float()
        if isinstance(self.process, VarianceExploding):  # in units of the noise
            error = error / sigma.view(-1, *[1] * (error.ndim - 1)).clamp(min=1e-2)
        found = {"fake": error.square().mean()}
        if self.config.gan:
            found["head"] = self._head(tokens, real=False)
        return found

    def real(self, noisy: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """The head's loss on real latents."""
        with adapter(self.model.module, "fake"):
            tokens = self.model.features(noisy, sigma, text)
        return self._head(tokens, real=True)

    def _head(self, tokens: Tensor, real: bool) -> Tensor:
        return self.config.gan_head * losses.gan_head_loss(self._logits(tokens), real)

    def _logits(self, tokens: Tensor) -> Tensor:
        """The head's opinion (B, 1) of tokens (B, N, width), in single precision as published."""
        with single_precision(tokens.device):
            return self.head(tokens.float().mean(1))

    def level(self, t: Tensor) -> Tensor:
        """The process's noise level for times 0..1, on the training's device."""
        return self.model.level(sent(t, self.device))

    def renoise(
        self, low_high: tuple[float, float], draws: Draws, *latents: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """A random level for each picture, and the latents with that much of a common noise."""
        (low, high), grid = low_high, None
        if self.config.levels == "grid" and not isinstance(self.process, VarianceExploding):
            grid = torch.tensor([level for level in GRID if low <= level <= high])
        sigma = self.level(draws.levels(len(latents[0]), grid, low, high))
        noise = sent(draws.noise(latents[0].shape), self.device)
        level = sigma.view(-1, *[1] * (noise.ndim - 1))
        return sigma, [self.process.add_noise(x, noise, level) for x in latents]


def _values(chosen: dict[str, Loss], seen: Seen) -> dict[str, Tensor]:
    return {name: loss.weight * loss.function(seen) for name, loss in chosen.items()}


def _needs(chosen: dict[str, Loss]) -> frozenset[str]:
    return frozenset().union(*(loss.needs for loss in chosen.values()))
