"""The host in this process with the pack in it, and random models of true widths."""

import asyncio
import importlib
import importlib.util
import os
import runpy
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from paired import ON_CPU, ROOT
from torch import Tensor

COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
SEED = 7
SD35_TOKENS = 154  # CLIP and T5, 77 each


def load_host() -> None:
    """Makes the host importable, and its pictures go to a folder that ends with us."""
    sys.path.insert(0, str(COMFYUI))
    try:
        import comfy.options
    except ImportError as error:
        raise SystemExit(
            f"Skipped: this benchmark needs ComfyUI and its interpreter ({error}). "
            "Set COMFYUI_PATH and run it by make, or with the host's own python."
        ) from error
    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = ON_CPU
    # As the host's main does: its nodes put comfy/ on the path, where another `utils` lies.
    importlib.import_module("utils.extra_config")
    import folder_paths

    import nodes  # noqa: F401  the host's own

    temporary = tempfile.TemporaryDirectory(prefix="swd_bench_")
    sys.modules[__name__].temporary = temporary  # removed when the process ends
    folder_paths.set_temp_directory(temporary.name)


def host_version() -> str:
    version = runpy.run_path(str(COMFYUI / "comfyui_version.py"))["__version__"]
    return f"ComfyUI {version}"


@lru_cache(maxsize=1)
def pack() -> dict[str, Any]:
    """The pack's nodes by their id; its modules are below `swd_pack`."""
    load_host()
    spec = importlib.util.spec_from_file_location(
        "swd_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["swd_pack"] = module
    spec.loader.exec_module(module)

    async def load() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return {c.GET_SCHEMA().node_id: c for c in asyncio.run(load())}


def fill(module: torch.nn.Module) -> None:
    """Small random numbers in every weight, without drawing each one; norms keep about 1."""
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in module.named_parameters():
            drawn = drawn.to(weight.device)
            flat = drawn.repeat(-(-weight.numel() // drawn.numel()))[: weight.numel()]
            norm = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(0.02 * flat.view(weight.shape) + float(norm))


def patcher(config: Any, dtype: torch.dtype) -> Any:
    """A MODEL of a host configuration with random weights."""
    import comfy.model_management
    import comfy.model_patcher

    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, "", device=device)
    fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


def sd35_medium(blocks: int = 24, depth: int = 24) -> Any:
    """SD3.5 Medium as the host makes it, in bfloat16, with only the first of its blocks.

    depth: gives the width, 64 each; the published model has 24.
    """
    import comfy.supported_models

    config = {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": depth, "input_size": None,
        "adm_in_channels": 2048, "num_patches": 384 * 384, "pos_embed_max_size": 384,
        "qk_norm": "rms", "pos_embed_scaling_factor": None, "num_blocks": blocks,
        "x_block_self_attn_layers": list(range(min(13, blocks))),
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}
        },
    }  # fmt: skip
    return patcher(comfy.supported_models.SD3(config), torch.bfloat16)


def flux(blocks: int = 1, heads: int = 24) -> Any:
    """FLUX.1 with so many of its 19 double and 38 single blocks, at its own width, in bfloat16."""
    import comfy.supported_models

    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 128 * heads, "mlp_ratio": 4.0, "num_heads": heads,
        "depth": blocks, "depth_single_blocks": blocks, "axes_dim": [16, 56, 56], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    return patcher(comfy.supported_models.Flux(config), torch.bfloat16)


def sdxl_like(channels: int) -> Any:
    """An SDXL UNet of this width (320 in the published one) and fewer blocks, in float32."""
    import comfy.supported_models

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels,
        "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "num_head_channels": 64,
        "num_heads": -1, "use_spatial_transformer": True, "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816,
        "num_classes": "sequential", "use_checkpoint": False, "legacy": False,
        "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    return patcher(comfy.supported_models.SDXL(config), torch.float32)


def conditioning(context: int, pooled: int, tokens: int, **more: Any) -> list:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1, tokens, context, generator=generator)
    return [[values, {"pooled_output": torch.randn(1, pooled, generator=generator), **more}]]


