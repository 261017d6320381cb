"""The SAMPLER of growing runs, and which SAMPLER a schedule needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from ..swd_core.growing import shrunk
from ..swd_core.growth import AnySchedule, GrowthSchedule
from ..swd_core.lifts import regrid, size_ratio
from ..swd_core.process import Process
from ..swd_core.stretches import Stretch
from .growing import GrowthWay
from .levels import RunLevels
from .scalewise import ScaleWiseSampler
from .sized import SizedModel
from .solvers import check_solver, draws_noise, shortest, solver_of
from .ways import Report, Way


@dataclass(frozen=True)
class PixelGrowth(GrowthSchedule):
    """A growth schedule that has the VAE for lifts through pixels with it, which no file keeps."""

    vae: Any = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return plain_schedule(self).to_dict()


def plain_schedule(schedule: AnySchedule) -> AnySchedule:
    """The same without a VAE."""
    if not isinstance(schedule, PixelGrowth):
        return schedule
    return GrowthSchedule(**{f.name: getattr(schedule, f.name) for f in fields(GrowthSchedule)})


class GrowthSampler(ScaleWiseSampler):
    """Sampling of any model over growing sizes, as a host SAMPLER.

    Args:
        solver: a KSAMPLER of the host's that makes the steps; None is the schedule's own.
        vae: for lifts through pixels, where none comes with the schedule.

    Raises:
        ValueError: if the solver can't be cut where the size changes, or there is no VAE for a lift
            that needs one.
    """

    def __init__(
        self,
        schedule: GrowthSchedule,
        method: str = "bicubic",
        indices: tuple[int, ...] | None = None,
        *,
        solver: Any = None,
        vae: Any = None,
        **more: Any,
    ):
        super().__init__(schedule, method, indices, **more)
        self.solver = solver_of(schedule) if solver is None else solver
        check_solver(self.solver)
        self.vae = getattr(schedule, "vae", None) or vae
        if schedule.lift == "pixels" and self.vae is None:
            raise ValueError(
                "The growth schedule lifts through pixels, which needs the model's VAE. Connect it "
                "to SwD Growth Schedule (drafts from a file: to the finishing node), or choose the "
                "lift spectral."
            )

    def _cut(self, model: Any) -> dict[str, Any]:
        return {"shortest": shortest(self.solver)}

    def _at_size(
        self, target: tuple[int, ...], levels: list[float], noise: Tensor
    ) -> dict[str, Any]:
        if self.schedule.lift != "spectral":
            return {}
        own = RunLevels(self.schedule, *levels[:2]).own
        # A latent to which AddNoise has added the highest level: as strong noise on every grid.
        given = self.noise is None and self.schedule.is_top(levels[0])
        noisy = given and not bool(noise.any())
        return {
            "shrink": regrid if noisy else shrunk,
            "level": lambda sigma, size: own(sigma, size_ratio(size, target)),
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
            sized=sized,
            process=process,
            schedule=self.schedule,
            solver=self.solver,
            begin=begin,
            source=source,
            start=sized.start,
            levels=levels,
            stretches=stretches,
            method=self.method,
            report=report,
            vae=self.vae,
        )


def sampler_of(
    schedule: AnySchedule,
    method: str,
    indices: tuple[int, ...] | None = None,
    *,
    solver: Any = None,
    vae: Any = None,
    **more: Any,
) -> ScaleWiseSampler:
    """The SAMPLER of a schedule; see `ScaleWiseSampler` and `GrowthSampler`.

    Raises:
        ValueError: if a solver is given that a student has no use for, or that can't be cut.
    """
    if isinstance(schedule, GrowthSchedule):
        return GrowthSampler(schedule, method, indices, solver=solver, vae=vae, **more)
    if solver is not None:
        raise ValueError(
            "A sampler is connected, but the schedule is a student's, whose steps have a way of "
            "their own. Take the sampler off, or connect SwD Growth Schedule."
        )
    return ScaleWiseSampler(schedule, method, indices, **more)
