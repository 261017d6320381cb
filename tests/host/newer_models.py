"""Small random models of the families that read a language model's tokens: see small_models.py.

The weights are diffusers' and converted by the host's own maps, so that neither side of a
comparison is ours.
"""

from functools import lru_cache
from typing import Any

import comfy.supported_models
import comfy.utils
import diffusers
import pytest
import torch
from diffusers.models.transformers import transformer_z_image
from small_models import TOKENS, Kind, patcher
from torch import Tensor, nn

KINDS = {
    "zimage": Kind(16, 64, 0, 2, 0.3611, 0.1159), "qwen-image": Kind(16, 64, 0, 2, 1.0),
    "flux2-klein": Kind(128, 64, 0, 1, 1.0), "krea2": Kind(16, 128, 0, 2, 1.0),
}  # fmt: skip
# Host class, and the configuration that it would find by itself in weights of the published size.
CONFIGS = {
    "zimage": ("ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 384, "n_layers": 2,
        "n_refiner_layers": 1, "cap_feat_dim": 64, "qk_norm": True, "n_heads": 12,
        "n_kv_heads": 12, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }),
    "qwen-image": ("QwenImage", {
        "image_model": "qwen_image", "num_layers": 2, "num_attention_heads": 1,
        "joint_attention_dim": 64, "in_channels": 64,
    }),
    "flux2-klein": ("Flux2", {
        "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": 1, "hidden_size": 128,
        "mlp_ratio": 3.0, "theta": 2000, "out_channels": 128, "in_channels": 128,
        "context_in_dim": 64, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
        "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
        "txt_ids_dims": [3], "patch_size": 1, "vec_in_dim": None, "guidance_embed": False,
        "depth": 2, "depth_single_blocks": 1,
    }),
    "krea2": ("Krea2", {
        "image_model": "krea2", "features": 256, "tdim": 64, "txtdim": 64, "heads": 4,
        "kvheads": 2, "layers": 2, "patch": 2, "channels": 16, "txtlayers": 2, "txtheads": 1,
        "txtkvheads": 1,
    }),
}  # fmt: skip


def _zimage() -> nn.Module:
    module = diffusers.ZImageTransformer2DModel(
        dim=384, n_layers=2, n_refiner_layers=1, n_heads=12, n_kv_heads=12, cap_feat_dim=64,
        axes_dims=[8, 12, 12], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    # The host's is as wide as the model, up to 1024; of the published width that is the same.
    module.t_embedder = transformer_z_image.TimestepEmbedder(256, mid_size=384)
    return module


def _qwen() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=64
    )


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        num_layers=2, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=64, guidance_embeds=False,
    )  # fmt: skip


def _krea2() -> nn.Module:
    return diffusers.Krea2Transformer2DModel(
        num_layers=2, attention_head_dim=64, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=768, timestep_embed_dim=64, text_hidden_dim=64, num_text_layers=2,
        text_num_attention_heads=1, text_num_key_value_heads=1, text_intermediate_size=256,
        axes_dims_rope=(16, 24, 24),
    )  # fmt: skip


BUILDERS = {"zimage": _zimage, "qwen-image": _qwen, "flux2-klein": _flux2, "krea2": _krea2}


@lru_cache(maxsize=4)
def reference(family: str) -> nn.Module:
    """The diffusers module, float32, always the same weights; wrap or change only a copy."""
    torch.manual_seed(7)
    module = BUILDERS[family]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or len(parameter) < 7:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def _placed(names: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' weights under the host's names, by the host's own map."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        place = names[name]
        if isinstance(place, str):
            found[place] = value
            continue
        key, part, *change = place
        value = change[0](value) if change else value
        if part is None:
            found[key] = value
            continue
        _, first, rows = part
        whole = found.setdefault(key, value.new_zeros(0, *value.shape[1:]))
        if len(whole) < first + rows:
            more = value.new_zeros(first + rows - len(whole), *value.shape[1:])
            found[key] = whole = torch.cat([whole, more])
        whole[first : first + rows] = value
    return found


# What the host's maps, which are for LoRA layers, don't hold.
FLUX2_NAMES = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}
KREA2_NAMES = (
    ("text_fusion.", "txtfusion."), ("transformer_blocks.", "blocks."),
    ("final_layer.scale_shift_table", "last.modulation.lin"), ("scale_shift_table", "mod.lin"),
    ("final_layer.norm.weight", "last.norm.scale"), ("norm1.weight", "prenorm.scale"),
    ("norm2.weight", "postnorm.scale"), ("norm_q.weight", "qknorm.qnorm.scale"),
    ("norm_k.weight", "qknorm.knorm.scale"), ("txt_in.norm.weight", "txtmlp.0.scale"),
)  # fmt: skip


def _names(family: str, config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' names to the host's places, as far as there are such by the host's own map."""
    if family == "zimage":
        return comfy.utils.z_image_to_diffusers(config)
    if family == "qwen-image":
        return {name: name for name in state}
    if family == "flux2-klein":
        own = {f"{a}.weight": f"{b}.weight" for a, b in FLUX2_NAMES.items()}
        return comfy.utils.flux_to_diffusers(config) | own
    names = comfy.utils.krea2_to_diffusers(config)
    for name in state.keys() - names.keys():
        weight = names.get(name.removesuffix("bias") + "weight")
        place = name if weight is None else weight.removesuffix("weight") + "bias"
        for theirs, ours in KREA2_NAMES:
            place = place.replace(theirs, ours)
        names[name] = place
    return names


def host_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The host's MODEL of `reference(family)`; skips where the host has no such class."""
    kind, config = CONFIGS[family]
    if not hasattr(comfy.supported_models, kind):
        pytest.skip(f"ComfyUI 0.3.64 has no {kind}")
    state = {name: w.to(dtype, copy=True) for name, w in reference(family).state_dict().items()}
    placed = _placed(_names(family, config, state), state)
    if family == "krea2":  # one table of six rows there is a line here
        placed = {name: w.flatten() if name.endswith(".mod.lin") else w
                  for name, w in placed.items()}  # fmt: skip
    config = getattr(comfy.supported_models, kind)(dict(config))
    return patcher(config, placed, dtype)


def conditioning(family: str, seed: int = 1, **extra: Any) -> list:
    """Random CONDITIONING of a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, TOKENS, KINDS[family].context, generator=generator)
    return [[context, {"pooled_output": None, **extra}]]
