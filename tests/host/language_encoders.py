"""Small random text encoders and VAEs of Z-Image and Qwen-Image, of the host's own classes.

The tokenizers are the host's own, whole.
"""

import importlib
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.ldm.wan.vae
import comfy.sd
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

# Module of the host, its tokenizer, and its name for the language model.
ENCODERS = {
    "zimage": ("z_image", "ZImageTokenizer", "qwen3_4b"),
    "qwen-image": ("qwen_image", "QwenImageTokenizer", "qwen25_7b"),
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip


def random_state(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(w.shape, generator=generator) / max(1, w[0].numel()) ** 0.5
        if w.ndim > 1
        else 1 + 0.1 * torch.randn(w.shape, generator=generator)
        for name, w in module.state_dict().items()
    }


@lru_cache(maxsize=2)
def clip(family: str) -> comfy.sd.CLIP:
    """The host's CLIP of a family; skips where the host has none."""
    module, tokenizer, name = ENCODERS[family]
    try:
        module = importlib.import_module(f"comfy.text_encoders.{module}")
    except ImportError:
        pytest.skip(f"ComfyUI 0.3.64 has no {family}")
    target = SimpleNamespace(params={}, clip=module.te(), tokenizer=getattr(module, tokenizer))
    options: dict[str, Any] = {"model_name": name, f"{name}_model_config": dict(SMALL)}
    # What sees pictures has one size, 600 million weights; no text passes through it.
    seeing = "comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer"
    with mock.patch(seeing, lambda **_: nn.Module()):
        made = comfy.sd.CLIP(target, parameters=1, model_options=options)
    made.cond_stage_model.load_state_dict(random_state(made.cond_stage_model))
    return made


@lru_cache(maxsize=2)
def vae(family: str) -> comfy.sd.VAE:
    """The host's VAE of a file: FLUX.1's kind for Z-Image, Wan 2.1's for Qwen-Image.

    In float32: on a card the host would take bfloat16, whose rounding shows in a batch's numbers.
    """
    torch.manual_seed(3)
    if family == "zimage":
        module: nn.Module = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), latent_channels=16, layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    else:
        module = comfy.ldm.wan.vae.WanVAE(
            dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True],
        )  # fmt: skip
        module.load_state_dict(random_state(module))
    return comfy.sd.VAE(sd=module.state_dict(), dtype=torch.float32)
