"""How diffusers' pipelines encode prompts, by architecture."""

from collections.abc import Callable
from typing import Any

import torch

from ..families import FLUX, SD3, SDXL, ZIMAGE
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


_READERS: dict[str, Callable[..., Conditioning]] = {
    SD3.name: _sd3, FLUX.name: _flux, SDXL.name: _sdxl, ZIMAGE.name: _zimage,
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
