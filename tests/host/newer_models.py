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

KINDS = {"zimage": Kind(16, 64, 0, 2, 0.3611, 0.1159)}
# Host class, and the configuration that it would find by itself in weights of the published size.
CONFIGS = {
    "zimage": ("ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 384, "n_layers": 2,
        "n_refiner_layers": 1, "cap_feat_dim": 64, "qk_norm": True, "n_heads": 12,
        "n_kv_heads": 12, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32,
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


BUILDERS = {"zimage": _zimage}


@lru_cache(maxsize=4)
def reference(family: str) -> nn.Module:
    """The diffusers module, float32, always the same weights; wrap or change only a copy."""
    torch.manual_seed(7)
    module = BUILDERS[family]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or len(parameter) == 1:
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


MAPS = {"zimage": "z_image_to_diffusers"}


def host_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The host's MODEL of `reference(family)`; skips where the host has no such class."""
    kind, config = CONFIGS[family]
    if not hasattr(comfy.supported_models, kind):
        pytest.skip(f"ComfyUI 0.3.64 has no {kind}")
    state = {name: w.to(dtype, copy=True) for name, w in reference(family).state_dict().items()}
    names = getattr(comfy.utils, MAPS[family])(config)
    config = getattr(comfy.supported_models, kind)(dict(config))
    return patcher(config, _placed(names, state), dtype)


def conditioning(family: str, seed: int = 1, **extra: Any) -> list:
    """Random CONDITIONING of a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, TOKENS, KINDS[family].context, generator=generator)
    return [[context, {"pooled_output": None, **extra}]]
