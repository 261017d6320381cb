"""The host's own solvers, cut at every size: which of them can be, and what noise they draw."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion.sa_solver import get_tau_interval_func
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler
from torch import Tensor

from ..swd_core.growth import GrowthSchedule, is_plain
from ..swd_core.lifts import regrid
from ..swd_core.sampling import Noise
from ..swd_core.stretches import Stretch

_PLAN = "plans its own steps over the whole run, which can't be cut where the size changes"
_REFUSED = {
    "dpm_fast_function": f"dpm_fast {_PLAN}",
    "dpm_adaptive_function": f"dpm_adaptive {_PLAN}",
    "sample_ar_video": "ar_video makes its video part by part at one size",
    "sample_lcm_upscale": "SamplerLCMUpscale changes the size itself",
}
# Take no step at all where they are given one.
_SHORTEST = {"sample_unipc": 2, "sample_unipc_bh2": 2}
_OURS = ("extra_args", "callback", "disable", "noise_sampler")  # given to every solver by the run
ELSE = "Choose euler, res_multistep, dpmpp_2m or another of the host's samplers."
SA_WINDOW = 0.2, 0.8  # where the host's SA-Solver adds noise if it isn't told
CLIP = "noise_clip_std"
TREE = 1 << 32  # the number of the step that a Brownian tree is drawn as


def solver_names() -> list[str]:
    """The host's samplers that can be cut, by name."""
    names, made = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.sampler_object
    return [name for name in names if function_name(made(name)) not in _REFUSED]


def solver_of(schedule: GrowthSchedule) -> comfy.samplers.KSAMPLER:
    """The host's sampler of a schedule, with the options it has there.

    Raises:
        ValueError: if there is none of that name, it has no such option, or it can't be cut.
    """
    if schedule.solver not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(f"This ComfyUI has no sampler {schedule.solver[:40]!r}. {ELSE}")
    solver = comfy.samplers.sampler_object(schedule.solver)
    known = inspect.signature(solver.sampler_function).parameters
    for name, value in schedule.options:
        usual = known[name].default if name in known and name not in _OURS else inspect.Parameter
        if isinstance(usual, type) or isinstance(value, str) != isinstance(usual, str):
            raise ValueError(
                f"This ComfyUI's sampler {schedule.solver} has no option {name} = {value!r}. {ELSE}"
            )
    solver.extra_options = {**solver.extra_options, **dict(schedule.options)}
    check_solver(solver)
    return solver


def settings_of(solver: Any) -> tuple[str, dict[str, float | str]]:
    """Name and options of a SAMPLER, by which a schedule makes it again.

    Raises:
        ValueError: if it can't be cut, is none of the host's, or has options that are no plain
            values.
    """
    check_solver(solver)
    options = {k: v for k, v in solver.extra_options.items() if v is not None}
    for name in comfy.samplers.KSampler.SAMPLERS:
        one = comfy.samplers.sampler_object(name)
        alike = one.sampler_function is solver.sampler_function
        if alike and one.inpaint_options == solver.inpaint_options:
            if all(map(is_plain, options.values())):
                return name, options
            break
    raise ValueError(
        f"A schedule can't keep the sampler {function_name(solver) or 'connected'}: only the "
        "host's own are known by name, and only numbers and text among their options. Connect it "
        "to SwD Sample or SwD Sampler instead."
    )


def check_solver(solver: Any) -> None:
    """Raises ValueError if a SAMPLER can't be cut into stretches of one size."""
    if not isinstance(solver, comfy.samplers.KSAMPLER) or hasattr(solver, "schedule"):
        raise ValueError(
            f"The sampler {type(solver).__name__} has no steps that could be run one size after "
            f"another. {ELSE}"
        )
    reason = _REFUSED.get(function_name(solver))
    if reason is not None:
        raise ValueError(f"{reason}. {ELSE}")
    churn = solver.extra_options.get("s_churn", 0)
    if churn:
        raise ValueError(
            f"The sampler's s_churn is {churn:g}: its noise comes from no seed. Set s_churn to 0, "
            "or choose an ancestral sampler."
        )


def function_name(solver: comfy.samplers.KSAMPLER) -> str:
    return getattr(solver.sampler_function, "__name__", "")


