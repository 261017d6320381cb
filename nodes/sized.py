"""What the host's model is given, at any size of the same picture."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.stretches import Stretch
from .conditioning import control_windows, mask_at, move_windows, resolve_conds
from .hooked import keyframes_of, pass_keyframes
from .kept import begin_anew


class SizedModel:
    """A guider's model whose conditioning, picture and mask follow the size of what it is given.

    Args:
        call: the model, or what a wrapper has made of it. model: the host's own around the guider;
            its noise is that of the size.
        extra_args: of every call. target: the finished latent's (H, W) or (T, H, W).
        start: the clean latent that the run begins with, if any, and mask: what of it may change,
            both of the target's size. shrink: how that latent gets to smaller sizes.
        level: `level(sigma, size)`, what a noise level of the full size is at a smaller one.
        first: the level of the full size that the run begins at.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        model: comfy.samplers.KSamplerX0Inpaint,
        extra_args: dict[str, Any],
        target: tuple[int, ...],
        start: Tensor | None,
        mask: Tensor | None,
        shrink: Callable[[Tensor, Sequence[int]], Tensor] = resample.downscale,
        level: Callable[[float, Sequence[int]], float] = lambda sigma, size: sigma,
        first: float = math.inf,
    ):
        self.call, self.model, self.extra_args = call, model, extra_args
        self.target, self.start, self.full_mask, self.shrink = target, start, mask, shrink
        self.guider, self.level, self.first = model.inner_model, level, first
        self.full_conds = self.guider.conds
        self.controls = control_windows(self.full_conds)
        self.keyframes = keyframes_of(self.full_conds)
        self.size: tuple[int, ...] | None = None
        self.mask: Tensor | None = None

    def __call__(self, x_t: Tensor, sigma: float) -> Tensor:
        """The clean prediction of x_t, (B, C, H, W) or (B, C, T, H, W)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.fit(tuple(x_t.shape[2:]))
        level = x_t.new_full((x_t.shape[0],), sigma)
        return self.call(x_t, level, denoise_mask=self.mask, **self.extra_args)

    def fit(self, size: tuple[int, ...]) -> None:
        """Brings all that the model sees to `size`."""
        if size == self.size:
            return
        if self.size is not None:
            begin_anew(self.guider, self.extra_args.get("model_options", {}))
        noise, self.size = self.model.noise, size
        image = torch.zeros_like(noise) if self.start is None else self.shrink(self.start, size)
        self.model.latent_image, self.mask = image, mask_at(self.full_mask, size)
        self.guider.conds = self.full_conds
        if size != self.target:
            seed = self.extra_args.get("seed") or 0
            self.guider.conds = resolve_conds(
                self.guider, noise, self.target, image, self.mask, seed
            )
            move_windows(self.guider.conds, partial(self.level, size=size))
        for control, window in self.controls:
            control.timestep_range = tuple(self.level(sigma, size) for sigma in window)
            control.cond_hint = None  # of a video, the host doesn't see that the width is another
        self._move_keyframes(size)

    def begin_after(self, stretches: Sequence[Stretch]) -> None:
        """Brings what goes by the calls before to where it is after these stretches of a run."""
        if not self.keyframes:
            return
        for part in stretches:
            self._move_keyframes(part.size)
            level = partial(self.level, size=part.size)
            options = self.extra_args.get("model_options", {})
            pass_keyframes(self.guider, part.sigmas[:-1], level, options)

    def _move_keyframes(self, size: tuple[int, ...]) -> None:
        """The host holds none for a step whose start lies above all levels of the run."""
        if not self.keyframes:
            return
        options = self.extra_args.get("model_options", {}).get("transformer_options", {})
        largest = float(options["sample_sigmas"].max()) if "sample_sigmas" in options else math.inf
        for keyframe, start in self.keyframes:
            above = start > self.first
            keyframe.start_t = start if above else min(self.level(start, size), largest)

    def restore(self) -> None:
        """Gives the guider its conditioning back."""
        self.guider.conds = self.full_conds
        for control, window in self.controls:
            control.timestep_range = window
        for keyframe, start in self.keyframes:
            keyframe.start_t = start
