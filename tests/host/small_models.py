"""Small random models of every family: the diffusers module and the host's MODEL of its weights.

The weights are made as diffusers modules and converted by the host itself, so that neither side
of a comparison is ours.
"""

import importlib
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import comfy.ldm.flux.model
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

TOKENS = 7
SDXL_CONFIG = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "num_head_channels": 64,
    "num_heads": -1, "use_spatial_transformer": True, "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_checkpoint": False, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip

SDXL_LAYOUT = {
    "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What the tests must know of a family; scale and shift are how the host stores its latents."""

    channels: int
    context: int
    pooled: int
    multiple: int
    scale: float
    shift: float = 0.0


KINDS = {
    "sd35-medium": Kind(16, 64, 48, 2, 1.5305, 0.0609),
    "sd35-large": Kind(16, 64, 48, 2, 1.5305, 0.0609),
    "flux": Kind(16, 64, 768, 2, 0.3611, 0.1159),
    "sdxl": Kind(4, 2048, 1280, 4, 0.13025),
}


@lru_cache(maxsize=8)
def reference(family: str) -> nn.Module:
    """The diffusers module, float32, always the same weights; wrap or change only a copy."""
    torch.manual_seed(7)
    kind = KINDS[family]
    if family.startswith("sd35"):
        module = SD3Transformer2DModel(
            sample_size=64, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64,
            num_attention_heads=2, joint_attention_dim=kind.context, caption_projection_dim=128,
            pooled_projection_dim=kind.pooled, out_channels=16, pos_embed_max_size=112,
            dual_attention_layers=(0,) if family == "sd35-medium" else (), qk_norm="rms_norm",
        )  # fmt: skip
    elif family == "flux":
        module = FluxTransformer2DModel(
            in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=128,
            num_attention_heads=2, joint_attention_dim=kind.context,
            pooled_projection_dim=kind.pooled, guidance_embeds=True,
        )  # fmt: skip
    else:
        module = UNet2DConditionModel(
            block_out_channels=(32, 64, 128), attention_head_dim=(1, 1, 2),
            transformer_layers_per_block=(1, 1, 2), **SDXL_LAYOUT,
        )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # norms of exactly 1 and biases of 0 would hide swapped ones
                parameter.add_(0.1 * torch.randn_like(parameter))
        last = module.conv_out if family == "sdxl" else module.proj_out
        last.weight.mul_(8 if family == "sdxl" else 4)  # outputs as large as their noise
    return module.eval().requires_grad_(False)


def host_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The host's MODEL of `reference(family)`, with weights of `dtype`."""
    state = {name: w.to(dtype, copy=True) for name, w in reference(family).state_dict().items()}
    if family == "sdxl":  # the host's own loader knows SDXL with 320 channels only
        names = comfy.utils.unet_to_diffusers(SDXL_CONFIG)
        converted = {names[name]: value for name, value in state.items()}
        return patcher(comfy.supported_models.SDXL(dict(SDXL_CONFIG)), converted, dtype)
    if family == "flux":
        converted = comfy.model_detection.convert_diffusers_mmdit(state, "")
        config = comfy.model_detection.detect_unet_config(converted, "")
        # ComfyUI 0.3.64 takes every FLUX for one of 24 heads.
        config |= {"hidden_size": 256, "num_heads": 2, "context_in_dim": KINDS[family].context}
        return patcher(comfy.supported_models.Flux(config), converted, dtype)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})


