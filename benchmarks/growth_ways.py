"""Ways to sample the teacher of scenes: full size, growing, and another's sampler."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from growth_spacing import WAYS
from published_growth import sample as published
from torch import Tensor

from swd_core.distill.precision import fast_autocast
from swd_core.growing import GrowthState, OneField, Solve, euler, sample_growing
from swd_core.growth import GrowthSchedule
from swd_core.lab.ways import shifted
from swd_core.latent_law import PUBLISHED
from swd_core.lifts import lift_pixels, lift_spectral, lift_swd
from swd_core.noise import SeededNoise
from swd_core.pictures import in_bytes
from swd_core.sampling import Denoise
from swd_core.scenes.captions import plain_caption
from swd_core.scenes.catalogue import Scene
from swd_core.scenes.student import SceneStudent
from swd_core.schedule import latent_sizes
from swd_core.stretches import Stretch

GUIDANCE = 3.0
FULL, PEER = "full size", "published"
OTHER_LEVELS = {"overwritten": "published", "re-spaced": "proportional"}  # in growth_spacing.WAYS
OURS = ("spectral", "swd", "pixels", *OTHER_LEVELS)


def res_multistep(denoise: Denoise) -> Solve:
    """The host's res_multistep: second order in the logarithm of sigma (arXiv 2308.02157)."""

    def solve(x_t: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
        old, step_before = None, 0.0
        x0 = torch.zeros_like(x_t)
        for sigma, after in pairwise(stretch.sigmas):
            x0 = denoise(x_t, sigma)
            if after == 0:
                return x0, x0
            step = math.log(sigma / after)
            target = x0
            if old is not None:
                phi1 = math.expm1(-step) / -step
                phi2 = (phi1 - 1) / -step
                target = x0 + phi2 * step / step_before * (x0 - old) / phi1
            x_t = target + (x_t - target) * (after / sigma)
            old, step_before = x0, step
        return x_t, x0

    return solve


SOLVERS: dict[str, Callable[[Denoise], Solve]] = {"euler": euler, "res_multistep": res_multistep}


@dataclass(frozen=True)
class Way:
    """One row: `lift` is one of OURS, PEER, or FULL, which has no delta."""

    solver: str
    steps: int  # that the row is compared with
    lift: str = FULL
    delta: float = 0.0
    cut: int = 0  # of a row at full size or another's sampler, fewer steps than `steps`
    start: float = 0.5  # the smallest size, as a share of the last
    sizes: int = 2  # of ours

    @property
    def run(self) -> str:
        return f"{self.solver}, {self.steps} steps"

    @property
    def name(self) -> str:
        cut = f", {self.cut} steps" if self.cut else ""
        if self.lift == FULL:
            return f"{self.run} | {FULL}{cut}"
        start = f", from {self.start:g}" if self.start != 0.5 else ""
        sizes = f", {self.sizes} sizes" if self.sizes != 2 else ""
        return f"{self.run} | {self.lift}, delta {self.delta:g}{start}{sizes}{cut}"


class Teacher:
    """The teacher of scenes on a device, with guidance, both of its calls in one batch."""

    def __init__(self, folder: Path, device: str, side: int, batch: int):
        self.model = SceneStudent.load(folder, device, lora=None)
        self.device, self.side, self.batch = torch.device(device), side, batch

    def denoiser(self, captions: Sequence[str]) -> Denoise:
        text = self.model.encode([*captions, ""])
        count = len(captions)

        def both(x: Tensor) -> Tensor:
            return torch.cat([x[:-1], x[-1:].expand(count, *x.shape[1:])])

        context, pooled = both(text.context), both(text.pooled)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = x.new_full((2 * count,), sigma)
            with fast_autocast(self.device):
                velocity = self.model.model(torch.cat([x, x]), level, context, pooled)
            wanted, free = velocity.float().chunk(2)
            return x - sigma * (free + GUIDANCE * (wanted - free))

        return denoise

    @torch.inference_mode()
    def latents(self, way: Way, scenes: Sequence[Scene]) -> tuple[Tensor, float, float]:
        """Latents (N, C, side, side) on the CPU, their cost in full-size steps, and seconds for
        each picture."""
        parts, cost, spent = [], 0.0, 0.0
        for i in range(0, len(scenes), self.batch):
            some = scenes[i : i + self.batch]
            solve = SOLVERS[way.solver](self.denoiser([plain_caption(s) for s in some]))
            begin = self.now()
            out, run = self.sampled(way, solve, range(i, i + len(some)))
            spent += self.now() - begin
            parts.append(out.cpu())
            cost = sum(p.steps * math.prod(p.size) for p in run) / self.side**2
        return torch.cat(parts), cost, spent / len(scenes)

    def now(self) -> float:
        """Of this process alone where a processor does the work, as others may share it."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def sampled(
        self,
        way: Way,
        solve: Solve,
        indices: range,
        on_state: Callable[[GrowthState], None] | None = None,
    ) -> tuple[Tensor, tuple[Stretch, ...]]:
        """Latents of the images of these numbers on the device, and the run that made them.

        Args:
            on_state: of ours, called after each size.
        """
        side = self.side
        like = torch.zeros(len(indices), 16, side, side, device=self.device)
        sigmas = shifted(way.cut or way.steps, side)

        def on_device(x: Tensor, stretch: Stretch) -> tuple[Tensor, Tensor]:
            return solve(x.to(self.device), stretch)

        if way.lift == PEER:
            given = (*sigmas, 0.0)
            first = latent_sizes([way.start], side, side)[0][0]
            return published(on_device, given, like.shape, first, way.delta, indices[0])
        growth = schedule(way, side)
        run = growth.stretches(side, side)
        if way.lift in OTHER_LEVELS and len(run) > 1:
            run = WAYS[OTHER_LEVELS[way.lift]](growth, side)
        drawn = SeededNoise(0, tuple(indices))
        field = OneField(drawn, (side, side))

        def noise(step: int, shape: Sequence[int]) -> Tensor:
            return drawn(step, shape) if step and not spectral(way) else field(step, shape)

        state = sample_growing(
            solve, run, GrowthState(), noise, process=growth.levels, like=like,
            lift=self.lift(way.lift, growth), on_state=on_state,
        )  # fmt: skip
        return state.x_t, run

    def lift(self, name: str, growth: GrowthSchedule) -> Callable:
        if name == "swd":
            return partial(lift_swd, process=growth.levels)
        if name != "pixels":
            return partial(lift_spectral, levels=growth.levels)
        vae = self.model.vae
        return partial(
            lift_pixels, process=growth.levels, decode=vae.decode,
            encode=lambda pictures: vae.encode(pictures.clamp(0, 1)),
        )  # fmt: skip

    def pictures(self, latents: Tensor) -> Tensor:
        """uint8 pictures (N, 3, H, W) on the CPU."""
        parts = latents.to(self.device).split(self.batch)
        return torch.cat([in_bytes(self.model.vae.decode(part)).cpu() for part in parts])


def spectral(way: Way) -> bool:
    return way.lift not in ("swd", "pixels")


def schedule(way: Way, side: int) -> GrowthSchedule:
    return GrowthSchedule(
        shifted(way.cut or way.steps, side),
        start=1.0 if way.lift == FULL else way.start,
        count=way.sizes,
        delta=way.delta or 0.5,
        law=PUBLISHED["scenes"],
        lift="spectral" if spectral(way) else way.lift,
    )
