"""The graph's conditioning worked out anew for another size of the same picture."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.controlnet
import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.growth import AnySchedule
from ._host import supported
from ._host_model import patch_multiple

# What process_conds must not touch a second time: it would set hook keyframes back to the first one
# and make ControlNets load again. Neither depends on the size.
_ONCE = ("hooks", "control")
HOST_CELL = 8  # pixels of a latent cell by which the host tells any model its picture's size
# Of a video: one entry per latent frame (Wan image-to-video), or pictures without a place in time.
_BY_FRAME = {"concat_latent_image", "concat_mask", "mask"}
_REFERENCES = {"reference_latents", "time_dim_concat"}
_IN_CONTEXT = {"context_latents"}  # Bernini's source videos, which have the video's frames
# The same of other models: HunyuanVideo's and Kandinsky's first picture.
_FIRST_PICTURES = {"ref_latent", "time_dim_replace"}
# Inputs of the target's sides that the host leaves as they are; LTX-Video's guides among them,
# whose places are counted in cells, and SeedVR2's video.
_FULL_SIZE = {
    "vace_frames", "vace_mask", "camera_conditions", "control_video", "pose_video_latent",
    "keyframe_idxs", "guide_attention_entries", "generated_keyframes", "condition",
}  # fmt: skip
_WITHOUT_TIME = {
    *_BY_FRAME, *_REFERENCES, "ref_latent", "cross_attn", "pooled_output", "attention_mask",
    "area", "unclip_conditioning", "conditioning_llama3", "t5xxl_ids", "t5xxl_weights", "guidance",
}  # fmt: skip


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


def refuse_unscalable(
    conds: dict[str, list[dict[str, Any]]], target: Sequence[int], schedule: AnySchedule
) -> None:
    """Raises ValueError if an input of a video model can't follow the size or the frames.

    Args:
        conds: the guider's original conditioning. target: the finished latent's (T, H, W).
    """
    frames = target[0]
    for entry in (entry for entries in conds.values() for entry in entries):
        for key, value in entry.items():
            whole = key in _FULL_SIZE and schedule.grows
            if (whole or schedule.frames and key not in _WITHOUT_TIME) and _holds_tensor(value):
                raise ValueError(
                    f"The conditioning holds {key!r}, which can't follow a video that grows in "
                    f"{'size' if whole else 'time'}. Take it out of the graph"
                    + (", or choose custom with custom_frames empty." if not whole else ".")
                )
            if schedule.frames and key in _BY_FRAME:
                count = _frame_count(key, value)
                if count not in (frames, 1):
                    raise ValueError(
                        f"The conditioning's {key!r} has {count} latent frames, the video that is "
                        f"sampled has {frames}. Make both of the same length."
                    )


def _frame_count(key: str, value: Any) -> int:
    """Frames of an input (B, C, T, H, W), or of a region's mask (T, H, W); 1 of a still one."""
    least = 3 if key == "mask" else 5
    return value.shape[-3] if isinstance(value, Tensor) and value.ndim >= least else 1


def _holds_tensor(value: Any) -> bool:
    """Whether a conditioning entry is a tensor, a ControlNet, or a collection with one in it."""
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensor, value))
    return isinstance(value, (Tensor, comfy.controlnet.ControlBase))


def _scale_video_inputs(entry: dict[str, Any], size: Sequence[int], target: Sequence[int]) -> None:
    """Picks as many frames of a video's inputs as (T, H, W) has; the host scales them in space."""
    for key in _BY_FRAME & entry.keys():
        value = entry[key]
        if _frame_count(key, value) == target[0] != size[0]:
            entry[key] = resample.pick_frames(value, size[0], -3)


def _scale_references(
    entry: dict[str, Any], keys: set[str], size: Sequence[int], target: Sequence[int]
) -> None:
    """Shrinks pictures of the target's sides, which stand beside a video's own frames."""
    for key in keys & entry.keys():
        value = entry[key]
        fitting = [
            resample.downscale(x, size[-2:]) if tuple(x.shape[-2:]) == tuple(target[-2:]) else x
            for x in (value if isinstance(value, list) else [value])
        ]
        entry[key] = fitting if isinstance(value, list) else fitting[0]


def _scale_picture_references(
    entry: dict[str, Any], size: Sequence[int], target: Sequence[int], guider: Any
) -> None:
    """Shrinks the latents that edit models read beside the picture, as the picture is smaller.

    Their cells have rows and columns like the picture's own (FLUX Kontext, FLUX.2, Qwen-Image,
    OmniGen2): at their full size each would mean a place further in, or outside of the picture.
    UNO's ("uxo") have places of their own beside it, and HiDream-O1's are no latents.
    """
    references = entry.get("reference_latents")
    flux = isinstance(guider.inner_model, comfy.model_base.Flux)
    if references is None or (flux and entry.get("reference_latents_method") == "uxo"):
        return
    model = guider.model_patcher
    multiple, channels = patch_multiple(model), guider.inner_model.latent_format.latent_channels

    def shrunk(reference: Tensor) -> Tensor:
        if reference.shape[1] != channels:
            return reference
        sides = (
            max(1, round(side * small / full / multiple)) * multiple
            for side, small, full in zip(reference.shape[-2:], size[-2:], target[-2:], strict=True)
        )
        return resample.downscale(reference, tuple(sides))

    entry["reference_latents"] = [shrunk(reference) for reference in references]


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
            if isinstance(guider.inner_model, comfy.model_base.WAN21):
                _scale_references(entry, _REFERENCES | _IN_CONTEXT, size, target)
            else:
                _scale_references(entry, _FIRST_PICTURES, size, target)
                _scale_picture_references(entry, size, target, guider)
            if len(size) == 3:
                _scale_video_inputs(entry, size, target)
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
