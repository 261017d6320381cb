"""The SAMPLER both ways of sampling run: the core's loop around a host guider."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core.growing import GrowthState, sample_growing
from ..swd_core.growth import AnySchedule
from ..swd_core.noise import SeededNoise
from ..swd_core.process import Process
from ..swd_core.sampling import Noise
from ..swd_core.stretches import Stretch, step_numbers
from ..swd_core.transfer import sent
from . import _host, _host_latent, _host_model
from .checks import FiniteCheck, check_run, say_if_small
from .sized import SizedModel
from .ways import Report, StudentWay, Way
from .wrapped import check_wrapped, wrapped_model


class ScaleWiseSampler(comfy.samplers.KSAMPLER):
    """Scale-wise sampling (arXiv 2503.16397) as a host SAMPLER, for any guider.

    The size of a step follows from its sigma, so SIGMAS may be cut. A run that ends above 0 returns
    its clean x0, enlarged to the target; the rest of the SIGMAS, with that as latent_image and the
    same seed, goes on from it: every step adds its own noise.

    Args:
        schedule: gives the scale for each sigma. method: how x0 is enlarged.
        indices: number of each image in its batch; None reads it from the noise.
        noise: what the run draws from instead, by the number of the step in SIGMAS.
        state: where to begin. until: stop after this many stretches; None runs to the end.
        on_state: called with the state after each stretch, in the model's own units.
    """

    def __init__(
        self,
        schedule: AnySchedule,
        method: str = "bicubic",
        indices: tuple[int, ...] | None = None,
        *,
        noise: Noise | None = None,
        state: GrowthState | None = None,
        until: int | None = None,
        on_state: Callable[[GrowthState], None] | None = None,
    ):
        self.schedule, self.method, self.indices = schedule, method, indices
        self.noise, self.state = noise, state or GrowthState()
        self.until, self.on_state = until, on_state
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
        guider, levels, target = model.inner_model, sigmas.tolist(), tuple(noise.shape[2:])
        check_run(guider, self.schedule, noise, levels)
        steps = len(levels) - 1
        if steps < 1:
            return torch.zeros_like(noise) if latent_image is None else latent_image
        stretches = self.stretches(guider.model_patcher, levels, target)
        say_if_small(stretches[0].size)
        start = latent_image if latent_image is not None and bool(latent_image.any()) else None
        sized = SizedModel(
            call, model, extra_args, target, start, denoise_mask, first=levels[0],
            **self._at_size(target, levels, noise),
        )  # fmt: skip
        finite = FiniteCheck(levels[:-1], [s.size for s in stretches for _ in range(s.steps)])

        def report(step: int, x0: Tensor, x_t: Tensor) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            finite.add(step, x0)
            if callback is not None:
                callback(step, x0, x_t, steps)

        pure = levels[0] if self.max_denoise(guider, sigmas) else None
        process = _host_model.HostProcess(guider.inner_model.model_sampling, pure)
        way = self._way(sized, process, stretches, levels, noise, report)

        def noise_of(step: int, shape: Sequence[int]) -> Tensor:
            if step:  # before the lift, whose VAE may draw, too
                _host.seed_patches(extra_args.get("seed") or 0, step)
            fresh = way.noise(step, shape)
            # The host's inpainting covers what a mask keeps with the same noise.
            model.noise = sent(fresh, noise.device).to(noise.dtype)
            return model.noise

        try:
            sized.begin_after(stretches[: self.state.stretches])
            state = sample_growing(
                way.solve,
                stretches,
                self.state,
                noise_of,
                lift=way.lift,
                process=process,
                like=noise,
                latent=start,
                shrink=sized.shrink,
                until=self.until,
                on_state=self.on_state,
            )
        finally:
            sized.restore()
        finite.raise_if_broken()
        return way.finish(state)

    def _at_size(
        self, target: tuple[int, ...], levels: list[float], noise: Tensor
    ) -> dict[str, Any]:
        """What of `SizedModel` is not as for a student.

        Args:
            levels: of the run at full size. noise: as the guider gives it.
        """
        return {}

    def _way(
        self,
        sized: SizedModel,
        process: Process,
        stretches: Sequence[Stretch],
        levels: list[float],
        noise: Tensor,
        report: Report,
    ) -> Way:
        """How a stretch is solved, and how what it holds gets to the next size.

        Args:
            noise: of the target's size, as the guider gives it. levels: with the last one.
        """
        return StudentWay(
            sized,
            process,
            draw=self.noise or self._by_number(levels, noise, sized),
            method=self.method,
            report=report,
            eta=self.schedule.eta,
        )

    def _by_number(self, levels: list[float], noise: Tensor, sized: SizedModel) -> Noise:
        """Noise by the number that a step of the run has in the schedule."""
        numbers = step_numbers(levels[:-1], self.table(sized.guider.model_patcher))
        seeded = self._seeded(noise, sized.extra_args)
        return lambda step, shape: seeded(numbers[step], shape)

    def _seeded(self, noise: Tensor, extra_args: dict[str, Any]) -> SeededNoise:
        seed, indices = extra_args.get("seed") or 0, self.indices
        if indices is None:
            indices = _host_latent.indices_from_noise(noise, seed)
        return SeededNoise(seed, indices)

    def stretches(
        self, model: Any, levels: list[float], target: tuple[int, ...]
    ) -> tuple[Stretch, ...]:
        """The run over SIGMAS, to a target (height, width) or (frames, height, width)."""
        *frames, height, width = target
        return self.schedule.stretches(
            height,
            width,
            _host_model.patch_multiple(model),
            frames=frames[0] if frames else None,
            sigmas=levels,
            **self._cut(model),
        )

    def _cut(self, model: Any) -> dict[str, Any]:
        """What else decides where the run is cut into stretches."""
        return {"table": self.table(model)}

    def sizes(
        self, model: Any, levels: list[float], target: tuple[int, ...]
    ) -> list[tuple[int, ...]]:
        """Latent size of each step; see `stretches`."""
        run = self.stretches(model, levels, target)
        return [stretch.size for stretch in run for _ in range(stretch.steps)]

    def table(self, model: Any) -> list[float]:
        """The schedule's sigmas in the model's own terms."""
        return _host_model.schedule_sigmas(model, self.schedule).tolist()[:-1]
