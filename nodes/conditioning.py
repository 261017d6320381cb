"""The graph's conditioning worked out anew for another size of the same picture."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.controlnet
import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ._host import supported
from ._host_model import patch_multiple
from .video_inputs import in_proportion, scale_video_inputs

# What process_conds must not touch a second time: it would set hook keyframes back to the first one
# and make ControlNets load again. Neither depends on the size.
_ONCE = ("hooks", "control")
HOST_CELL = 8  # pixels of a latent cell by which the host tells any model its picture's size


def scaled_area(area: Sequence[Any], size: Sequence[int], target: Sequence[int]) -> tuple[Any, ...]:
    """An absolute area (lengths..., starts...) given at the target size, at another size.

    Both sizes are (H, W), or (T, H, W) of a video, whose first and last frame stay such. An area
    keeps at least one cell and one frame.
    """
    if area[0] == "percentage":
        return tuple(area)
    dims = len(area) // 2
    starts, lengths = list(area[dims:]), list(area[:dims])
    for d, (small, full) in enumerate(zip(size[-2:], target[-2:], strict=True), dims - 2):
        start = min(round(starts[d] * small / full), small - 1)
        end = max(start + 1, round((starts[d] + lengths[d]) * small / full))
        starts[d], lengths[d] = start, end - start
    if dims == 3 and size[0] != target[0]:
        rate = (size[0] - 1) / (target[0] - 1)
        first, last = (round(t * rate) for t in (starts[0], starts[0] + lengths[0] - 1))
        starts[0], lengths[0] = first, last - first + 1
    return (*lengths, *starts)


def _scaled_boxes(
    gligen: Sequence[Any], size: Sequence[int], target: Sequence[int]
) -> tuple[Any, ...]:
    """GLIGEN's boxes (embedding, h, w, y, x), in latent cells of the target, at another size."""
    rows, columns = size[-2] / target[-2], size[-1] / target[-1]
    boxes = [(e, h * rows, w * columns, y * rows, x * columns) for e, h, w, y, x in gligen[2]]
    return (*gligen[:2], boxes, *gligen[3:])


def _scale_references(
    entry: dict[str, Any], size: Sequence[int], target: Sequence[int], guider: Any
) -> None:
    """Shrinks the latents that edit models read beside the picture, as the picture is smaller.

    Their cells have rows and columns like the picture's own (FLUX Kontext, FLUX.2, Qwen-Image,
    OmniGen2): at their full size each would mean a place further in, or outside of the picture.
    UNO's ("uxo") have places of their own beside it, and HiDream-O1's are no latents. HiDream-E1's
    stands there as what other models have the host resize.
    """
    multiple = patch_multiple(guider.model_patcher)
    channels = guider.inner_model.latent_format.latent_channels

    def shrunk(x: Tensor) -> Tensor:
        return in_proportion(x, size, target, multiple) if x.shape[1] == channels else x

    references, edited = entry.get("reference_latents"), entry.get("concat_latent_image")
    flux = isinstance(guider.inner_model, comfy.model_base.Flux)
    if references is not None and not (flux and entry.get("reference_latents_method") == "uxo"):
        entry["reference_latents"] = [shrunk(x) for x in references]
    if edited is not None and isinstance(guider.inner_model, comfy.model_base.HiDream):
        entry["concat_latent_image"] = shrunk(edited)


def resolve_conds(
    guider: Any,
    like: Tensor,
    target: Sequence[int],
    latent_image: Tensor,
    denoise_mask: Tensor | None,
    seed: int | None,
) -> dict[str, list[dict[str, Any]]]:
    """The guider's conditioning for the size of `like` (B, C, H, W) or (B, C, T, H, W).

    Masks, areas, boxes, reference and concatenated latents then mean the same place of the picture
    as at the target size; size conditioning (SDXL, PixArt) keeps the target's.

    Args:
        target: the finished latent's (H, W) or (T, H, W).
        latent_image, denoise_mask: at the size of `like`.
    """
    conds: dict[str, list[dict[str, Any]]] = {}
    size = tuple(like.shape[2:])
    for name, entries in guider.original_conds.items():
        conds[name] = []
        for entry in entries:
            entry = entry.copy()
            if "area" in entry:
                entry["area"] = scaled_area(entry["area"], size, target)
            if "gligen" in entry:
                entry["gligen"] = _scaled_boxes(entry["gligen"], size, target)
            if len(size) == 2:  # as the host fills it in, for SDXL, PixArt and others
                entry.setdefault("width", target[1] * HOST_CELL)
                entry.setdefault("height", target[0] * HOST_CELL)
            if not isinstance(guider.inner_model, comfy.model_base.WAN21):
                _scale_references(entry, size, target, guider)
            if len(size) == 3:
                scale_video_inputs(entry, size, target, guider)
            conds[name].append(entry)
    comfy.samplers.preprocess_conds_hooks(conds)
    comfy.samplers.filter_registered_hooks_on_conds(conds, guider.model_options)
    _rename(conds, {name: f"swd_{name}" for name in _ONCE})
    extras = supported(comfy.samplers.process_conds, latent_shapes=[tuple(like.shape)])
    conds = comfy.samplers.process_conds(
        guider.inner_model, like, conds, like.device, latent_image, denoise_mask, seed, **extras
    )
    _rename(conds, {f"swd_{name}": name for name in _ONCE})
    _share_control(conds)
    return conds


def _rename(conds: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> None:
    for entries in conds.values():
        for entry in entries:
            for old in names.keys() & entry.keys():
                entry[names[old]] = entry.pop(old)


def _share_control(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Gives the others the positive's ControlNet where that is asked for, as the host does."""
    shared = [c for c in conds.get("positive", []) if c.get("control_apply_to_uncond", False)]
    for name, entries in conds.items():
        if name != "positive":
            comfy.samplers.apply_empty_x_to_equal_area(
                shared, entries, "control", lambda nets, i: nets[i]
            )


def move_windows(conds: dict[str, list[dict[str, Any]]], level: Callable[[float], float]) -> None:
    """Brings the noise levels between which an entry holds to those of another size.

    Args:
        conds: resolved ones. level: what a level of the full size is there.
    """
    for entries in conds.values():
        for entry in entries:
            for key in ("timestep_start", "timestep_end"):
                if entry.get(key) is not None:
                    entry[key] = level(float(entry[key]))


def control_windows(
    conds: dict[str, list[dict[str, Any]]],
) -> list[tuple[comfy.controlnet.ControlBase, tuple[float, float]]]:
    """Every ControlNet of resolved conditioning, with the noise levels between which it works."""
    found = {}
    for entry in (entry for entries in conds.values() for entry in entries):
        control = entry.get("control")
        while control is not None:
            if getattr(control, "timestep_range", None) is not None:
                found[id(control)] = (control, control.timestep_range)
            control = getattr(control, "previous_controlnet", None)
    return list(found.values())


def mask_at(mask: Tensor | None, size: tuple[int, ...]) -> Tensor | None:
    """An inpaint mask (B, C, H, W) or (B, C, T, H, W) at a smaller size."""
    if mask is None or tuple(mask.shape[2:]) == size:
        return mask
    small = resample.downscale(mask, size)
    # A whole 1 must stay one: differential diffusion compares with it.
    return torch.where((small - small.round()).abs() < 1e-5, small.round(), small)