@lru_cache(maxsize=4)
def full_size(family: str) -> tuple[nn.Module, Any]:
    """The published base without its numbers: diffusers' module, and the host's MODEL of it."""
    with torch.device("meta"):
        if family == "flux":
            module = FluxTransformer2DModel(guidance_embeds=True)
        elif family == "sdxl":
            module = UNet2DConditionModel(
                block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20),
                transformer_layers_per_block=(1, 2, 10), **SDXL_LAYOUT,
            )  # fmt: skip
        else:
            depth, dual, positions = (24, 13, 384) if family == "sd35-medium" else (38, 0, 192)
            module = SD3Transformer2DModel(
                sample_size=128, num_layers=depth, num_attention_heads=depth, attention_head_dim=64,
                joint_attention_dim=4096, caption_projection_dim=64 * depth,
                pooled_projection_dim=2048, pos_embed_max_size=positions,
                dual_attention_layers=tuple(range(dual)), qk_norm="rms_norm",
            )  # fmt: skip
    state = {name: torch.empty_like(w, device="meta") for name, w in module.state_dict().items()}
    if family == "sdxl":
        config = comfy.model_detection.model_config_from_diffusers_unet(state)
    else:
        converted = comfy.model_detection.convert_diffusers_mmdit(state, "")
        config = comfy.model_detection.model_config_from_unet(converted, "")
    return module, patcher(config, {}, torch.bfloat16, torch.device("meta"))


def patcher(config: Any, state: dict[str, Tensor], dtype: torch.dtype, device: Any = None) -> Any:
    """A MODEL from a host configuration and weights under the host's keys; empty ones on "meta"."""
    fp8 = dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    config.set_inference_dtype(dtype, torch.float32 if fp8 else None)
    model = config.get_model(state, "", device=device)
    if device is None:
        model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


WAN = {
    "model_type": "t2v", "dim": 128, "num_heads": 1, "out_dim": 16, "ffn_dim": 128,
    "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 64, "window_size": (-1, -1),
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16, "text_dim": 32,
}  # fmt: skip


@lru_cache(maxsize=4)
def wan_model(kind: str = "WAN21_T2V", **changes: Any) -> Any:
    """The host's MODEL of a small random Wan, of a class of its supported_models."""
    config = {**WAN, **changes}
    net = comfy.ldm.wan.model.WanModel(**config, operations=nn, device="cpu", dtype=torch.float32)
    config = getattr(comfy.supported_models, kind)({"image_model": "wan2.1", **config})
    return patcher(config, random_weights(net), torch.float32)


FLUX2 = {
    "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": 1, "hidden_size": 128,
    "mlp_ratio": 3.0, "theta": 2000, "out_channels": 128, "in_channels": 128, "context_in_dim": 48,
    "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "patch_size": 1,
    "vec_in_dim": None, "guidance_embed": True, "depth": 1, "depth_single_blocks": 1,
}  # fmt: skip

QWEN = {
    "image_model": "qwen_image", "num_layers": 1, "num_attention_heads": 1,
    "joint_attention_dim": 48,
}  # fmt: skip


def random_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights for the host's own network, so that outputs are about as large as inputs.

    Made of torch's layers: with dynamic VRAM the host's have no weights before they are loaded.
    """
    generator = torch.Generator().manual_seed(8)
    return {
        name: torch.randn(w.shape, generator=generator)
        / (max(1, w[0].numel()) ** 0.5 if w.ndim > 1 else 20)
        for name, w in net.state_dict().items()
    }


@lru_cache(maxsize=1)
def flux2_model() -> Any:
    """The host's MODEL of a small random FLUX.2, which ComfyUI 0.3.64 doesn't know."""
    made = {"operations": nn, "device": "cpu", "dtype": torch.float32}
    state = random_weights(comfy.ldm.flux.model.Flux(**FLUX2, **made))
    return patcher(comfy.supported_models.Flux2(dict(FLUX2)), state, torch.float32)


@lru_cache(maxsize=1)
def qwen_model() -> Any:
    """The host's MODEL of a small random Qwen-Image; its latents have a frame."""
    made = {"operations": nn, "device": "cpu", "dtype": torch.float32}
    net = comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(**QWEN, **made)
    return patcher(comfy.supported_models.QwenImage(dict(QWEN)), random_weights(net), torch.float32)


