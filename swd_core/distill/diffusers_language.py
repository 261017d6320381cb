"""diffusers' models that read a language model's tokens, behind the trainer's interface."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families import ZIMAGE
from .conditioning import Conditioning
from .diffusers_base import DiffusersModel


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
