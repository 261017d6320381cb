"""The seam to ComfyUI: what a MODEL is (family, cells, patch, noise levels), by its own words."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.model_base
import comfy.model_sampling
import torch
from torch import Tensor

from ..swd_core.growth import AnySchedule, GrowthSchedule
from ..swd_core.schedule import CELL
from ._host_families import held
from .levels import check_levels

# Of latent formats that don't say it themselves in ComfyUI 0.3.64.
UNTOLD_PIXELS = {
    "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "Wan22": 16, "HunyuanImage21": 32, "ChromaRadiance": 1,
}  # fmt: skip


def model_family(model: Any) -> str:
    """Which students a MODEL can take, by its own configuration.

    Returns:
        a family of presets.json, "sd3" for an SD3 type we have no student for, "wan-other" for a
        Wan of another width than the 1.3B's, or "".
    """
    found = held(model)
    return "" if found is None else found.family(model.model.model_config.unet_config)


def cell_pixels(model: Any) -> int:
    """Pixels of the picture along a side of a latent cell."""
    latent_format = model.get_model_object("latent_format")
    known = getattr(latent_format, "spacial_downscale_ratio", None)
    return known or UNTOLD_PIXELS.get(type(latent_format).__name__, CELL)


def patch_multiple(model: Any) -> int:
    """What the latent sides must be multiples of, so that nothing is padded or cropped inside."""
    config, net = model.model.model_config.unet_config, model.model.diffusion_model
    if "channel_mult" in config:  # a UNet halves its sides once per level but the first
        return 2 ** (len(config["channel_mult"]) - 1)
    for name in ("patch_size", "patch_spatial"):
        patch = config.get(name, getattr(net, name, None))
        if patch is not None:
            return int(patch[-1] if isinstance(patch, (tuple, list)) else patch)
    if hasattr(net, "patchifier"):  # LTX-Video
        return int(net.patchifier.patch_size[-1])
    return 1 if isinstance(model.model, comfy.model_base.StableCascade_C) else 2


def check_positions(model: Any, size: Sequence[int]) -> None:
    """Raises ValueError if a side of (..., H, W) has more patches than the model has positions."""
    most = model.model.model_config.unet_config.get("pos_embed_max_size")
    if most is None:
        return
    largest, cell = most * patch_multiple(model), cell_pixels(model)
    if max(size[-2:]) > largest:
        height, width = (side * cell for side in size[-2:])
        raise ValueError(
            f"The latent is of {width} x {height} pixels, and this model has positions for sides "
            f"of at most {largest * cell}. Choose a smaller size."
        )


def noise_table(model: Any) -> Any:
    """The model's noise levels on the CPU: a card rounds differently, and it has them only once
    the model has been loaded, so the first run would differ from the next."""
    return copy.deepcopy(model.get_model_object("model_sampling")).cpu()


def schedule_sigmas(model: Any, schedule: AnySchedule) -> Tensor:
    """SIGMAS (steps + 1,) of a schedule in the model's own terms, with the final 0.

    Timesteps (SDXL) go through the model's own noise table; 1000 lies outside its 0..999 and
    means its largest sigma.

    Raises:
        ValueError: if the model's table has no falling noise levels for them.
    """
    if schedule.sigma_kind != "timestep":
        return torch.tensor([*schedule.sigmas, 0.0], dtype=torch.float32)
    sampling = noise_table(model)
    sigmas = [
        float(sampling.sigma_max) if t >= 999 else float(sampling.sigma(torch.tensor(float(t))))
        for t in schedule.sigmas
    ]
    if not all(math.isfinite(a) and a > b for a, b in pairwise([*sigmas, 0.0])):
        shown = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise ValueError(
            f"The timesteps of {schedule.name} give this model the sigmas {shown}, which don't "
            "fall. It is no SDXL with the usual noise table; type other timesteps under custom."
        )
    return torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def check_prediction(model: Any, schedule: AnySchedule) -> None:
    """Raises ValueError if the schedule's noise levels are not of the model's kind."""
    if isinstance(schedule, GrowthSchedule):
        check_levels(model, schedule)
        return
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    if flow != (schedule.sigma_kind == "flow"):
        kind, other = (
            ("sigmas in 0..1", "timesteps") if flow else ("timesteps up to 1000", "flow sigmas")
        )
        raise ValueError(
            f"This model needs {kind}, but the schedule {schedule.name} has {other}. Choose auto, "
            "or for a model that is no student SwD Growth Schedule."
        )


@dataclass(frozen=True)
class HostProcess:
    """The loaded model's own forward process, in its own terms (flow, epsilon, v-prediction)."""

    sampling: Any
    # The sigma that stands for pure noise, which the host scales a little differently.
    begin: float | None

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        level = noise.new_full((), sigma)
        return self.sampling.noise_scaling(level, noise, x0, sigma == self.begin)


def noised(model: Any, samples: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A clean latent with the model's own noise of `sigma`, for a sampler whose own noise is off.

    In the host's form between two samplers: the next one scales it as if it were clean, so that is
    undone here beforehand.

    Raises:
        ValueError: if nothing of the latent would be left.
    """
    sampling = model.get_model_object("model_sampling")
    if sigma >= 1 and isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"noise_sigma is {sigma:g}, but for this model 1 is pure noise. Give less than 1, such "
            "as 0.6."
        )
    level = torch.tensor(sigma)
    clean = model.model.process_latent_in(samples)
    x_t = sampling.noise_scaling(level, noise, clean, False)
    return model.model.process_latent_out(sampling.inverse_noise_scaling(level, x_t))
