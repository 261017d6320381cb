"""What the distillation benchmark trains: a small random SD3 model, and its pictures and texts."""

import random
from dataclasses import dataclass
from typing import Any

import paired  # noqa: F401 - finds swd_core for whoever runs a file of this folder
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from swd_core.distill.conditioning import Conditioning
from swd_core.distill.precision import has_fast_bfloat16
from swd_core.distill.scalewise import Interval, intervals
from swd_core.transfer import sent

SIGMAS = (1.0, 0.8959, 0.7371, 0.6022)
TOKENS, COUNT = 77, 8


@dataclass(frozen=True)
class Scale:
    """How large everything is, and where; sides in latent cells, the last the pictures' own."""

    width: int = 384
    layers: int = 8
    sides: tuple[int, ...] = (16, 20, 24, 32)
    vae: tuple[int, ...] = (64, 128, 256, 256)
    text_layers: int = 12
    device: str = "cpu"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(side, side) for side in self.sides]

    @property
    def intervals(self) -> list[Interval]:
        return intervals(self.sizes, SIGMAS)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if has_fast_bfloat16(self.device) else torch.float32


SMALL = Scale(64, 2, (4, 6, 8, 10), (32, 32, 32, 32), 2)


def small_sd3(scale: Scale) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    width = scale.width
    with torch.device(scale.device):
        model = SD3Transformer2DModel(
            sample_size=32, num_layers=scale.layers, attention_head_dim=64,
            num_attention_heads=width // 64, in_channels=16, joint_attention_dim=width,
            caption_projection_dim=width, pooled_projection_dim=width, pos_embed_max_size=32,
            qk_norm="rms_norm",
        )  # fmt: skip
    return model.to(scale.dtype)


class Encoders:
    """A VAE of SD3's shape at half its width, and a CLIP text encoder."""

    def __init__(self, scale: Scale) -> None:
        torch.manual_seed(1)
        config = CLIPTextConfig(
            hidden_size=scale.width, intermediate_size=4 * scale.width,
            num_attention_heads=scale.width // 64, num_hidden_layers=scale.text_layers,
            projection_dim=scale.width,
        )  # fmt: skip
        with torch.device(scale.device):
            vae = AutoencoderKL(
                block_out_channels=scale.vae, latent_channels=16, layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )  # fmt: skip
            clip = CLIPTextModelWithProjection(config)
        self.vae, self.clip = vae.eval().to(scale.dtype), clip.eval().to(scale.dtype)

    @torch.no_grad()
    def text(self, ids: Tensor) -> Conditioning:
        output = self.clip(ids)
        return Conditioning(output.last_hidden_state, output.text_embeds)

    @torch.no_grad()
    def latents(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        small = F.interpolate(pictures, size=(size[0] * 8, size[1] * 8), mode="area")
        return self.vae.encode((small * 2 - 1).to(self.vae.dtype)).latent_dist.mode()


def drawn(among: int, count: int, rng: random.Random, device: torch.device) -> Tensor:
    """Numbers of `count` pictures, where those are."""
    return sent(torch.tensor([rng.randrange(among) for _ in range(count)]), device)


@dataclass
class EveryStep:
    """The recipe's data: pictures and token ids, encoded anew for every batch."""

    encoders: Encoders
    pictures: Tensor
    ids: Tensor

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        chosen = drawn(len(self.ids), count, rng, self.ids.device)
        pictures = self.pictures[chosen]
        previous = None
        if interval.previous:
            previous = self.encoders.latents(pictures, interval.previous)
        real = self.encoders.latents(pictures, interval.size)
        return real, previous, self.encoders.text(self.ids[chosen])

    def unconditional(self, count: int) -> Any:
        return self.encoders.text(self.ids.new_zeros(count, TOKENS))


@dataclass
class Prepared:
    """Latents of every size and the texts; `empty` is the empty prompt's."""

    latents: dict[tuple[int, int], Tensor]
    text: Conditioning
    empty: Conditioning

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        context = self.text.context
        chosen = drawn(len(context), count, rng, context.device)
        previous = self.latents[interval.previous][chosen] if interval.previous else None
        return self.latents[interval.size][chosen], previous, self.text.map(lambda t: t[chosen])

    def unconditional(self, count: int) -> Any:
        return self.empty.expand(count)


@dataclass
class AllSteps:
    """Either of the two as the trainer's `Batches`, in one process."""

    data: EveryStep | Prepared
    intervals: list[Interval]

    def steps(self, rng: random.Random) -> list[Interval]:
        return self.intervals

    def draw(self, interval: Interval, count: int, rng: random.Random, part: slice) -> Any:
        return self.data.draw(interval, count, rng)

    def unconditional(self, count: int) -> Any:
        return self.data.unconditional(count)


def pictures(scale: Scale) -> EveryStep:
    generator = torch.Generator().manual_seed(2)
    side = 8 * scale.sides[-1]
    ids = torch.randint(0, 49000, (COUNT, TOKENS), generator=generator)
    drawn = torch.rand(COUNT, 3, side, side, generator=generator)
    return EveryStep(Encoders(scale), drawn.to(scale.device), ids.to(scale.device))


def prepare(data: EveryStep, scale: Scale) -> Prepared:
    """The same, encoded once."""
    latents = {size: data.encoders.latents(data.pictures, size) for size in scale.sizes}
    return Prepared(latents, data.encoders.text(data.ids), data.unconditional(1))


def made_up(scale: Scale) -> Prepared:
    """Numbers of the same shapes: memory doesn't depend on them."""

    def some(*shape: int) -> Tensor:
        return torch.randn(COUNT, *shape, device=scale.device)

    latents = {size: some(16, *size) for size in scale.sizes}
    text = Conditioning(some(TOKENS, scale.width), some(scale.width))
    return Prepared(latents, text, text.map(lambda t: t[:1]))
