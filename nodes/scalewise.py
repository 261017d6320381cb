"""The SAMPLER both ways of sampling run: the core's loop around a host guider."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.noise import SeededNoise
from ..swd_core.sampling import ScaleState, sample_scalewise
from ..swd_core.schedule import ScaleSchedule, latent_frames, latent_sizes
from . import _host_latent, _host_model
from .checks import FiniteCheck, check_run
from .conditioning import mask_at, resolve_conds
from .kept import begin_anew
from .wrapped import check_wrapped, wrapped_model


def scales_at(sigmas: list[float], table: list[float], scales: tuple[float, ...]) -> list[float]:
    """The scale each of `sigmas` runs at: that of the first step whose own sigma is not above it.

    So SIGMAS may be cut (SplitSigmas) or come from another scheduler: a size is used down to the
    noise level it is meant for and no further. `scales` may also be a schedule's shares of time.
    """

    def scale(sigma: float) -> float:
        fitting = (s for level, s in zip(table, scales, strict=True) if level <= sigma * (1 + 1e-4))
        return next(fitting, 1.0)

    return [scale(sigma) for sigma in sigmas]


def step_numbers(sigmas: list[float], table: list[float]) -> list[int]:
    """Which of the schedule's steps each of `sigmas` is; 0, 1, 2 ... if one is not of the schedule.

    The noise goes by them, so that a run cut in two draws what the whole one draws.
    """

    def number(sigma: float) -> int:
        return next((i for i, s in enumerate(table) if math.isclose(s, sigma, rel_tol=1e-4)), -1)

    found = [number(sigma) for sigma in sigmas]
    return list(range(len(sigmas))) if -1 in found else found


@dataclass(frozen=True)
class _Scale:
    """What changes with the size within a run."""

    size: tuple[int, ...]
    latent_image: Tensor
    mask: Tensor | None
    conds: dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """A part of a run, for drafts: where it begins, after which step it stops, its noise.

    on_x0: called with the clean prediction of every step, in the model's own units.
    """

    state: ScaleState
    until: int
    noise: Callable[[int, Sequence[int]], Tensor]
    on_x0: Callable[[Tensor], None]


class ScaleWiseSampler(comfy.samplers.KSAMPLER):
    """Scale-wise sampling (arXiv 2503.16397) as a host SAMPLER, for any guider.

    The size of a step follows from its sigma, so SIGMAS may be cut. A run that ends above 0 returns
    its clean x0, enlarged to the target; the rest of the SIGMAS, with that as latent_image and the
    same seed, goes on from it: every step adds its own noise.

    Args:
        schedule: gives the scale for each sigma. method: how x0 is enlarged.
        indices: number of each image in its batch; None reads it from the noise.
        stretch: only this part of the run; without it, all.
    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        method: str = "bicubic",
        indices: tuple[int, ...] | None = None,
        stretch: Stretch | None = None,
    ):
        self.schedule, self.method, self.indices = schedule, method, indices
        self.stretch = stretch
        # A KSAMPLER's, for SAMPLERs that wrap one; its function is a method here.
        self.extra_options: dict[str, Any] = {}
        self.inpaint_options: dict[str, Any] = {}

    def sample(
        self,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Called by the guider in its own sample(); noise and latent_image have the target size."""
        model = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
        return self._run(
            model, model, sigmas, extra_args, callback, noise, latent_image, denoise_mask
        )

    def sampler_function(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        """Called by SAMPLERs that wrap one (Detail Daemon, Lying Sigma) in place of sample().

        Args:
            model: the host's model of a KSAMPLER, or a function around it. x: noise of the target
                size in the model's terms, as a KSAMPLER gets it.
        """
        inner = wrapped_model(model)
        check_wrapped(inner, x, self.max_denoise(inner.inner_model, inner.sigmas), options)
        extra_args = dict(extra_args or {})
        mask = extra_args.pop("denoise_mask", None)
        kept = inner.noise, inner.latent_image

        def report(step: int, x0: Tensor, x_t: Tensor, _: int) -> None:
            sigma = sigmas[step]
            callback({"x": x_t, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})

        try:
            x0 = self._run(
                model, inner, sigmas, extra_args, callback and report, *kept, denoise_mask=mask
            )
        finally:
            inner.noise, inner.latent_image = kept
        if not sigmas[-1]:
            return x0
        # The host takes what is left of the noise out of this, as if it were a KSAMPLER's.
        sampling = inner.inner_model.inner_model.model_sampling
        return sampling.noise_scaling(sigmas[-1], torch.zeros_like(x0), x0, False)

    def _run(
        self,
        call: Callable[..., Tensor],
        model: comfy.samplers.KSamplerX0Inpaint,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None,
        denoise_mask: Tensor | None,
    ) -> Tensor:
        """The run. call: the model, or what a wrapper has made of it."""
        guider = model.inner_model
        target = tuple(noise.shape[2:])
        *levels, _ = sigmas.tolist()
        check_run(guider, self.schedule, noise, sigmas.tolist())
        if not levels:
            return torch.zeros_like(noise) if latent_image is None else latent_image
        sizes = self.sizes(guider, levels, target)
        seed = extra_args.get("seed") or 0
        indices = self.indices
        if indices is None:
            indices = _host_latent.indices_from_noise(noise, seed)
        start = latent_image if latent_image is not None and bool(latent_image.any()) else None
        steps = list(sigmas[:-1].unbind())
        begin = steps[0] if self.max_denoise(guider, sigmas) else None
        process = _host_model.HostProcess(guider.inner_model.model_sampling, begin)
        target_conds = guider.conds
        current: _Scale | None = None
        stretch = self.stretch
        numbers = step_numbers(levels, self.table(guider))
        finite = FiniteCheck(levels, sizes)

        def drawn(step: int, shape: Sequence[int]) -> Tensor:
            if stretch is not None:
                return stretch.noise(step, shape)
            return SeededNoise(seed, indices)(numbers[step], shape)

        def step_noise(step: int, shape: tuple[int, ...]) -> Tensor:
            model.noise = drawn(step, shape).to(noise.device, noise.dtype, non_blocking=True)
            return model.noise

        def at_scale(size: tuple[int, ...]) -> _Scale:
            """What the model sees at a size."""
            image = torch.zeros_like(model.noise)
            if start is not None:
                image = resample.downscale(start, size)
            mask, conds = mask_at(denoise_mask, size), target_conds
            if size != target:
                conds = resolve_conds(guider, model.noise, target, image, mask, seed)
            return _Scale(size, image, mask, conds)

        def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
            nonlocal current
            comfy.model_management.throw_exception_if_processing_interrupted()
            size = tuple(x_t.shape[2:])
            if current is None or current.size != size:
                if current is not None:
                    begin_anew(guider, extra_args.get("model_options", {}))
                current = at_scale(size)
                guider.conds, model.latent_image = current.conds, current.latent_image
            return call(x_t, sigma.expand(x_t.shape[0]), denoise_mask=current.mask, **extra_args)

        def on_step(step: int, x_t: Tensor, x0: Tensor) -> None:
            finite.add(step, x0)
            if stretch is not None:
                stretch.on_x0(x0)
            if callback is not None:
                callback(step, x0, x_t, len(levels))

        first = None if start is None else resample.downscale(start, sizes[0])
        try:
            state = sample_scalewise(
                denoise,
                steps,
                sizes,
                ScaleState(first) if stretch is None or not stretch.state.step else stretch.state,
                step_noise,
                process=process,
                like=noise,
                until=None if stretch is None else stretch.until,
                upscale=lambda x0, size: resample.upscale(x0, size, self.method),
                on_step=on_step,
            )
        finally:
            guider.conds = target_conds
        finite.raise_if_broken()
        if stretch is not None:
            return state.x0  # drafts take theirs from on_x0, at its own size
        return resample.upscale(state.x0, target, self.method)

    def sizes(
        self, guider: Any, levels: list[float], target: tuple[int, ...]
    ) -> list[tuple[int, ...]]:
        """Latent size of each step, (height, width) or (frames, height, width) as the target is.

        The step that ends at 0 has the target's.
        """
        *frames, height, width = target
        table = self.table(guider)
        scales = scales_at(levels, table, self.schedule.scales)
        multiple = _host_model.patch_multiple(guider.model_patcher)
        sizes = latent_sizes(scales, height, width, multiple)
        if not frames:
            return sizes
        times = latent_frames(scales_at(levels, table, self.schedule.time), frames[0])
        return [(t, *size) for t, size in zip(times, sizes, strict=True)]

    def table(self, guider: Any) -> list[float]:
        """The schedule's sigmas in the model's own terms."""
        return _host_model.schedule_sigmas(guider.model_patcher, self.schedule).tolist()[:-1]