def shortest(solver: comfy.samplers.KSAMPLER) -> int:
    """Fewest steps that it can make."""
    return _SHORTEST.get(function_name(solver), 1)


def draws_noise(solver: comfy.samplers.KSAMPLER) -> bool:
    return "noise_sampler" in inspect.signature(solver.sampler_function).parameters


def options_of(
    solver: comfy.samplers.KSAMPLER,
    stretch: Stretch,
    levels: Sequence[float],
    percent_to_sigma: Callable[[float], float],
) -> dict[str, Any]:
    """A solver's options for a stretch, where what goes by a run's steps or levels goes on.

    Args:
        levels: of the whole run, at full size. percent_to_sigma: the model's.
    """
    options: dict[str, Any] = dict(solver.extra_options)
    if "tau_func" in inspect.signature(solver.sampler_function).parameters:
        usual = map(percent_to_sigma, SA_WINDOW)
        tau = options.get("tau_func") or get_tau_interval_func(*usual)

        def at_full_size(sigma: Tensor) -> float:
            """Of one of the stretch's own levels: no other is asked for."""
            apart = [abs(own - float(sigma)) for own in stretch.sigmas]
            return tau(sigma.new_tensor(levels[stretch.step + apart.index(min(apart))]))

        options["tau_func"] = at_full_size
    first, end = options.get("s_noise", 1.0), options.get("s_noise_end")
    if first is not None and end is not None:  # from the one to the other evenly by the step
        slope = (end - first) / max(len(levels) - 2, 1)
        options["s_noise"] = first + slope * stretch.step
        options["s_noise_end"] = first + slope * (stretch.step + stretch.steps - 1)
    if CLIP in options:  # the host would clip by the noise of the whole batch: see StepNoise
        options[CLIP] = 0.0
    return options


def walks(solver: comfy.samplers.KSAMPLER) -> bool:
    """Whether the host gives it a Brownian path, so that its noise goes by levels, not by calls."""
    name = function_name(solver)
    return name.startswith("sample_dpmpp") and "_sde" in name


class StepNoise:
    """`noise_sampler(sigma, sigma_next)` for one size: noise by image, step and call.

    Args:
        draw: noise by address. full: shape (B, C, ..., H, W) that it is drawn in. size: what it is
            brought to. number: of each step of the run, from 0, in its schedule. clip: how many of
            its standard deviations an image's noise may be off, as SamplerLCM has it; 0 for any.
    """

    def __init__(
        self,
        draw: Noise,
        full: Sequence[int],
        size: Sequence[int],
        number: Callable[[int], int],
        clip: float = 0.0,
    ):
        self.draw, self.full, self.size, self.number = draw, full, size, number
        self.clip, self.step, self.calls = clip, 0, 0

    def at(self, step: int) -> None:
        """Draws what belongs to a step of the run from here on."""
        self.step, self.calls = step, 0

    def __call__(self, sigma: Any, after: Any) -> Tensor:
        self.calls += 1
        address = self.calls << 32 | self.number(self.step)
        noise = regrid(self.draw(address, self.full), self.size)
        if self.clip <= 0:
            return noise
        most = self.clip * noise.flatten(1).std(1).view(-1, *[1] * (noise.ndim - 1))
        return noise.clamp(-most, most)


class PathNoise:
    """`noise_sampler(sigma, sigma_next)` from a Brownian path of the full size for each image.

    Args:
        seeds: of each image's path. like: of the full size. levels: lowest and highest of the run.
        size: what it is brought to. full: a grid's own level as one of the full size.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        like: Tensor,
        levels: tuple[float, float],
        size: Sequence[int],
        full: Callable[[Tensor], Tensor],
    ):
        low, high = (torch.tensor(level, dtype=torch.float32) for level in levels)
        self.path = BrownianTreeNoiseSampler(like, low, high, seed=list(seeds), cpu=True)
        self.low, self.high, self.size, self.full = low, high, size, full
        self.device = like.device

    def at(self, step: int) -> None:
        """A path knows where it is by its levels."""

    def __call__(self, sigma: Tensor, after: Tensor) -> Tensor:
        ends = (
            self.full(level.detach().float().cpu()).clamp(self.low, self.high)
            for level in (sigma, after)
        )
        return regrid(self.path(*ends).to(self.device), self.size)
