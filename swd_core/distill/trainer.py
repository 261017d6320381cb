"""Distils a teacher into a scale-wise student (arXiv 2503.16397, section 4): MMD + DMD + GAN."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import adapter, adapter_parameters, adapter_state
from .checkpoint import load_checkpoint, save_checkpoint
from .losses import dmd_loss, gan_head_loss, gan_student_loss, mmd_loss
from .scalewise import PROCESS, Interval, student_input, uniform_sigma

log = logging.getLogger(__name__)
Conditioning = tuple[Tensor, ...]


class DistillModel(Protocol):
    """What the trainer needs of a model; adapters 'student' and 'fake' are already in `module`."""

    module: nn.Module
    width: int

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """x0 from x_t with the active adapter."""

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """Tokens (B, N, width) of the middle block with the active adapter."""

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Both from one pass."""


class Batches(Protocol):
    """Draws training data for one interval."""

    def draw(
        self, interval: Interval, count: int, rng: random.Random
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        """Real latents at the interval's size, at the size before, and their conditioning."""

    def unconditional(self, count: int) -> Conditioning:
        """Conditioning of the empty prompt."""


@dataclass(frozen=True)
class DistillConfig:
    """Weights and rates; the defaults are the paper's ratios at a rate that suits small models."""

    mmd: float = 1.0
    dmd: float = 1.0
    gan: float = 5e-3
    gan_head: float = 1e-2
    kernel: str = "linear"
    mmd_per_batch: bool = False
    mmd_sigma: tuple[float, float] = (0.0, 0.6)
    dmd_sigma: tuple[float, float] = (0.02, 0.8)
    guidance: float = 4.5
    fake_steps: int = 2
    lr: float = 5e-4
    lr_fake: float = 1e-3
    batch_tokens: int = 4096
    clip: float = 1.0
    ema: float = 0.995
    warmup: int = 50
    seed: int = 0


def discriminator_head(width: int, layers: int = 4) -> nn.Sequential:
    """MLP on mean-pooled tokens; widths fall evenly from `width` to 1."""
    widths = torch.linspace(width, 1, layers + 1).int().tolist()
    parts = [
        nn.Sequential(nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b))
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    return nn.Sequential(*parts)


@dataclass
class Trainer:
    """The alternating optimisation of fake score, discriminator head and student."""

    model: DistillModel
    batches: Batches
    steps: list[Interval]
    config: DistillConfig
    patch: int = 2
    step: int = 0
    seconds: float = 0.0
    _sums: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        module = self.model.module
        self.head = discriminator_head(self.model.width)
        self.student = adapter_parameters(module, "student")
        self.fake = [*adapter_parameters(module, "fake"), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.student, lr=self.config.lr, betas=(0.9, 0.99), weight_decay=0
        )
        self.optimiser_fake = torch.optim.AdamW(
            self.fake, lr=self.config.lr_fake, betas=(0.9, 0.99), weight_decay=0
        )
        self.average = [p.detach().clone() for p in self.student]

    @property
    def needs_fake(self) -> bool:
        return self.config.dmd > 0 or self.config.gan > 0

    def student_step(self, rng: random.Random) -> None:
        """One step of the student, after the fake score's own steps."""
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        if self.needs_fake:
            for _ in range(self.config.fake_steps):
                self._fake_step(rng, generator)
        interval = rng.choice(self.steps)
        real, fake, text = self._generate(interval, rng, generator)
        losses = self._student_losses(real, fake, text, generator)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"The loss is not finite at step {self.step} ({losses}). The last checkpoint is "
                "whole: resume from it with a lower rate."
            )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.student, self.config.clip)
        self.optimiser.step()
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.student], 1 - decay)
        for name, value in losses.items():
            self._note(name, value.item())

    def _generate(
        self, interval: Interval, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """Real latents of an interval, the student's prediction for them, their conditioning."""
        height, width = interval.size
        count = max(2, self.config.batch_tokens * self.patch**2 // (height * width))
        real, previous, text = self.batches.draw(interval, count, rng)
        noise = torch.randn(real.shape, generator=generator)
        x_t = student_input(interval, real, previous, noise)
        with adapter(self.model.module, "student"):
            x0 = self.model.predict(x_t, torch.full((count,), interval.sigma), text)
        return real, x0, text

    def _renoise(self, low_high: tuple[float, float], generator: torch.Generator, *latents: Tensor):
        """The latents at one common random level with common noise, and that level."""
        sigma = uniform_sigma(latents[0].shape[0], *low_high, generator)
        noise = torch.randn(latents[0].shape, generator=generator)
        level = sigma.view(-1, *[1] * (noise.ndim - 1))
        return sigma, [PROCESS.add_noise(x, noise, level) for x in latents]

    def _student_losses(
        self, real: Tensor, x0: Tensor, text: Conditioning, generator: torch.Generator
    ) -> dict[str, Tensor]:
        c, module, losses = self.config, self.model.module, {}
        if self.needs_fake:
            sigma, (noisy,) = self._renoise(c.dmd_sigma, generator, x0)
            with torch.no_grad():
                with adapter(module, None):
                    guided = self.model.predict(noisy, sigma, text)
                    if c.guidance != 1.0:
                        plain = self.model.predict(
                            noisy, sigma, self.batches.unconditional(len(x0))
                        )
                        guided = plain + c.guidance * (guided - plain)
                with adapter(module, "fake"):
                    fake = self.model.predict(noisy, sigma, text)
            if c.dmd:
                losses["dmd"] = c.dmd * dmd_loss(x0, guided, fake)
            if c.gan:
                with adapter(module, "fake"):
                    tokens = self.model.features(noisy, sigma, text)
                losses["gan"] = c.gan * gan_student_loss(self.head(tokens.mean(1)))
        if c.mmd:
            sigma, (noisy_real, noisy) = self._renoise(c.mmd_sigma, generator, real, x0)
            with adapter(module, "fake" if self.needs_fake else None):
                with torch.no_grad():
                    wanted = self.model.features(noisy_real, sigma, text)
                tokens = self.model.features(noisy, sigma, text)
            losses["mmd"] = c.mmd * mmd_loss(wanted, tokens, c.kernel, c.mmd_per_batch)
        return losses

    def _fake_step(self, rng: random.Random, generator: torch.Generator) -> None:
        """One step of the fake score (a diffusion loss on the student's output) and of the head."""
        interval = rng.choice(self.steps)
        with torch.no_grad():
            real, x0, text = self._generate(interval, rng, generator)
        sigma, (noisy, noisy_real) = self._renoise((0.0, 1.0), generator, x0, real)
        with adapter(self.model.module, "fake"):
            predicted, tokens = self.model.predict_with_features(noisy, sigma, text)
            loss = F.mse_loss(predicted.float(), x0.float())
            if self.config.gan:
                wanted = self.model.features(noisy_real, sigma, text)
                head = gan_head_loss(self.head(wanted.mean(1)), self.head(tokens.mean(1)))
                self._note("head", head.item())
                loss = loss + self.config.gan_head * head
        self.optimiser_fake.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.fake, self.config.clip)
        self.optimiser_fake.step()
        self._note("fake", loss.item())

    def _note(self, name: str, value: float) -> None:
        self._sums.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Mean of each loss since the last call."""
        means = {name: round(sum(values) / len(values), 5) for name, values in self._sums.items()}
        self._sums.clear()
        return means

    def run(
        self,
        checkpoint: Path,
        *,
        minutes: float,
        decay: float = 0.3,
        log_every: int = 25,
        save_seconds: float = 240,
        on_save: Callable[["Trainer"], None] | None = None,
    ) -> None:
        """Trains for `minutes` of wall time in all; goes on from `checkpoint` if there is one."""
        self.resume(checkpoint)
        start = time.monotonic() - self.seconds
        last_save = time.monotonic()
        while (elapsed := time.monotonic() - start) < 60 * minutes:
            left = max(0.02, (1 - elapsed / (60 * minutes)) / decay)
            factor = min(1.0, (self.step + 1) / self.config.warmup, left)
            self.optimiser.param_groups[0]["lr"] = self.config.lr * factor
            self.student_step(random.Random(self.config.seed * 1_000_003 + self.step))
            if self.step % log_every == 0:
                log.info("step %d %.1f min %s", self.step, elapsed / 60, self.means())
            if time.monotonic() - last_save > save_seconds:
                self.seconds = time.monotonic() - start
                self.save(checkpoint)
                if on_save is not None:
                    on_save(self)
                last_save = time.monotonic()
        self.seconds = time.monotonic() - start
        self.save(checkpoint)

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            {
                "student": [p.detach() for p in self.student],
                "fake": [p.detach() for p in self.fake],
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "optimiser_fake": self.optimiser_fake.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "config": asdict(self.config),
            },
        )

    def resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state is None:
            return
        with torch.no_grad():
            for now, saved in zip(
                (*self.student, *self.fake), (*state["student"], *state["fake"]), strict=True
            ):
                now.copy_(saved)
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.optimiser_fake.load_state_dict(state["optimiser_fake"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("resumed at step %d, %.1f min", self.step, self.seconds / 60)

    def averaged_student(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The EMA of the student's adapter: layer name -> (down, up)."""
        names = adapter_state(self.model.module, "student")
        values = iter(self.average)
        return {name: (next(values), next(values)) for name in names}
