"""The SAMPLER both ways of sampling run: the core's loop around a host guider."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.noise import SeededNoise
from ..swd_core.sampling import ScaleState, sample_scalewise
from ..swd_core.schedule import ScaleSchedule, latent_sizes
from . import _host


def scales_at(sigmas: list[float], table: list[float], scales: tuple[float, ...]) -> list[float]:
    """The scale each of `sigmas` runs at: that of the first step whose own sigma is not above it.

    So SIGMAS may be cut (SplitSigmas) or come from another scheduler: a size is used down to the
    noise level it is meant for and no further.
    """
    def scale(sigma: float) -> float:
        fitting = (s for level, s in zip(table, scales, strict=True) if level <= sigma * (1 + 1e-4))
        return next(fitting, 1.0)

    return [scale(sigma) for sigma in sigmas]


@dataclass
class _Scale:
    """What changes with the size within a run."""

    size: tuple[int, int]
    latent_image: Tensor | None
    mask: Tensor | None
    conds: dict[str, Any]


class ScaleWiseSampler(comfy.samplers.Sampler):
    """Scale-wise sampling (arXiv 2503.16397) as a host SAMPLER, for any guider.

    Args:
        schedule: gives the scale for each sigma. method: how x0 is enlarged.
        indices: number of each image in its batch; None reads it from the noise.
    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        method: str = "bicubic",
        indices: tuple[int, ...] | None = None,
    ):
        self.schedule, self.method, self.indices = schedule, method, indices

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
        """Called by the guider inside its own sample(); noise and latent_image have the target size."""
        target = tuple(noise.shape[-2:])
        levels = sigmas.tolist()[:-1]
        sizes = self.sizes(guider, levels, target)
        seed = extra_args.get("seed") or 0
        indices = self.indices if self.indices is not None else _host.indices_from_noise(noise, seed)
        start = latent_image if latent_image is not None and bool(latent_image.any()) else None
        model = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
        steps = list(sigmas[:-1].unbind())
        begin = steps[0] if self.max_denoise(guider, sigmas) else None
        process = _host.HostProcess(guider.inner_model.model_sampling, begin)
        target_conds = guider.conds
        current: _Scale | None = None
        drawn = SeededNoise(seed, indices)

        def step_noise(step: int, shape: tuple[int, ...]) -> Tensor:
            nonlocal current
            size = tuple(shape[-2:])
            model.noise = drawn(step, shape).to(noise.device, noise.dtype, non_blocking=True)
            if current is None or current.size != size:
                image = None if start is None else resample.downscale(start, size)
                mask = None if denoise_mask is None else resample.downscale(denoise_mask, size)
                current = _Scale(size, image, mask, target_conds)
                if size != target:
                    current.conds = _host.resolve_conds(guider, model.noise, target, image, mask, seed)
                guider.conds = current.conds
                model.latent_image = torch.zeros_like(model.noise) if image is None else image
            return model.noise

        def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model(x_t, sigma.expand(x_t.shape[0]), denoise_mask=current.mask, **extra_args)

        def on_step(step: int, x_t: Tensor, x0: Tensor) -> None:
            if callback is not None:
                callback(step, x0, x_t, len(levels))

        first = None if start is None else resample.downscale(start, sizes[0])
        state = sample_scalewise(
            denoise,
            steps,
            sizes,
            ScaleState(first),
            step_noise,
            process=process,
            like=noise,
            upscale=lambda x0, size: resample.upscale(x0, size, self.method),
            on_step=on_step,
        )
        guider.conds = target_conds
        return resample.upscale(state.x0, target, self.method)

    def sizes(self, guider: Any, levels: list[float], target: tuple[int, int]) -> list[tuple[int, int]]:
        """Latent size of each step; the step that ends at 0 has the target's."""
        patcher = guider.model_patcher
        table = _host.schedule_sigmas(patcher, self.schedule).tolist()[:-1]
        scales = scales_at(levels, table, self.schedule.scales)
        return latent_sizes(scales, *target, _host.patch_multiple(patcher))