def sd35_conditioning(**more: Any) -> list:
    return conditioning(4096, 2048, SD35_TOKENS, **more)


def flux_conditioning(**more: Any) -> list:
    return conditioning(4096, 768, 128, **more)


def sdxl_conditioning(**more: Any) -> list:
    return conditioning(2048, 1280, 77, **more)


def empty_latent(side: int, channels: int = 16, count: int = 1) -> dict[str, Tensor]:
    """side: of the finished picture in pixels."""
    return {"samples": torch.zeros(count, channels, side // 8, side // 8)}


def schedule_for(model: Any, preset: str) -> tuple[Any, Tensor]:
    """(schedule, SIGMAS) of a preset."""
    node = pack()["SwDScaleSchedule"]
    out = node.execute(model=model, preset=preset, custom_sizes="", custom_sigmas="")
    return out.args[0], out.args[1]


def sample(model: Any, positive: list, latent: dict, schedule: Any) -> Tensor:
    """The latent that SwDSample makes."""
    out = pack()["SwDSample"].execute(
        model=model, positive=positive, latent_image=latent, schedule=schedule, seed=SEED, cfg=1.0,
        upscale_method="bicubic",
    )  # fmt: skip
    return out.args[0]["samples"]


def draft(model: Any, positive: list, latent: dict, schedule: Any, count: int, **more: Any) -> Any:
    """What SwDDrafts puts out after the first step, drawn anew each time."""
    sys.modules["swd_pack.nodes.lately"].LATELY.rows.clear()
    given = in_lists(
        model=model, positive=positive, latent_image=latent, schedule=schedule, seed=SEED,
        count=count, stop_after=1, batch=count, cfg=1.0, upscale_method="bicubic", **more,
    )  # fmt: skip
    return pack()["SwDDrafts"].execute(**given).args


def in_lists(**given: Any) -> dict[str, list]:
    """As the host gives them to a node that takes lists."""
    return {name: [value] for name, value in given.items()}


def growing(model: Any, latent: dict, steps: int) -> Any:
    """A growth schedule from half the size, by Euler's method."""
    out = pack()["SwDGrowthSchedule"].execute(
        model=model, sampler_name="euler", scheduler="simple", steps=steps, start_size=0.5, sizes=2,
        tolerance="balanced", custom_tolerance=0.05, lift="spectral", latent_image=latent,
    )  # fmt: skip
    return out.args[0]


def full_steps(model: Any, positive: list, latent: dict, sigmas: Tensor, callback: Any = None):
    """The host's own LCM sampler with every step at the latent's size."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    samples = latent["samples"]
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(SEED))
    sampler = comfy.samplers.sampler_object("lcm")
    return guider.sample(
        noise, samples, sampler, sigmas, callback=callback, disable_pbar=True, seed=SEED
    )


def bare_flux_call(model: Any, positive: list, side: int, sigma: float) -> Tensor:
    """One call of a FLUX model itself; see `bare_call`."""
    [[context, more]] = positive
    place = {"dtype": model.model.get_dtype(), "device": model.load_device}
    x = torch.zeros(1, 16, side, side, **place)
    return model.model.diffusion_model(
        x, torch.tensor([sigma], device=x.device), context=context.to(**place),
        y=more["pooled_output"].to(**place), guidance=torch.tensor([3.5], device=x.device),
    )  # fmt: skip


def bare_call(model: Any, positive: list, side: int, sigma: float = 0.8) -> Tensor:
    """One call of an SD3 model itself, its inputs in its own precision; side in latent cells."""
    [[context, more]] = positive
    place = {"dtype": model.model.get_dtype(), "device": model.load_device}
    x = torch.zeros(1, 16, side, side, **place)
    return model.model.diffusion_model(
        x, torch.tensor([1000 * sigma], device=x.device), context=context.to(**place),
        y=more["pooled_output"].to(**place),
    )  # fmt: skip
