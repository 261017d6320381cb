"""The published training step, plainly: what the distillation benchmark compares with.

Follows train.py and src/losses.py of github.com/yandex-research/swd (commit 9c51e19) call by call,
with peft's adapters as there: the fake score is a model of its own, its features come from passes
that end behind the middle block, and one pass gives its prediction and features in its own step.
It imports nothing of swd_core; only the batches that it is given are drawn there.
"""

import copy
import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from einops import rearrange
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SHIFT, LEVELS = 3.0, 28
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]


class Interval(Protocol):
    """One step of the schedule: its latent size and noise level."""

    size: tuple[int, int]
    sigma: float


def lora(rank: int) -> LoraConfig:
    """What the recipe's scripts give peft."""
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)


def discriminator(width: int) -> nn.Sequential:
    """The recipe's head: four layers from the tokens' width to one number."""
    widths = torch.linspace(width, 1, 5, dtype=int).tolist()
    layers = zip(widths, widths[1:], strict=False)
    return nn.Sequential(
        *(nn.Sequential(nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b)) for a, b in layers)
    )


def grid() -> Tensor:
    """Noise levels of the recipe's scheduler for 28 steps, which it shifts once more."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(LEVELS)
    return scheduler.sigmas[:-1]


def patch_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The recipe's MMD with a linear kernel: each channel by itself."""
    squared = (real.float().mean(1) - fake.float().mean(1)) ** 2
    return ((squared + 1e-6).sqrt() - 1e-3).mean()


