"""The graph's conditioning worked out anew for another size of the same picture."""

from collections.abc import Sequence
from typing import Any

import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ._host import supported

# What process_conds must not touch a second time: it would set hook keyframes back to the first one
# and make ControlNets load again. Neither depends on the size.
_ONCE = ("hooks", "control")


def scaled_area(area: Sequence[Any], size: Sequence[int], target: Sequence[int]) -> tuple[Any, ...]:
    """An absolute area (heights..., starts...) given at the target size, at another size.

    Dimensions that do not change (a video's frames) stay; an area keeps at least one cell.
    """
    if area[0] == "percentage":
        return tuple(area)
    dims = len(area) // 2
    starts, lengths = list(area[dims:]), list(area[:dims])
    for d, (small, full) in enumerate(zip(size[-2:], target[-2:], strict=True), dims - 2):
        start = min(round(starts[d] * small / full), small - 1)
        end = max(start + 1, round((starts[d] + lengths[d]) * small / full))
        starts[d], lengths[d] = start, end - start
    return (*lengths, *starts)


def _scaled_boxes(
    gligen: Sequence[Any], size: Sequence[int], target: Sequence[int]
) -> tuple[Any, ...]:
    """GLIGEN's boxes (embedding, h, w, y, x), in latent cells of the target, at another size."""
    rows, columns = size[-2] / target[-2], size[-1] / target[-1]
    boxes = [(e, h * rows, w * columns, y * rows, x * columns) for e, h, w, y, x in gligen[2]]
    return (*gligen[:2], boxes, *gligen[3:])


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
    as at the target size; size conditioning (SDXL) keeps the target's.

    Args:
        target: the finished latent's (H, W).
        latent_image, denoise_mask: at the size of `like`.
    """
    conds: dict[str, list[dict[str, Any]]] = {}
    size = tuple(like.shape[-2:])
    for name, entries in guider.original_conds.items():
        conds[name] = []
        for entry in entries:
            entry = entry.copy()
            if "area" in entry:
                entry["area"] = scaled_area(entry["area"], size, target)
            if "gligen" in entry:
                entry["gligen"] = _scaled_boxes(entry["gligen"], size, target)
            if isinstance(guider.inner_model, comfy.model_base.SDXL):
                entry.setdefault("width", target[1] * 8)
                entry.setdefault("height", target[0] * 8)
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


def mask_at(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """An inpaint mask (B, C, H, W) or (B, C, T, H, W) at a smaller size."""
    if mask is None or tuple(mask.shape[-2:]) == size:
        return mask
    small = resample.downscale(mask, size)
    # A whole 1 must stay one: differential diffusion compares with it.
    return torch.where((small - small.round()).abs() < 1e-5, small.round(), small)
