"""What a kind of schedule makes of a run: how it solves a stretch and gets to the next size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..swd_core import resample
from ..swd_core.growing import GrowthState
from ..swd_core.lifts import lift_swd
from ..swd_core.process import Process, mixed_noise, predicted_noise
from ..swd_core.sampling import Noise
from ..swd_core.stretches import Stretch
from .sized import SizedModel

Report = Callable[[int, Tensor, Tensor], None]


class Way(Protocol):
    """What a kind of schedule makes of a run; the arguments are those of `sample_growing`."""

    def noise(self, step: int, shape: Sequence[int]) -> Tensor: ...

    def solve(self, x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]: ...

    def lift(
        self, x_t: Tensor, x0: Tensor, sigma: float, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, float]: ...

    def finish(self, state: GrowthState) -> Tensor:
        """What the SAMPLER gives back, of the target's size."""


@dataclass(frozen=True)
class StudentWay:
    """Algorithm 1 of arXiv 2503.16397 with the host's model: every step is a stretch of its own.

    Args:
        draw: noise by the number of the step in the run. method: how x0 is enlarged.
        report: called with step, x0 and x_t of each model call. eta: share of the predicted noise
            where the size stays.
    """

    sized: SizedModel
    process: Process
    draw: Noise
    method: str
    report: Report
    eta: float = 0.0

    def noise(self, step: int, shape: Sequence[int]) -> Tensor:
        return self.draw(step, shape)

    def solve(self, x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        x0 = self.sized(x_t, stretch.sigmas[0])
        self.report(stretch.step, x0, x_t)
        if not self.eta or not stretch.sigmas[1]:
            return x0, x0
        return predicted_noise(self.process, x_t, x0, stretch.sigmas[0]), x0

    def lift(
        self, x_t: Tensor, x0: Tensor, sigma: float, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, float]:
        if self.eta and tuple(size) == tuple(x0.shape[-len(size) :]):
            noise = mixed_noise(noise, x_t, self.eta)
        return lift_swd(x_t, x0, sigma, size, noise, process=self.process, upscale=self.upscale)

    def finish(self, state: GrowthState) -> Tensor:
        """x0 at the target's size, also where the run ends above 0."""
        return self.upscale(state.x0, self.sized.target)

    def upscale(self, x0: Tensor, size: Sequence[int]) -> Tensor:
        return resample.upscale(x0, size, self.method)
