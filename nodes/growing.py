"""Any model's way through a growing run: the host's own solvers at each size, lifts in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.growing import GrowthState, OneField
from ..swd_core.growth import GrowthSchedule
from ..swd_core.lifts import lift_pixels, lift_spectral, lift_swd, regrid, size_ratio
from ..swd_core.process import Process
from ..swd_core.sampling import Noise
from ..swd_core.stretches import Stretch, step_numbers
from ..swd_core.transfer import sent
from .conditioning import mask_at
from .levels import RunLevels
from .sized import SizedModel
from .solvers import CLIP, TREE, PathNoise, StepNoise, draws_noise, options_of, walks
from .ways import Report


class Source(Protocol):
    """Where a run's noise comes from, by address and image."""

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor: ...

    def seeds(self, step: int) -> list[int]: ...


@dataclass
class GrowthWay:
    """Stretches of a solver at growing sizes, with spectral or the student's lifts between.

    Args:
        begin: noise of the full size that the run begins with. source: of all other noise, where
            there is any.
        start: the clean latent that the run begins with, if any.
        levels: of the full size, with the one that the run ends at. stretches: of the run.
        method: how x0 is enlarged, for the lift "swd". vae: for the lift "pixels".
        report: called with step, x0 and x_t of each step.
    """

    sized: SizedModel
    process: Process
    schedule: GrowthSchedule
    solver: comfy.samplers.KSAMPLER
    begin: Tensor
    source: Source | None
    start: Tensor | None
    levels: list[float]
    stretches: Sequence[Stretch]
    method: str
    report: Report
    vae: Any = None

    def __post_init__(self) -> None:
        # HunyuanImage's distilled model reads there where a step goes to: at its end each stretch
        # goes to a level of its own. What else reads it counts the steps.
        net = self.sized.guider.inner_model.diffusion_model
        whole = self.spectral and getattr(net, "time_r_in", None) is not None
        own: list[float] = []
        for part in self.stretches:
            own += part.sigmas[:-1]
            after = part.step + part.steps  # its end, and where a step from there would go
            if whole and after < len(self.levels) - 1:
                beyond = self.schedule.own(self.levels[after + 1], self._ratio(part.size))
                own += (part.sigmas[-1], beyond)
        own += self.levels[-1:]
        options = self.sized.extra_args.setdefault("model_options", {})
        options.setdefault("transformer_options", {})["sample_sigmas"] = torch.tensor(
            own, device=self.begin.device
        )
        self.numbers = step_numbers(self.levels[:-1], self.schedule.sigmas)

    @property
    def spectral(self) -> bool:
        return self.schedule.lift == "spectral"

    @cached_property
    def run(self) -> RunLevels:
        return RunLevels(self.schedule, *self.levels[:2])

    @cached_property
    def field(self) -> OneField:
        odds = self.schedule.levels.odds(self.levels[0])
        return OneField(self.full_noise(), self.sized.target[-2:], self.start, odds)

    def full_noise(self) -> Noise:
        """Noise of the full size by step.

        No method gives it: `field`, which holds it, would hold this way in a circle, and with it
        the model on a graphics card until Python next looks for circles.
        """
        begin, source = self.begin, self.source
        return lambda step, shape: begin if step == 0 else sent(source(step, shape), begin.device)

    def noise(self, step: int, shape: Sequence[int]) -> Tensor:
        if self.spectral or not step:
            return self.field(step, shape)
        return self.source(self.numbers[step], shape)

    def lift(
        self, x_t: Tensor, x0: Tensor, sigma: float, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, float]:
        if self.spectral:
            return lift_spectral(x_t, x0, sigma, size, noise, levels=self.schedule.levels)
        if self.schedule.lift == "swd":
            return lift_swd(x_t, x0, sigma, size, noise, process=self.process, upscale=self.upscale)
        mask = mask_at(self.sized.full_mask, tuple(size))
        return lift_pixels(
            x_t, x0, sigma, size, noise, process=self.process, decode=self.decode,
            encode=self.encode, mask=None if mask is None else mask[:, :1],
        )  # fmt: skip

    def decode(self, x0: Tensor) -> Tensor:
        """The picture (B, 3, H, W), or (B, 3, T, H, W), of a clean latent."""
        samples = self.sized.guider.inner_model.process_latent_out(x0.float())
        with used_models_kept():
            return self.vae.decode(samples).movedim(-1, 1)

    def encode(self, picture: Tensor) -> Tensor:
        """A clean latent; one picture at a time, as a VAE of videos takes a batch for frames."""
        with used_models_kept():
            rows = [
                self.vae.encode(row.movedim(0, -1).reshape(-1, *row.shape[-2:], row.shape[0]))
                for row in picture.float().clamp(0, 1)
            ]
        return self.sized.guider.inner_model.process_latent_in(torch.cat(rows))

    def solve(self, x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        size, model = stretch.size, self.sized.model
        model.noise = regrid(self._inpainting_noise(), size)
        self.sized.fit(size)
        sampling = self.sized.guider.inner_model.model_sampling
        options = options_of(self.solver, stretch, self.levels, sampling.percent_to_sigma)
        drawn = self._solver_noise(size)
        if drawn is not None:
            options["noise_sampler"] = drawn
            drawn.at(stretch.step)
        last = x_t

        def callback(done: dict[str, Any]) -> None:
            nonlocal last
            step = stretch.step + min(done["i"], stretch.steps - 1)
            last = done["denoised"]
            if drawn is not None:
                drawn.at(step)
            self.report(step, last, done["x"])

        x_t = self.solver.sampler_function(
            self.sized.call,
            x_t,
            x_t.new_tensor(stretch.sigmas),
            extra_args=self._extra_args(size),
            callback=callback,
            disable=True,
            **options,
        )
        return x_t, last

    def finish(self, state: GrowthState) -> Tensor:
        """As the host's samplers give it back: at the level the SIGMAS end at, of full size."""
        target, last = self.sized.target, self.stretches[state.stretches - 1]
        if state.stretches < len(self.stretches):  # a draft, whose result is its state
            return self.upscale(state.x0, target)
        x_t = state.x_t
        if last.size != target:
            noise = self.noise(last.step + last.steps - 1, (*x_t.shape[:2], *target)).to(x_t)
            x_t, _ = self.lift(x_t, state.x0, last.sigmas[-1], target, noise)
        sampling = self.sized.guider.inner_model.model_sampling
        return sampling.inverse_noise_scaling(x_t.new_full((), self.levels[-1]), x_t)

    def upscale(self, x0: Tensor, size: Sequence[int]) -> Tensor:
        return resample.upscale(x0, size, self.method)

    def _ratio(self, size: Sequence[int]) -> float:
        return size_ratio(size, self.sized.target)

    def _inpainting_noise(self) -> Tensor:
        """What keeps the rest of the picture at the run's level, at full size."""
        if not self.solver.inpaint_options.get("random", False):
            return self.begin
        seed = self.sized.extra_args.get("seed") or 0  # as the host's ddim does
        drawn = torch.randn(self.begin.shape, generator=torch.Generator().manual_seed(seed + 1))
        return drawn.to(self.begin)

    def _extra_args(self, size: tuple[int, ...]) -> dict[str, Any]:
        """Of the solver's calls; what changes a mask by the noise level is told the full size's."""
        options = dict(self.sized.extra_args["model_options"])
        change = options.get("denoise_mask_function")
        if change is not None:
            ratio = self._ratio(size)

            def changed(sigma: Tensor, mask: Tensor, **more: Any) -> Tensor:
                return change(self.run.full(sigma, ratio), mask, **more)

            options["denoise_mask_function"] = changed
        mask = self.sized.mask
        return {**self.sized.extra_args, "model_options": options, "denoise_mask": mask}

    def _solver_noise(self, size: tuple[int, ...]) -> StepNoise | PathNoise | None:
        if not draws_noise(self.solver):
            return None
        full = size if not self.spectral else self.sized.target
        shape = (*self.begin.shape[:2], *full)
        if not walks(self.solver):
            clip = self.solver.extra_options.get(CLIP) or 0.0
            return StepNoise(self.full_noise(), shape, size, self.numbers.__getitem__, clip)
        given = [s for s in (*self.schedule.sigmas, *self.levels) if s]
        ratio = self._ratio(size)
        return PathNoise(
            self.source.seeds(TREE),
            self.begin.new_zeros(shape),
            (min(given), max(given)),
            size,
            lambda own: self.run.full(own, ratio),
        )


@contextmanager
def used_models_kept() -> Iterator[None]:
    """Has the host bring back what the run uses, where a VAE took its place on the device."""
    used = comfy.model_management.loaded_models(only_currently_used=True)
    try:
        yield
    finally:
        comfy.model_management.load_models_gpu(used)