def _built(config_class: str, config: dict[str, Any], net: Any) -> Any:
    """The host's MODEL of a class of its supported_models around a small random network."""
    made = {"operations": nn, "device": "cpu", "dtype": torch.float32}
    state = random_weights(net(**config, **made))
    return patcher(
        getattr(comfy.supported_models, config_class)(dict(config)), state, torch.float32
    )


# Of image models whose students nobody has: the class in the host's supported_models, what it is
# built of, the module and class of its network, and the width of its text.
OTHERS = {
    "zimage": ("ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 1,
        "n_refiner_layers": 1, "cap_feat_dim": 48, "qk_norm": True, "n_heads": 2, "n_kv_heads": 2,
        "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
        "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    }, "comfy.ldm.lumina.model:NextDiT", 48),
    "chroma": ("Chroma", {
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64,
        "out_dim": 128, "hidden_dim": 128, "n_layers": 1, "hidden_size": 128, "num_heads": 1,
        "context_in_dim": 48, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [32, 48, 48], "theta": 10000, "qkv_bias": True, "patch_size": 2,
        "txt_ids_dims": [], "vec_in_dim": None,
    }, "comfy.ldm.chroma.model:Chroma", 48),
    "ernie": ("ErnieImage", {
        "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 1,
        "ffn_hidden_size": 128, "text_in_dim": 48,
    }, "comfy.ldm.ernie.model:ErnieImageModel", 48),
    "hidream": ("HiDream", {
        "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
        "caption_channels": [48, 48], "max_resolution": [128, 128], "in_channels": 16,
        "llama_layers": [0, 0], "num_attention_heads": 1, "num_routed_experts": 2,
        "num_activated_experts": 1, "num_layers": 1, "num_single_layers": 1, "out_channels": 16,
        "patch_size": 2, "text_emb_dim": 768,
    }, "comfy.ldm.hidream.model:HiDreamImageTransformer2DModel", 48),
    "krea2": ("Krea2", {
        "image_model": "krea2", "features": 256, "tdim": 64, "txtdim": 48, "heads": 2,
        "kvheads": 1, "layers": 1, "patch": 2, "channels": 16, "txtlayers": 2, "txtheads": 1,
        "txtkvheads": 1,
    }, "comfy.ldm.krea2.model:SingleStreamDiT", 96),
    "anima": ("Anima", {
        "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
        "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
        "model_channels": 128, "concat_padding_mask": True, "crossattn_emb_channels": 48,
        "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop",
        "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 1, "num_heads": 1,
    }, "comfy.ldm.anima.model:Anima", 48),
}  # fmt: skip


@lru_cache(maxsize=8)
def other_model(name: str, **more: Any) -> tuple[Any, int] | None:
    """The host's MODEL of an entry of OTHERS and the width of its text; None if it has no class.

    more: of its configuration.
    """
    config_class, config, network, text = OTHERS[name]
    config = {**config, **more}
    if not hasattr(comfy.supported_models, config_class):
        return None
    module, _, net = network.partition(":")
    module = importlib.import_module(module)
    if name == "chroma":  # ComfyUI 0.3.64 knows fewer of its parameters
        known = {"image_model", *(f.name for f in fields(module.ChromaParams))}
        config = {key: value for key, value in config.items() if key in known}
    if name == "anima":  # what reads its text has one size, 130 million weights
        adapter = partial(
            module.LLMAdapter, source_dim=48, target_dim=48, model_dim=64, num_layers=1, num_heads=2
        )
        with mock.patch.object(module, "LLMAdapter", adapter):
            return _built(config_class, config, getattr(module, net)), text
    return _built(config_class, config, getattr(module, net)), text


def conditioning(family: str, seed: int = 1, **extra: Any) -> list:
    """Random CONDITIONING of a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    kind = KINDS[family]
    context = torch.randn(1, TOKENS, kind.context, generator=generator)
    pooled = torch.randn(1, kind.pooled, generator=generator)
    return [[context, {"pooled_output": pooled, **extra}]]
