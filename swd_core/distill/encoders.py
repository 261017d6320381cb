"""How diffusers' pipelines encode prompts and pictures, by architecture."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..families import FLUX, FLUX2, KREA2, QWEN_IMAGE, SD3, SDXL, ZIMAGE
from .conditioning import Conditioning, with_mask


def _sd3(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    context, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens, **where
    )
    return Conditioning(context, pooled)


def _flux(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    context, pooled, _ = pipe.encode_prompt(prompts, None, max_sequence_length=tokens, **where)
    return Conditioning(context, pooled)


def _sdxl(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    context, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, **where)
    return Conditioning(context, pooled)


def _zimage(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    found, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=tokens, **where
    )
    return with_mask(found, tokens)


def _qwen_image(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    context, mask = pipe.encode_prompt(prompts, max_sequence_length=tokens, **where)
    return _own_tokens(context, mask, tokens)


def _flux2(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    context, _ = pipe.encode_prompt(prompts, max_sequence_length=tokens, **where)
    return Conditioning(context)  # it reads what fills a prompt up, too


def _krea2(pipe: Any, prompts: list[str], tokens: int, **where: Any) -> Conditioning:
    states, mask = pipe.encode_prompt(prompts, max_sequence_length=tokens, **where)
    return _own_tokens(states.flatten(2), mask, tokens)


def _own_tokens(context: Tensor, mask: Tensor | None, length: int) -> Conditioning:
    """The tokens that count, wherever the pipeline has put others between them."""
    if mask is None:
        return with_mask(list(context), length)
    return with_mask(
        [tokens[kept] for tokens, kept in zip(context, mask.bool(), strict=True)], length
    )


_READERS: dict[str, Callable[..., Conditioning]] = {
    SD3.name: _sd3, FLUX.name: _flux, SDXL.name: _sdxl, ZIMAGE.name: _zimage,
    QWEN_IMAGE.name: _qwen_image, FLUX2.name: _flux2, KREA2.name: _krea2,
}  # fmt: skip


@torch.no_grad()
def read_prompts(
    kind: str, pipe: Any, prompts: list[str], tokens: int, device: torch.device
) -> Conditioning:
    """What the model of a pipeline reads of prompts.

    Args:
        kind: the architecture's name. tokens: that a prompt may have, where the pipeline lets one
            choose.
    """
    return _READERS[kind](pipe, list(prompts), tokens, device=device)


class DiffusersVae:
    """The VAE of a diffusers model, in the model's units."""

    def __init__(self, vae: Any, device: torch.device):
        upcast = getattr(vae.config, "force_upcast", False)
        self.vae = vae.to(device, torch.float32 if upcast else vae.dtype)
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0

    def latents(self, pictures: Tensor) -> Tensor:
        scaled = pictures.to(self.vae.device, self.vae.dtype) * 2 - 1
        coded = self.vae.encode(scaled).latent_dist.mode()
        return (coded.float() - self.shift) * self.vae.config.scaling_factor

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents to pictures (B, H, W, 3) in [0, 1]."""
        scaled = latents / self.vae.config.scaling_factor + self.shift
        decoded = self.vae.decode(scaled.to(self.vae.device, self.vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


class VideoVae(DiffusersVae):
    """Of Qwen-Image and Krea 2: a picture is a video of one frame, each channel has its scale."""

    def __init__(self, vae: Any, device: torch.device):
        super().__init__(vae, device)
        mean, std = torch.tensor([vae.config.latents_mean, vae.config.latents_std], device=device)
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def latents(self, pictures: Tensor) -> Tensor:
        scaled = pictures.to(self.vae.device, self.vae.dtype)[:, :, None] * 2 - 1
        coded = self.vae.encode(scaled).latent_dist.mode()[:, :, 0]
        return (coded.float() - self.mean) / self.std

    def pictures(self, latents: Tensor) -> Tensor:
        raw = latents.to(self.vae.device) * self.std + self.mean
        decoded = self.vae.decode(raw[:, :, None].to(self.vae.dtype)).sample[:, :, 0]
        return (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


class PackedVae(DiffusersVae):
    """Of FLUX.2: 2 by 2 cells are one of four times the channels, each of which has its scale."""

    def __init__(self, vae: Any, device: torch.device):
        super().__init__(vae, device)
        variance = vae.bn.running_var.float().view(1, -1, 1, 1)
        self.mean = vae.bn.running_mean.float().view(1, -1, 1, 1).to(device)
        self.std = (variance + vae.config.batch_norm_eps).sqrt().to(device)

    def latents(self, pictures: Tensor) -> Tensor:
        scaled = pictures.to(self.vae.device, self.vae.dtype) * 2 - 1
        coded = self.vae.encode(scaled).latent_dist.mode().float()
        packed = rearrange(coded, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        return (packed - self.mean) / self.std

    def pictures(self, latents: Tensor) -> Tensor:
        packed = latents.to(self.vae.device) * self.std + self.mean
        raw = rearrange(packed, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
        decoded = self.vae.decode(raw.to(self.vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


VAES = {
    QWEN_IMAGE.name: ("AutoencoderKLQwenImage", VideoVae),
    KREA2.name: ("AutoencoderKLQwenImage", VideoVae),
    FLUX2.name: ("AutoencoderKLFlux2", PackedVae),
}


def vae_of(kind: str) -> tuple[str, type[DiffusersVae]]:
    """diffusers' class for an architecture's VAE, and ours around it."""
    return VAES.get(kind, ("AutoencoderKL", DiffusersVae))
