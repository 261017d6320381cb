"""What video models read beside the text, at the sizes that a video grows through."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.controlnet
import comfy.model_base
from einops import rearrange
from torch import Tensor

from ..swd_core import resample
from ..swd_core.growth import AnySchedule

VIDEO_CELL = 8  # pixels of a latent cell of Wan's 16 channels, which its masks and cameras have
# One entry per latent frame (Wan image-to-video), or pictures without a place in time.
_BY_FRAME = {"concat_latent_image", "concat_mask", "mask"}
# Latents of the video's sides that the host leaves as they are: references of several kinds, the
# videos of VACE, Animate, Bernini and sound to video, and SCAIL's masks of who is who. What has
# other sides, as Bernini's references, has them whatever the video's are.
_BESIDE = {
    "reference_latents", "time_dim_concat", "vace_frames", "pose_video_latent", "control_video",
    "context_latents", "reference_motion", "ref_mask_28ch",
}  # fmt: skip
# The same of other models: HunyuanVideo's and Kandinsky's first picture.
_FIRST_PICTURES = {"ref_latent", "time_dim_replace"}
# What has the finished size for good, and of what it is, as the error says. LTX-Video counts the
# places of its guides in cells; SCAIL's poses have half the sides, which needn't be whole cells.
_FULL_SIZE = {
    "pose_video_latent": "other sides than the latent (WanSCAILToVideo's are half of them)",
    "keyframe_idxs": "LTXVAddGuide",
    "guide_attention_entries": "LTXVAddGuide",
    "generated_keyframes": "LTXVAddGuide",
    "condition": "SeedVR2Conditioning",
}
_WITHOUT_TIME = {
    *_BY_FRAME, "reference_latents", "time_dim_concat", "ref_latent", "cross_attn", "pooled_output",
    "attention_mask", "area", "unclip_conditioning", "conditioning_llama3", "t5xxl_ids",
    "t5xxl_weights", "guidance", "conditioning_byt5small", "cross_attn_pose",
}  # fmt: skip


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
            if schedule.grows and key in _FULL_SIZE and not _follows(key, value, target):
                raise ValueError(
                    f"The conditioning holds {key!r} of {_FULL_SIZE[key]}, which can't follow a "
                    "video that grows in size. Take it out of the graph, or sample at one size."
                )
            if schedule.frames and key not in _WITHOUT_TIME and _holds_tensor(value):
                raise ValueError(
                    f"The conditioning holds {key!r}, which can't follow a video that grows in "
                    "time. Take it out of the graph, or choose custom with custom_frames empty."
                )
            if schedule.frames and key in _BY_FRAME:
                count = _frame_count(key, value)
                if count not in (frames, 1):
                    raise ValueError(
                        f"The conditioning's {key!r} has {count} latent frames, the video that is "
                        f"sampled has {frames}. Make both of the same length."
                    )


def _follows(key: str, value: Any, target: Sequence[int]) -> bool:
    """Whether it can follow, or holds nothing that would have to."""
    fits = isinstance(value, Tensor) and _same_sides(value, target)
    return not _holds_tensor(value) or key in _BESIDE and fits


def _same_sides(x: Tensor, size: Sequence[int]) -> bool:
    return tuple(x.shape[-2:]) == tuple(size[-2:])


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


def scale_video_inputs(
    entry: dict[str, Any], size: Sequence[int], target: Sequence[int], guider: Any
) -> None:
    """Brings what the host takes as it is to (T, H, W), in a copy of a conditioning entry.

    Pictures and videos of the target's sides shrink as latents do, masks and cameras by the pixel.
    """

    def shrunk(latent: Tensor) -> Tensor:
        fits = _same_sides(latent, target)
        return resample.downscale(latent, size[-2:]) if fits else latent

    if isinstance(guider.inner_model, comfy.model_base.WAN21):
        _change(entry, _BESIDE, shrunk)
        _change(entry, {"vace_mask"}, lambda mask: _shrunk_pixels(mask, size))
        # A camera's rays, through every pixel; then through the larger pixels' middles.
        _change(
            entry, {"camera_conditions"}, lambda rays: in_proportion(rays, size, target, VIDEO_CELL)
        )
    else:
        _change(entry, _FIRST_PICTURES, shrunk)
    for key in _BY_FRAME & entry.keys():  # the host scales these in space
        value = entry[key]
        if _frame_count(key, value) == target[0] != size[0]:
            entry[key] = resample.pick_frames(value, size[0], -3)


def _change(entry: dict[str, Any], keys: set[str], change: Callable[[Tensor], Tensor]) -> None:
    """Puts changed tensors for those under some keys, alone or in a list."""
    for key in keys & entry.keys():
        value = entry[key]
        if isinstance(value, list):
            entry[key] = [change(x) for x in value]
        elif isinstance(value, Tensor):
            entry[key] = change(value)


def _shrunk_pixels(mask: Tensor, size: Sequence[int]) -> Tensor:
    """VACE's mask (B, 64, T, H, W), which has every pixel of a cell as a channel."""
    cell = {"p": VIDEO_CELL, "q": VIDEO_CELL}
    pixels = rearrange(mask, "b (p q) t h w -> b t (h p) (w q)", **cell)
    pixels = resample.downscale(pixels, [side * VIDEO_CELL for side in size[-2:]])
    return rearrange(pixels, "b t (h p) (w q) -> b (p q) t h w", **cell)


def in_proportion(
    reference: Tensor, size: Sequence[int], target: Sequence[int], multiple: int
) -> Tensor:
    """Shrinks what has sides of its own as much as the picture, to a multiple of some cells."""
    sides = (
        max(1, round(side * small / full / multiple)) * multiple
        for side, small, full in zip(reference.shape[-2:], size[-2:], target[-2:], strict=True)
    )
    return resample.downscale(reference, tuple(sides))
