"""Whether text, masks, areas and VAE are those of the model and of what is sampled."""

import inspect
from collections.abc import Sequence
from typing import Any

from ..swd_core.families import FAMILIES
from . import _host_model
from .trainable import context_width, pooled_width

_OVER_BATCHES = tuple(
    f"{node}."
    for node in (
        "RenormCFG", "TemporalScoreRescaling", "Mahiro", "PerpNeg", "VideoLinearCFGGuidance",
        "VideoTriangleCFGGuidance",
    )
)  # fmt: skip


def check_conditioning(guider: Any, shape: Sequence[int]) -> None:
    """Raises ValueError if the host would fail on a guider's conditioning in mid-work.

    Args:
        shape: of the finished latent, (B, C, H, W) or (B, C, T, H, W).
    """
    model, conds = guider.model_patcher, guider.original_conds
    alone = hasattr(guider, "uncond_model_patcher") or getattr(guider, "cfg", 0) == 1
    for name, entry in ((name, entry) for name, entries in conds.items() for entry in entries):
        _check_text(entry, model, runs=name != "negative" or not alone)
        _check_mask(entry, shape)
        _check_references(entry, model)
    entries = [entry for part in conds.values() for entry in part]
    _check_areas([entry["area"] for entry in entries if "area" in entry], shape[2:])


def _text_read(model: Any) -> dict[str, int]:
    """How wide the text is that a MODEL reads, by name; {} where its configuration doesn't say."""
    family = _host_model.model_family(model)
    try:
        if family in FAMILIES and FAMILIES[family].adapted:
            pooled = pooled_width(model)
            return {"cross_attn": context_width(model)} | (
                {"pooled_output": pooled} if pooled else {}
            )
        return {"cross_attn": model.model.diffusion_model.text_dim} if "wan" in family else {}
    except (AttributeError, KeyError):
        return {}


def _check_text(entry: dict[str, Any], model: Any, runs: bool) -> None:
    """Raises ValueError if the text was encoded for another kind of model, where that is known.

    Args:
        runs: whether the model reads it; where not, it only has to be there.
    """
    for name, width in _text_read(model).items():
        text = entry.get(name)
        given = text is None and _host_model.model_family(model) == "flux"
        if name == "pooled_output" and (given or "unclip_conditioning" in entry):
            continue  # the host puts its own in the place
        if text is None or runs and text.shape[-1] != width:
            what = "pooled text" if name == "pooled_output" else "text"
            has = "has none" if text is None else f"is {text.shape[-1]} wide"
            raise ValueError(
                f"This model reads {what} that is {width} wide, and the conditioning's {has}: it "
                "was encoded for another kind of model. Encode the prompt with this model's CLIP."
            )


def _check_mask(entry: dict[str, Any], shape: Sequence[int]) -> None:
    """Raises ValueError if a mask of the conditioning doesn't fit the pictures or the video."""
    mask = entry.get("mask")
    if mask is None:
        return
    images, video = shape[0], len(shape) == 5
    if video and entry.get("set_area_to_bounds"):
        raise ValueError(
            "The conditioning has a mask with set_cond_area on mask bounds, which is for pictures. "
            "Set it to default for a video."
        )
    count = 1 if mask.ndim != 3 else len(mask)
    fits = count in (1, shape[2]) if video else count and (count >= images or not images % count)
    if not fits or not mask.numel():
        raise ValueError(
            f"The conditioning has a mask of {tuple(mask.shape)} for a latent of {tuple(shape)}. "
            "Give it one mask, or one for each picture or latent frame."
        )


def _check_references(entry: dict[str, Any], model: Any) -> None:
    """Raises ValueError if FLUX.1 can't read a reference latent."""
    if _host_model.model_family(model) != "flux":
        return
    for latent in entry.get("reference_latents", []):
        if latent.ndim != 4 or latent.shape[1] != 16:
            raise ValueError(
                f"The conditioning has a reference latent of {tuple(latent.shape)}; this model "
                "reads pictures of 16 channels. Encode the reference with this model's VAE."
            )


def one_at_a_time(model: Any, conditioning: Sequence[Any]) -> bool:
    """Whether several pictures at once would fail, or be others than each by itself.

    So read in the host's code: references of Z-Image Omni, FLUX.2 dev's that get no noise, and
    what goes by a mean over the batch.
    """
    if _goes_by_batches(model.model_options):
        return True
    config = model.model.model_config.unet_config
    omni = config.get("image_model") == "lumina2" and config.get("siglip_feat_dim")
    guided = config.get("image_model") == "flux2" and config.get("guidance_embed")
    usual = model.object_patches.get("diffusion_model.params.default_ref_method")  # Flux KV Cache
    for _, options in conditioning:
        still = options.get("reference_latents_method", usual) == "index_timestep_zero"
        if options.get("reference_latents") and (omni or guided and still):
            return True
    return False


def _goes_by_batches(model_options: dict[str, Any]) -> bool:
    """Whether another node's guidance, or its choice of steps to skip, looks at a whole batch."""
    if "easycache" in model_options.get("transformer_options", {}):  # LazyCache, too
        return True
    after = model_options.get("sampler_post_cfg_function", [])
    for function in (model_options.get("sampler_cfg_function"), *after):
        name = getattr(function, "__qualname__", "")
        if name.startswith(_OVER_BATCHES):
            return True
        if name.startswith("SkipLayerGuidance"):
            if inspect.getclosurevars(function).nonlocals.get("rescaling_scale"):
                return True
    return False


def _check_areas(areas: Sequence[Sequence[Any]], size: Sequence[int]) -> None:
    """Raises ValueError if an area of the conditioning isn't in the picture (H, W) or video."""
    for area in areas:
        share = area[0] == "percentage"
        numbers = area[1:] if share else area
        dims = len(numbers) // 2
        if dims > len(size) or dims < len(size) and (share or any(len(a) > 4 for a in areas)):
            other, this = ("video", "picture") if dims > len(size) else ("picture", "video")
            raise ValueError(
                f"The conditioning has an area of a {other} where a {this} is sampled. Use the "
                f"node that sets areas of a {this}."
            )
        lengths, starts, sides = numbers[:dims], numbers[dims:], size[-dims:]
        if share:
            starts = [round(start * side) for start, side in zip(starts, sides, strict=True)]
        inside = all(0 <= start < side for start, side in zip(starts, sides, strict=True))
        if not inside or not share and min(lengths) < 1:
            raise ValueError(
                f"The conditioning has an area that begins at {tuple(starts)} of the latent's "
                f"{tuple(sides)} cells ((frame,) row, column), or has no size. Move it into the "
                "picture."
            )


def check_vae(vae: Any, model: Any) -> None:
    """Raises ValueError if there is a VAE that can't decode the latents of the model."""
    fitting = model.get_model_object("latent_format")
    check_decodes(vae, fitting.latent_channels, fitting.latent_dimensions)


def check_decodes(vae: Any, channels: int, dimensions: int) -> None:
    """Raises ValueError if there is a VAE that can't decode latents of so many channels.

    Args:
        dimensions: 2 for pictures, 3 for videos, whose first frame a VAE of pictures decodes.
    """
    reads = getattr(vae, "latent_channels", channels)
    if reads != channels:
        raise ValueError(
            f"The VAE decodes {reads} channels, and these latents have {channels}. Connect the "
            "VAE of the model that makes them."
        )
    if getattr(vae, "latent_dim", dimensions) not in (2, dimensions):
        raise ValueError(
            "The VAE is one of videos or audio, and these latents are of "
            f"{'pictures' if dimensions == 2 else 'videos'}. Connect the VAE of the model that "
            "makes them."
        )
