"""The SAMPLER of growing runs: the host's own solvers at each size, with lifts in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import comfy.samplers
import torch
from torch import Tensor

from ..swd_core import resample
from ..swd_core.growing import GrowthState, OneField, shrunk
from ..swd_core.growth import AnySchedule, GrowthSchedule
from ..swd_core.lifts import lift_spectral, lift_swd, regrid, size_ratio
from ..swd_core.process import Process
from ..swd_core.stretches import Stretch, step_numbers
from . import _host_model
from .scalewise import ScaleWiseSampler
from .sized import SizedModel
from .solvers import (
    TREE,
    PathNoise,
    StepNoise,
    check_solver,
    draws_noise,
    shortest,
    solver_named,
    walks,
)  # fmt: skip
from .ways import Report, Way


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
        method: how x0 is enlarged, for the lift "swd".
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

    def __post_init__(self) -> None:
        own = [s for part in self.stretches for s in part.sigmas[:-1]] + self.levels[-1:]
        options = self.sized.extra_args.setdefault("model_options", {})
        options.setdefault("transformer_options", {})["sample_sigmas"] = torch.tensor(
            own, device=self.begin.device
        )
        self.numbers = step_numbers(self.levels[:-1], self.schedule.sigmas)

    @property
    def spectral(self) -> bool:
        return self.schedule.lift == "spectral"

    @cached_property
    def field(self) -> OneField:
        odds = self.schedule.levels.odds(self.levels[0])
        return OneField(self._full, self.sized.target[-2:], self.start, odds)

    def _full(self, step: int, shape: Sequence[int]) -> Tensor:
        return self.begin if step == 0 else self.source(step, shape).to(self.begin.device)

    def noise(self, step: int, shape: Sequence[int]) -> Tensor:
        if self.spectral or not step:
            return self.field(step, shape)
        return self.source(self.numbers[step], shape)

    def lift(
        self, x_t: Tensor, x0: Tensor, sigma: float, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, float]:
        if self.spectral:
            return lift_spectral(x_t, x0, sigma, size, noise, levels=self.schedule.levels)
        return lift_swd(x_t, x0, sigma, size, noise, process=self.process, upscale=self.upscale)

    def solve(self, x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        size, model = stretch.size, self.sized.model
        model.noise = regrid(self._inpainting_noise(), size)
        self.sized.fit(size)
        options: dict[str, Any] = dict(self.solver.extra_options)
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
            noise = self.noise(last.step + last.steps - 1, (*x_t.shape[:2], *target))
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
                return change(self.schedule.full(sigma, ratio), mask, **more)

            options["denoise_mask_function"] = changed
        mask = self.sized.mask
        return {**self.sized.extra_args, "model_options": options, "denoise_mask": mask}

    def _solver_noise(self, size: tuple[int, ...]) -> StepNoise | PathNoise | None:
        if not draws_noise(self.solver):
            return None
        full = size if not self.spectral else self.sized.target
        shape = (*self.begin.shape[:2], *full)
        if not walks(self.solver):
            return StepNoise(self._full, shape, size, self.numbers.__getitem__)
        given = [s for s in (*self.schedule.sigmas, *self.levels) if s]
        ratio = self._ratio(size)
        return PathNoise(
            self.source.seeds(TREE),
            self.begin.new_zeros(shape),
            (min(given), max(given)),
            size,
            lambda own: self.schedule.full(own, ratio),
        )


class GrowthSampler(ScaleWiseSampler):
    """Sampling of any model over growing sizes, as a host SAMPLER.

    Args:
        solver: a KSAMPLER of the host's that makes the steps; None is the schedule's own.

    Raises:
        ValueError: if the solver can't be cut where the size changes.
    """

    def __init__(
        self,
        schedule: GrowthSchedule,
        method: str = "bicubic",
        indices: tuple[int, ...] | None = None,
        *,
        solver: Any = None,
        **more: Any,
    ):
        super().__init__(schedule, method, indices, **more)
        self.solver = solver_named(schedule.solver) if solver is None else solver
        check_solver(self.solver)

    def stretches(
        self, model: Any, levels: list[float], target: tuple[int, ...]
    ) -> tuple[Stretch, ...]:
        *frames, height, width = target
        return self.schedule.stretches(
            height,
            width,
            _host_model.patch_multiple(model),
            frames=frames[0] if frames else None,
            sigmas=levels,
            shortest=shortest(self.solver),
        )

    def _at_size(self, target: tuple[int, ...]) -> dict[str, Any]:
        if self.schedule.lift != "spectral":
            return {}
        level = self.schedule.own
        return {
            "shrink": shrunk,
            "level": lambda sigma, size: level(sigma, size_ratio(size, target)),
        }

    def _way(
        self,
        sized: SizedModel,
        process: Process,
        stretches: Sequence[Stretch],
        levels: list[float],
        noise: Tensor,
        report: Report,
    ) -> Way:
        source = self.noise
        begin = noise if source is None else source(0, noise.shape).to(noise)
        if source is None and (draws_noise(self.solver) or self.schedule.lift != "spectral"):
            source = self._seeded(noise, sized.extra_args)
        return GrowthWay(
            sized, process, self.schedule, self.solver, begin, source, sized.start, levels,
            stretches, self.method, report,
        )  # fmt: skip


def sampler_of(
    schedule: AnySchedule,
    method: str,
    indices: tuple[int, ...] | None = None,
    *,
    solver: Any = None,
    **more: Any,
) -> ScaleWiseSampler:
    """The SAMPLER of a schedule; see `ScaleWiseSampler` and `GrowthSampler`.

    Raises:
        ValueError: if a solver is given that a student has no use for, or that can't be cut.
    """
    if isinstance(schedule, GrowthSchedule):
        return GrowthSampler(schedule, method, indices, solver=solver, **more)
    if solver is not None:
        raise ValueError(
            "A sampler is connected, but the schedule is a student's, whose steps have a way of "
            "their own. Take the sampler off, or connect SwD Growth Schedule."
        )
    return ScaleWiseSampler(schedule, method, indices, **more)
