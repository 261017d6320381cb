"""diffusers' SD3 in small, under the host's names too, and students that PEFT makes of it."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


DEPTH = 2
ATTENTION = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
]
MLP = ["net.0.proj", "net.2"]


def sd3(**options) -> "diffusers.SD3Transformer2DModel":
    """A small SD3 whose width is 64 times its depth, as the host expects."""
    torch.manual_seed(1)
    model = diffusers.SD3Transformer2DModel(
        sample_size=32, num_layers=DEPTH, attention_head_dim=64, num_attention_heads=DEPTH,
        in_channels=16, joint_attention_dim=24, caption_projection_dim=64 * DEPTH,
        pooled_projection_dim=40, pos_embed_max_size=16, qk_norm="rms_norm", **options,
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def swapped(weight: Tensor) -> Tensor:
    """diffusers' last norms are (scale, shift), the host's (shift, scale)."""
    return torch.cat(weight.chunk(2)[::-1])


def to_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' SD3 weights under the host's keys, written down independently of swd_core."""
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
    }
    fused, last = {}, f"transformer_blocks.{DEPTH - 1}.norm1_context.linear"
    for i in range(DEPTH):
        theirs = f"transformer_blocks.{i}"
        for ours, q, out, norm, ff, normed in (
            ("x_block", ["to_q", "to_k", "to_v"], "to_out.0", "norm1", "ff", ("norm_q", "norm_k")),
            (
                "context_block", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out",
                "norm1_context", "ff_context", ("norm_added_q", "norm_added_k"),
            ),
        ):  # fmt: skip
            block = f"joint_blocks.{i}.{ours}"
            fused[f"{block}.attn.qkv"] = [f"{theirs}.attn.{part}" for part in q]
            names[f"{block}.attn.proj"] = f"{theirs}.attn.{out}"
            names[f"{block}.attn.ln_q"] = f"{theirs}.attn.{normed[0]}"
            names[f"{block}.attn.ln_k"] = f"{theirs}.attn.{normed[1]}"
            names[f"{block}.mlp.fc1"] = f"{theirs}.{ff}.net.0.proj"
            names[f"{block}.mlp.fc2"] = f"{theirs}.{ff}.net.2"
            names[f"{block}.adaLN_modulation.1"] = f"{theirs}.{norm}.linear"
        fused[f"joint_blocks.{i}.x_block.attn2.qkv"] = [
            f"{theirs}.attn2.to_{part}" for part in "qkv"
        ]
        names[f"joint_blocks.{i}.x_block.attn2.proj"] = f"{theirs}.attn2.to_out.0"
        names[f"joint_blocks.{i}.x_block.attn2.ln_q"] = f"{theirs}.attn2.norm_q"
        names[f"joint_blocks.{i}.x_block.attn2.ln_k"] = f"{theirs}.attn2.norm_k"
    host = {}
    for kind in ("weight", "bias"):
        for ours, name in names.items():
            if f"{name}.{kind}" in state:
                value = state[f"{name}.{kind}"]
                host[f"{ours}.{kind}"] = swapped(value) if name == last else value
        for ours, parts in fused.items():
            if f"{parts[0]}.{kind}" in state:
                host[f"{ours}.{kind}"] = torch.cat([state[f"{part}.{kind}"] for part in parts])
        host[f"final_layer.adaLN_modulation.1.{kind}"] = swapped(state[f"norm_out.linear.{kind}"])
    return host


def with_lora(model, folder, targets, **options):
    """`model` wrapped by PEFT with random adapters that are saved to `folder`."""
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(folder)
    return wrapped.eval()