def expanded(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@dataclass
class Recipe:
    """Student, teacher and fake score of one base, and their losses.

    Args:
        base: frozen, in the number format of the training. batches: as the trainer draws them.
    """

    base: SD3Transformer2DModel
    batches: Any
    steps: list[Interval]
    rank: int
    batch_tokens: int
    fake_steps: int = 5
    lr: float = 5e-6
    guidance: float = 7.0
    step: int = 0

    def __post_init__(self) -> None:
        self.device = self.base.device
        self.base.requires_grad_(False)
        fake = copy.deepcopy(self.base)
        self.student = get_peft_model(self.base, lora(self.rank))
        self.fake = get_peft_model(fake, lora(self.rank))
        self.student.enable_gradient_checkpointing()
        self.middle = (len(self.base.transformer_blocks) - 1) // 2
        self.head = discriminator(self.base.inner_dim).to(self.device)
        self.levels = grid().to(self.device)
        self.trained = [p for p in self.student.parameters() if p.requires_grad]
        self.trained_fake = [p for p in self.fake.parameters() if p.requires_grad]
        self.trained_fake += self.head.parameters()
        self.optimiser = torch.optim.AdamW(self.trained, lr=self.lr)
        self.optimiser_fake = torch.optim.AdamW(self.trained_fake, lr=self.lr)
        empty = self.batches.unconditional(1)
        self.empty = (empty.context, empty.pooled)

    def student_step(self, rng: random.Random) -> None:
        """One step of the student, after the fake score's; each has a batch of its own."""
        *fakes, own = [random.Random(rng.getrandbits(62)) for _ in range(self.fake_steps + 1)]
        for each in fakes:
            self._fake_step(*self._draw(each))
        self._student_step(*self._draw(own))
        self.step += 1

    def _autocast(self) -> AbstractContextManager:
        half = self.base.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _draw(self, rng: random.Random) -> tuple[Interval, Tensor, Tensor, tuple[Tensor, ...]]:
        """An interval, real latents, the noisy input and the text; everything in the base's type"""
        interval, dtype = rng.choice(self.steps), self.base.dtype
        count = max(2, self.batch_tokens * 4 // (interval.size[0] * interval.size[1]))
        real, previous, text = self.batches.draw(interval, count, rng)
        real = real.to(dtype)
        start = real
        if previous is not None:
            start = F.interpolate(previous.to(dtype), size=interval.size, mode="bicubic")
        x_t = self._noised(start, self._sigma(interval, count), torch.randn_like(start))
        return interval, real, x_t, (text.context.to(dtype), text.pooled.to(dtype))

    def _levels(self, first: int, count: int) -> Tensor:
        """Random levels of the grid, from number `first` to the last one."""
        return self.levels[torch.randint(first, LEVELS, (count,), device=self.device)]

    def _sigma(self, interval: Interval, count: int) -> Tensor:
        return torch.full((count,), interval.sigma, device=self.device)

    def _noised(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        level = expanded(sigma).to(x.dtype)
        return (1 - level) * x + level * noise

    def _x0(self, model: nn.Module, x: Tensor, sigma: Tensor, text: tuple[Tensor, ...]) -> Tensor:
        velocity = model(x, *text, timestep=sigma * 1000, return_dict=False)[0]
        return x - expanded(sigma) * velocity

    def _walk(
        self, x: Tensor, sigma: Tensor, text: tuple[Tensor, ...], only_features: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The fake score's x0 and the tokens behind its middle block."""
        module, (context, pooled) = self.fake.base_model.model, text
        tokens = module.pos_embed(x)
        c = module.time_text_embed(sigma * 1000, pooled)
        context = module.context_embedder(context)
        for i, block in enumerate(module.transformer_blocks):
            if torch.is_grad_enabled():
                context, tokens = checkpoint(block, tokens, context, c, use_reentrant=False)
            else:
                context, tokens = block(tokens, context, c)
            if i == self.middle:
                features = tokens
                if only_features:
                    return None, features
        patches = module.proj_out(module.norm_out(tokens, c))
        height = x.shape[-2] // 2
        velocity = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=2, q=2)
        return x - expanded(sigma) * velocity, features

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.float().mean(1))

    def _fake_step(
        self, interval: Interval, real: Tensor, x_t: Tensor, text: tuple[Tensor, ...]
    ) -> None:
        self.optimiser_fake.zero_grad(set_to_none=True)
        sigma = self._sigma(interval, len(real))
        with self._autocast():
            with torch.no_grad():
                made = self._x0(self.student, x_t, sigma, text).to(real.dtype)
            sigma, noise = self._levels(0, len(real)), torch.randn_like(real)
            predicted, features = self._walk(self._noised(made, sigma, noise), sigma, text, False)
            loss = F.mse_loss(predicted.float(), made.float())
            noisy_real = self._noised(real, sigma, noise)
            wanted = self._walk(noisy_real, sigma, text, True)[1]
            judged = F.softplus(self._logits(features)).mean()
            judged = judged + F.softplus(-self._logits(wanted)).mean()
            loss = loss + 1e-2 * judged
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained_fake, 10.0)
        self.optimiser_fake.step()

    def _student_step(
        self, interval: Interval, real: Tensor, x_t: Tensor, text: tuple[Tensor, ...]
    ) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        for p in self.trained_fake:
            p.requires_grad_(False)
        count = len(real)
        with self._autocast():
            made = self._x0(self.student, x_t, self._sigma(interval, count), text)
            made = made.to(real.dtype)
            sigma = self._levels(12, count)
            noisy = self._noised(made, sigma, torch.randn_like(made))
            with torch.no_grad():
                with self.student.disable_adapter():
                    guided = self._x0(self.student, noisy, sigma, text)
                    empty = tuple(t.expand(count, *t.shape[1:]).to(made.dtype) for t in self.empty)
                    plain = self._x0(self.student, noisy, sigma, empty)
                guided = plain + self.guidance * (guided - plain)
                fake = self._walk(noisy, sigma, text, False)[0]
                weight = (made - guided).abs().mean(dim=(1, 2, 3), keepdim=True)
                gradient = torch.nan_to_num((fake - guided) / weight)
            loss = 0.5 * F.mse_loss(made.float(), (made - gradient).detach().float())
            features = self._walk(noisy, sigma, text, True)[1]
            loss = loss + 5e-3 * F.softplus(-self._logits(features)).mean()
            sigma, noise = self._levels(18, count), torch.randn_like(made)
            features = self._walk(self._noised(made, sigma, noise), sigma, text, True)[1]
            wanted = self._walk(self._noised(real, sigma, noise), sigma, text, True)[1]
            loss = loss + patch_loss(wanted, features)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 10.0)
        self.optimiser.step()
        for p in self.trained_fake:
            p.requires_grad_(True)
