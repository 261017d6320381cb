"""What can be known to fail, said before the first model call; and broken numbers, said by step."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..swd_core.growth import AnySchedule
from . import _host_latent, _host_model
from ._host import say
from .fitting import check_conditioning
from .video_inputs import refuse_unscalable

LEAST_SIDE = 8  # the smallest first step of the published schedules at a quarter of their size


def check_run(
    guider: Any,
    schedule: AnySchedule,
    noise: Tensor,
    sigmas: Sequence[float],
) -> None:
    """Raises ValueError if the guider, the latent or the SIGMAS can't be sampled scale by scale.

    Args:
        noise: of the target size. sigmas: with the last one, that the run ends at.
    """
    if not hasattr(guider, "original_conds") or not hasattr(guider, "model_patcher"):
        raise ValueError(
            f"The guider {type(guider).__name__} keeps no conditioning that could be fitted to "
            "each size. Use BasicGuider, CFGGuider or another of the host's guiders."
        )
    _host_latent.plain_samples({"samples": noise})
    patcher = guider.model_patcher
    _host_latent.check_channels(noise, patcher)
    _host_model.check_positions(patcher, noise.shape)
    if noise.ndim == 4:
        schedule.check_picture()
    else:
        refuse_unscalable(guider.original_conds, noise.shape[2:], schedule)
    check_conditioning(guider, noise.shape)
    _host_model.check_prediction(patcher, schedule)
    _check_sigmas(sigmas, float(patcher.get_model_object("model_sampling").sigma_max))
    _refuse_shuffled_noise(guider.model_options, noise)
    if not (schedule.grows or schedule.frames):
        return  # one size throughout
    refuse_momentum(
        guider.model_options, "steps of different sizes, which can't work scale by scale"
    )
    _refuse_supir(guider.model_options)
    if schedule.frames:
        _refuse_uni3c(guider.model_options)
    _refuse_infinite_talk(patcher)
    if getattr(guider, "uncond_inner", None) is not None:
        raise ValueError(
            "Dual Model CFG Guider fits its negative to the finished size only, and can't follow "
            "to smaller ones. Set its cfg to 1.0, or use CFGGuider."
        )


def say_if_small(size: Sequence[int]) -> None:
    """Says so if a first step's size, (..., H, W) in latent cells, holds no picture."""
    height, width = size[-2:]
    if min(height, width) < LEAST_SIDE:
        say(
            f"The first step has only {width} x {height} latent cells, too few for a picture. "
            "Choose a larger finished size, or a schedule that begins larger."
        )


def _check_sigmas(sigmas: Sequence[float], largest: float) -> None:
    for step, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False), 1):
        if not (math.isfinite(sigma) and 0 <= after < sigma):
            raise ValueError(
                f"The SIGMAS must fall from step to step; step {step} goes from {sigma:g} to "
                f"{after:g}. Take them from the node that made the schedule."
            )
    if sigmas and sigmas[0] > largest * 1.01:
        raise ValueError(
            f"The SIGMAS begin at {sigmas[0]:g}, above this model's largest, {largest:g}: they are "
            "for another kind of model. Take them from the schedule's node, with this model."
        )


def refuse_momentum(model_options: dict[str, Any], over: str) -> None:
    """Raises ValueError for APG's running average, which can't be resized or kept from outside.

    Args:
        over: what it averages over.
    """
    for function in model_options.get("sampler_pre_cfg_function", []):
        if getattr(function, "__qualname__", "").startswith("APG."):
            momentum = inspect.getclosurevars(function).nonlocals.get("momentum", 0)
            if momentum != 0:
                raise ValueError(
                    f"Adaptive Projected Guidance with momentum {momentum:g} averages over {over}. "
                    "Set its momentum to 0."
                )


def _is_patched(model_options: dict[str, Any], name: str) -> bool:
    """Whether a patch of the host's class `name` changes the network."""
    patches = model_options.get("transformer_options", {}).get("patches", {})
    found = (getattr(patch, "__self__", patch) for kind in patches.values() for patch in kind)
    return any(type(patch).__name__ == name for patch in found)


def _refuse_uni3c(model_options: dict[str, Any]) -> None:
    """It cuts its video to as many frames as it sees, so that fewer would be the first ones."""
    if _is_patched(model_options, "WanUni3CCnetPatch"):
        raise ValueError(
            "Uni3C's control video can't follow a video that grows in time. Take Apply Wan Uni3C "
            "ControlNet out of the graph, or choose custom with custom_frames empty."
        )


def _refuse_supir(model_options: dict[str, Any]) -> None:
    """SUPIR's picture has the finished size for good; at a smaller one its network can't run."""
    if _is_patched(model_options, "SUPIRPatch"):
        raise ValueError(
            "SUPIR encodes its picture once, at the finished size, and can't follow to smaller "
            "ones. Take Apply SUPIR Patch out of the graph."
        )


def _refuse_infinite_talk(patcher: Any) -> None:
    """Its frames of the video before, and its masks of who speaks, have the finished size."""
    for wrapper in patcher.get_all_wrappers(WrappersMP.OUTER_SAMPLE):
        if type(wrapper).__name__ == "InfiniteTalkOuterSampleWrapper":
            raise ValueError(
                "WanInfiniteTalkToVideo's motion frames have the finished size, and can't follow "
                "to smaller ones. Sample at one size, or take that node out of the graph."
            )


def _refuse_shuffled_noise(model_options: dict[str, Any], noise: Tensor) -> None:
    """FreeNoise shuffles the noise that a run begins with; every scale draws its own."""
    windows = model_options.get("context_handler")
    if getattr(windows, "freenoise", False):
        if noise.shape[windows.dim] > windows.context_length:
            raise ValueError(
                "freenoise shuffles the noise that a run begins with, but here every scale draws "
                "its own. Switch freenoise off in the Context Windows node."
            )


class FiniteCheck:
    """Finds the first step whose x0 holds NaN or infinity; a GPU does not wait for each step."""

    def __init__(self, levels: Sequence[float], sizes: Sequence[Sequence[int]]):
        self.levels, self.sizes = levels, sizes
        self.steps: list[int] = []
        self.finite: list[Tensor] = []

    def add(self, step: int, x0: Tensor) -> None:
        self.steps.append(step)
        self.finite.append(torch.isfinite(x0).all())
        if x0.device.type == "cpu":
            self.raise_if_broken()

    def raise_if_broken(self) -> None:
        """Raises RuntimeError that names the first broken step; one device sync."""
        if not self.finite:
            return
        for step, good in zip(self.steps, torch.stack(self.finite).tolist(), strict=True):
            if not good:
                (*_, height, width), (*_, rows, columns) = self.sizes[step], self.sizes[-1]
                scale = max(height / rows, width / columns)
                raise RuntimeError(
                    f"The model gave NaN or infinity at step {step + 1} of {len(self.levels)}: "
                    f"scale {scale:g} ({width}x{height} latent cells), sigma "
                    f"{self.levels[step]:.4f}. Usual causes: fp16 overflow (use bf16 or fp32 "
                    "weights, --force-fp32), a damaged checkpoint or LoRA, or a latent_image that "
                    "is already broken."
                )
