"""A student in the weights of an SD3-type model, whose fused layers are several of diffusers'."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .families import ARCHITECTURES, SD3
from .lora import SwDLora

# diffusers' SD3 module -> the host's layer and which part of it (a fused layer has several).
_SD3_LAYERS = {
    "attn.to_q": ("x_block.attn.qkv", 0, 3),
    "attn.to_k": ("x_block.attn.qkv", 1, 3),
    "attn.to_v": ("x_block.attn.qkv", 2, 3),
    "attn.to_out.0": ("x_block.attn.proj", 0, 1),
    "attn.add_q_proj": ("context_block.attn.qkv", 0, 3),
    "attn.add_k_proj": ("context_block.attn.qkv", 1, 3),
    "attn.add_v_proj": ("context_block.attn.qkv", 2, 3),
    "attn.to_add_out": ("context_block.attn.proj", 0, 1),
    "attn2.to_q": ("x_block.attn2.qkv", 0, 3),
    "attn2.to_k": ("x_block.attn2.qkv", 1, 3),
    "attn2.to_v": ("x_block.attn2.qkv", 2, 3),
    "attn2.to_out.0": ("x_block.attn2.proj", 0, 1),
    "ff.net.0.proj": ("x_block.mlp.fc1", 0, 1),
    "ff.net.2": ("x_block.mlp.fc2", 0, 1),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", 0, 1),
    "ff_context.net.2": ("context_block.mlp.fc2", 0, 1),
    "norm1.linear": ("x_block.adaLN_modulation.1", 0, 1),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", 0, 1),
}


def sd3_modules(layer: str) -> list[str]:
    """The parts of a host layer such as joint_blocks.0.x_block.attn.qkv by diffusers' names."""
    _, block, leaf = layer.split(".", 2)
    parts = [module for module, (name, _, _) in _SD3_LAYERS.items() if name == leaf]
    return [f"transformer_blocks.{block}.{part}" for part in parts]


def sd3_target(module: str) -> tuple[str, int, int]:
    """Host weight, part and number of parts for a diffusers SD3 module.

    Raises:
        ValueError: if SD3 has no such module.
    """
    found = re.match(r"transformer_blocks\.(\d+)\.(.+)$", module)
    if found is None or found.group(2) not in _SD3_LAYERS:
        raise ValueError(f"{module} is not a layer of an SD3-type model.")
    layer, part, parts = _SD3_LAYERS[found.group(2)]
    return f"joint_blocks.{found.group(1)}.{layer}.weight", part, parts


def merge_sd3(
    state: Mapping[str, Tensor], lora: SwDLora, strength: float = 1.0
) -> dict[str, Tensor]:
    """Adds a student to SD3-type weights in the host's format.

    Args:
        state: host keys (joint_blocks.*). strength: 1 is the student, 0 the base.

    Raises:
        ValueError: if the student is for another architecture, or a layer does not fit.
    """
    if lora.architecture != SD3.name:
        made_for = ARCHITECTURES[lora.architecture].title
        raise ValueError(f"This LoRA was made for {made_for}, not for an SD3-type model.")
    merged = dict(state)
    for module, layer in lora.layers.items():
        key, part, parts = sd3_target(module)
        delta = layer.delta()
        if (
            key not in merged
            or merged[key].shape[0] != parts * delta.shape[0]
            or merged[key].shape[1:] != delta.shape[1:]
        ):
            have = tuple(merged[key].shape) if key in merged else "nothing"
            raise ValueError(
                f"LoRA layer {module} {tuple(delta.shape)} does not fit the base ({have} at {key})."
            )
        weight = merged[key].float().clone()
        rows = delta.shape[0]
        if module.endswith("norm1_context.linear") and delta.shape[0] == 2 * delta.shape[1]:
            # The last context norm is (scale, shift) in diffusers, (shift, scale) in the host.
            delta = torch.cat(delta.chunk(2)[::-1])
        weight[part * rows : (part + 1) * rows] += strength * delta.to(weight.device)
        merged[key] = weight.to(merged[key].dtype)
    return merged
