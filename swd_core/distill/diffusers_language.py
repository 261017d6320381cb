"""diffusers' models that read a language model's tokens, behind the trainer's interface."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..families import FLUX2, KREA2, QWEN_IMAGE, ZIMAGE
from ..transfer import sent
from .conditioning import Conditioning
from .diffusers_base import DiffusersModel, DoubleAndSingle


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) as tokens of 2 by 2 cells (B, N, 4 C)."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(tokens: Tensor, height: int) -> Tensor:
    """The inverse; `height` in tokens."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)


def places(*counts: int, device: torch.device) -> Tensor:
    """Coordinates (N, axes) of the places of a grid."""
    axes = [torch.arange(n, device=device) for n in counts]
    return torch.cartesian_prod(*axes).view(-1, len(counts))


@dataclass
class ZImageModel(DiffusersModel):
    """ZImageTransformer2DModel: latents (B, 16, H, W), every prompt with its own number of tokens.

    Picture and text are one sequence, the picture's tokens first, padded to a multiple of 32.
    """

    architecture, blocks = ZIMAGE, "layers"

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        return {"context": (t5_tokens, shape["cap_feat_dim"])}

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        self.count = x.shape[-2] * x.shape[-1] // 4
        x, context = self._cast(x[:, :, None], text.context)
        prompts = [tokens[:n] for tokens, n in zip(context, text.lengths, strict=True)]
        output = self.module(list(x), 1 - sigma, prompts, return_dict=False)[0]
        return -torch.stack(output)[:, :, 0]

    def tokens(self, output: Tensor) -> Tensor:
        return output[:, : self.count]

    def _width(self) -> int:
        return self.module.dim


@dataclass
class QwenImageModel(DiffusersModel):
    """QwenImageTransformer2DModel: latents (B, 16, H, W), packed here."""

    architecture = QWEN_IMAGE

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        return {"context": (t5_tokens, shape["joint_attention_dim"])}

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        text = text.trimmed()
        x, context = self._cast(x, text.context)
        mask = None if text.mask is None else sent(text.mask, self._device)
        output = self.module(
            packed(x),
            encoder_hidden_states=context,
            encoder_hidden_states_mask=mask,
            timestep=sigma,
            img_shapes=[[(1, height, width)]] * len(x),
            return_dict=False,
        )[0]
        return unpacked(output, height)


@dataclass
class Flux2Model(DoubleAndSingle):
    """Flux2Transformer2DModel without embedded guidance (klein): latents (B, 128, H, W).

    A prompt has as many tokens as any other; those that fill it up are read as well.
    """

    architecture = FLUX2

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        return {"context": (t5_tokens, shape["joint_attention_dim"])}

    def check(self) -> None:
        super().check()
        if self.module.config.guidance_embeds:
            raise ValueError(
                "This FLUX.2 has its guidance inside, as dev has; a student of it isn't trained "
                "here. Give FLUX.2 klein base."
            )

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        height, width = x.shape[-2:]
        x, context = self._cast(x, text.context)
        output = self.module(
            rearrange(x, "b c h w -> b (h w) c"),
            encoder_hidden_states=context,
            timestep=sigma,
            img_ids=places(1, height, width, 1, device=x.device),
            txt_ids=places(1, 1, 1, context.shape[1], device=x.device),
            return_dict=False,
        )[0]
        return rearrange(output, "b (h w) c -> b c h w", h=height)


@dataclass
class Krea2Model(DiffusersModel):
    """Krea2Transformer2DModel: latents (B, 16, H, W), packed here.

    The states of several layers of its language model lie side by side in a token of the context.
    """

    architecture = KREA2

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        return {"context": (t5_tokens, shape["num_text_layers"] * shape["text_hidden_dim"])}

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        text = text.trimmed()
        self.count = height * width
        x, context = self._cast(x, text.context)
        ids = torch.zeros(context.shape[1] + self.count, 3, device=x.device)
        ids[-self.count :] = places(1, height, width, device=x.device)
        output = self.module(
            packed(x),
            encoder_hidden_states=context.unflatten(-1, (self.module.config.num_text_layers, -1)),
            timestep=sigma,
            position_ids=ids,
            encoder_attention_mask=None if text.mask is None else sent(text.mask, self._device),
            return_dict=False,
        )[0]
        return unpacked(output, height)

    def tokens(self, output: Tensor) -> Tensor:
        return output[:, -self.count :]

    def _width(self) -> int:
        return self.module.hidden_size
