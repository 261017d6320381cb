"""Names and strengths in LoRA files of every tool, without a host."""

import math

import pytest

from swd_core.lora_config import LoraConfig, header_config, parse_config
from swd_core.lora_names import (
    architecture_of,
    base_title,
    host_names,
    is_text_encoder,
    part_of,
)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "down"),
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_B.default.weight", "up"),
        ("transformer.transformer_blocks.0.attn.to_q.lora.down.weight", "down"),
        ("transformer_blocks.0.attn.to_q.lora_up.weight", "up"),
        ("diffusion_model.transformer_blocks.0.attn.to_q.alpha", "alpha"),
        ("unet.base_model.model.transformer_blocks.0.attn.to_q.lora_linear_layer.up.weight", "up"),
        ("unet.transformer_blocks.0.attn.processor.to_q_lora.down.weight", "down"),
        ("transformer_blocks.0.attn.to_q.lora_A.swd.weight", "down"),
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_B.my-style_2.weight", "up"),
        ("transformer_blocks.0.attn.to_q.lora_B", "up"),
        ("transformer.transformer_blocks.0.attn.to_q.lora.down", "down"),
        ("_orig_mod.transformer_blocks.0.attn.to_q.lora_A.weight", "down"),
        ("base_model.model._orig_mod.transformer_blocks.0.attn.to_q.lora_B.default.weight", "up"),
        ("transformer.transformer_blocks.0._orig_mod.attn.to_q.lora_down.weight", "down"),
        ("module._fsdp_wrapped_module.transformer_blocks.0.attn.to_q.lora_A.weight", "down"),
        ("transformer_blocks.0._checkpoint_wrapped_module.attn.to_q.alpha", "alpha"),
    ],
)
def test_part_of_reads_every_tools_names(key, part):
    assert part_of(key) == ("transformer_blocks.0.attn.to_q", part)


def test_part_of_keeps_flat_names_and_refuses_others():
    key = "lora_unet_mid_block_attentions_0_proj_in"
    assert part_of(f"{key}.lora_down.weight") == (key, "down")
    compiled = key.replace("lora_unet_", "lora_unet__orig_mod_")
    assert part_of(f"{compiled}.lora_up.weight") == (key, "up")
    assert part_of("unet.mid.attn1.processor.to_out_lora.up.weight") == (
        "mid.attn1.to_out.0", "up",
    )  # fmt: skip
    for other in (
        "x.weight", "x.hada_w1_a", "x.lora_magnitude_vector", "x.lora_A.bias", "x.lora_mid.weight",
        "x.lora_A.two.names.weight", "x.lora_A.swd", "x.dora_scale", ".lora_A.weight",
        f"{'x' * 300}.lora_A.weight",
    ):  # fmt: skip
        assert part_of(other) is None, other


@pytest.mark.parametrize(
    ("module", "width", "family", "title"),
    [
        ("transformer_blocks.0.attn.to_q", 1536, "sd3", "SD3.5 Medium"),
        ("transformer_blocks.0.attn.add_q_proj", 2432, "sd3", "SD3.5 Large"),
        ("transformer_blocks.0.attn.to_q", 3072, "flux", "FLUX.1"),
        ("lora_unet_joint_blocks_3_x_block_attn_qkv", 2432, "sd3", "SD3.5 Large"),
        ("lora_transformer_transformer_blocks_0_ff_net_0_proj", 1536, "sd3", "SD3.5 Medium"),
        ("single_transformer_blocks.0.proj_mlp", 3072, "flux", "FLUX.1"),
        ("lora_unet_double_blocks_0_txt_mlp_0", 3072, "flux", "FLUX.1"),
        ("single_blocks.0.linear1", 3072, "flux", "FLUX.1"),
        ("mid_block.attentions.0.transformer_blocks.1.attn2.to_k", 2048, "sdxl", "SDXL"),
        ("lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q", 1280, "sdxl", "SDXL"),
        ("down_blocks.1.resnets.0.conv1", 5760, "sdxl", "SDXL"),
        ("layers.7.attention.to_q", 3840, "zimage", "Z-Image"),
        ("transformer_blocks.7.txt_mlp.net.2", 12288, "qwen-image", "Qwen-Image"),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, "flux2", "FLUX.2"),
        ("transformer_blocks.0.ff_context.linear_in", 3072, "flux2", "FLUX.2"),
        ("transformer_blocks.0.ff.gate", 6144, "krea2", "Krea 2"),
    ],
)
def test_family_and_title_of_a_layer(module, width, family, title):
    assert architecture_of({module: width}) == family
    assert base_title(family, {module: width}) == title


@pytest.mark.parametrize(
    ("module", "width", "named"),
    [
        ("lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q", 320, "SD 1.x"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 1024, "2.x"),
        ("blocks.0.cross_attn.k", 1536, "Wan"),
        ("transformer_blocks.7.attn1.to_q", 1152, "PixArt"),
        ("layers.0.attention.qkv", 2304, "Lumina 2"),
        ("layers.0.self_attn.qkv", 2304, "none of SD3.5, FLUX.1, SDXL"),
    ],
)
def test_other_bases_are_named(module, width, named):
    with pytest.raises(ValueError, match=named):
        architecture_of({module: width})


def test_host_names_begin_with_the_familys_own():
    assert host_names("flux", "x_embedder")[0] == "transformer.x_embedder"
    assert host_names("sdxl", "conv_in")[0] == "lora_unet_conv_in"
    assert host_names("sd3", "joint_blocks.0.x_block.mlp.fc1")[-1].startswith("diffusion_model.")
    assert host_names("sd3", "lora_unet_joint_blocks_0") == ("lora_unet_joint_blocks_0",)


@pytest.mark.parametrize("module", ["lora_te1_x", "text_encoder.x", "text_encoder_2.x", "te_x"])
def test_text_encoders_are_told_apart(module):
    assert is_text_encoder(module) and not is_text_encoder("time_embedding.linear_1")


def test_scale_follows_pefts_rules():
    assert LoraConfig().scale("x", 64) == 1
    config = parse_config(
        {"r": 4, "lora_alpha": 6, "alpha_pattern": {"to_v": 3}, "rank_pattern": {"to_k": 9}}
    )
    assert config.scale("a.to_q", 4) == 1.5 and config.scale("a.to_v", 4) == 0.75
    assert config.fits({"a.to_q": 4, "a.to_k": 9}) and not config.fits({"a.to_k": 4})
    rslora = parse_config({"lora_alpha": 6, "use_rslora": True})
    assert rslora.scale("x", 9) == 6 / math.sqrt(9) and rslora.fits({"x": 9})


def test_header_of_diffusers_files_is_a_config():
    text = '{"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.use_rslora": false}'
    config = header_config({"lora_adapter_metadata": text})
    assert config is not None and config.scale("x", 4) == 2
    assert header_config({"format": "pt"}) is None
    for broken in ("{", "[]", "[" * 100_000, '{"unet.lora_alpha": "x"}'):
        with pytest.raises(ValueError, match="lora_adapter_metadata"):
            header_config({"lora_adapter_metadata": broken})
