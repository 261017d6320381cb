"""The noise levels of a model, as growing needs to know them."""

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ..swd_core.growth import GrowthSchedule
from ..swd_core.process import FlowMatching, Levels, VarianceExploding
from . import _host


@dataclass(frozen=True)
class ModelLevels:
    """kind, top and noise_scale of a `GrowthSchedule`."""

    kind: str
    top: float
    noise_scale: float


@dataclass(frozen=True)
class RunLevels:
    """What a run's noise levels are on smaller grids, also between the ends of its steps.

    The first step of an exploding model goes from pure noise, which is the same level on every
    grid, to one that isn't. Levels within it lie alike, by their logarithm, between its ends.

    Args:
        schedule: whose rule holds elsewhere. first, second: the levels of the full size that the
            run's first step goes between.
    """

    schedule: GrowthSchedule
    first: float
    second: float

    def own(self, sigma: float, ratio: float) -> float:
        """A level of the full size on a grid whose side is `ratio` times smaller."""
        if not self._parts(ratio) or not self.second < sigma < self.first:
            return self.schedule.own(sigma, ratio)
        below = self.schedule.own(self.second, ratio)
        share = math.log(sigma / self.second) / math.log(self.first / self.second)
        return below * (self.first / below) ** share

    def full(self, own: Tensor, ratio: float) -> Tensor:
        """The level of the full size that a grid's own one stands for."""
        full = self.schedule.full(own, ratio)
        if not self._parts(ratio):
            return full
        below = self.schedule.own(self.second, ratio)
        share = (own / below).log() / math.log(self.first / below)
        within = self.second * (self.first / self.second) ** share
        return torch.where(own > below, within, full)

    def _parts(self, ratio: float) -> bool:
        """Whether the levels of the two grids part in the first step."""
        pure = self.schedule.is_top(self.first) and self.schedule.kind == "exploding"
        return pure and ratio > 1 and self.schedule.lift == "spectral" and self.second > 0


def model_levels(model: Any) -> ModelLevels:
    """What a MODEL's noise levels are.

    Raises:
        ValueError: if it doesn't start from noise, or makes no pictures.
    """
    kind = latent_kind(model)
    rows = model.get_model_object("latent_format").latent_dimensions > 1
    if not rows or "Audio" in kind:  # ACE-Step's sound has rows and columns, too
        raise ValueError(
            f"This model makes sound or 3D shapes ({kind} latents), which can't be scaled step by "
            "step. Use a model of pictures or video."
        )
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, _host.FROM_PICTURES):
        raise ValueError(
            "This model starts from a picture instead of noise, so there is nothing to grow. "
            "Sample it at one size with the host's own sampler."
        )
    top = float(sampling.sigma_max)
    if isinstance(sampling, comfy.model_sampling.CONST):
        # A shift leaves pure noise at 1, but for rounding; some tables begin a little below.
        return ModelLevels("flow", 1.0, float(getattr(sampling, "noise_scale", 1.0)))
    return ModelLevels("exploding", top, 1.0)


def levels_of(model: Any) -> Levels:
    """The same as the method knows them."""
    known = model_levels(model)
    return FlowMatching(known.noise_scale) if known.kind == "flow" else VarianceExploding()


def latent_kind(model: Any) -> str:
    """What the host calls a MODEL's latents."""
    return type(model.get_model_object("latent_format")).__name__


def check_levels(model: Any, schedule: GrowthSchedule) -> None:
    """Raises ValueError if a schedule was made for another kind of model."""
    levels = model_levels(model)
    alike = (
        schedule.kind == levels.kind
        and math.isclose(schedule.top, levels.top, rel_tol=1e-3)
        and math.isclose(schedule.noise_scale, levels.noise_scale, rel_tol=1e-6)
    )
    if not alike:
        raise ValueError(
            f"The growth schedule has {schedule.kind} noise levels up to {schedule.top:g} (noise x "
            f"{schedule.noise_scale:g}), this model {levels.kind} ones up to {levels.top:g} (noise "
            f"x {levels.noise_scale:g}): it was made for another model. Connect this MODEL to SwD "
            "Growth Schedule."
        )
    kind = latent_kind(model)
    if schedule.latents not in ("", kind):
        raise ValueError(
            f"The growth schedule was made for a model with {schedule.latents} latents, this one "
            f"has {kind} ones. Connect this MODEL to SwD Growth Schedule."
        )
