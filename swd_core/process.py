"""Forward processes: how a clean latent is noised, and how a model's output gives it back."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Process(Protocol):
    """What sampling needs; the model's own side of it is hidden in `denoise`."""

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor: ...


class Levels(Protocol):
    """What growing needs to know of a process: its noise levels, seen from grids of other sizes.

    A grid of r² times the cells holds r times the amplitude of the same picture in every frequency
    (orthonormal transform), while white noise has the same on every grid. So a noise level means
    the same to the picture on both where noise over signal is r times as much on the larger one.
    """

    noise_scale: float

    def odds(self, sigma: float) -> float:
        """Noise over signal."""

    def gain(self, sigma: float, ratio: float) -> float:
        """By how much x_t grows on a grid of `ratio` times the side, and by how much its sigma."""


@dataclass(frozen=True)
class FlowMatching:
    """x_t = (1 - sigma) x0 + sigma noise; the model predicts v = noise - x0 (SD3, FLUX).

    Any shape (B, C, H, W) or (B, C, T, H, W); sigma in 0..1, a number or broadcastable tensor.
    noise_scale: what the model multiplies its noise by, where it has such a thing (HiDream O1: 8).
    """

    noise_scale: float = 1.0

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
        return (1 - sigma) * x0 + sigma * (self.noise_scale * noise)

    def to_x0(self, x_t: Tensor, output: Tensor, sigma: float | Tensor) -> Tensor:
        return x_t - sigma * output

    def odds(self, sigma: float) -> float:
        return self.noise_scale * sigma / (1 - sigma) if sigma < 1 else math.inf

    def gain(self, sigma: float, ratio: float) -> float:
        """kappa of arXiv 2605.18736, equation 5."""
        return ratio / (1 + (ratio - 1) * sigma)


def predicted_noise(process: Process, x_t: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """The noise that a clean prediction leaves in x_t, both (B, C, ..., H, W), for any process."""
    nothing = torch.zeros_like(x0)
    clean = process.add_noise(x0, nothing, sigma)
    return (x_t - clean) / process.add_noise(nothing, torch.ones_like(x0), sigma)


def mixed_noise(fresh: Tensor, predicted: Tensor, eta: float) -> Tensor:
    """Fresh noise with `eta` of the predicted one, of the same variance (arXiv 2603.06136)."""
    return eta * predicted + math.sqrt(1 - eta**2) * fresh


@dataclass(frozen=True)
class VarianceExploding:
    """x_t = x0 + sigma noise; the model predicts the noise (the host's form of SDXL).

    Any shape; sigma above 0, about 14.61 for pure noise with SDXL's table.
    """

    noise_scale = 1.0

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
        return x0 + sigma * noise

    def to_x0(self, x_t: Tensor, output: Tensor, sigma: float | Tensor) -> Tensor:
        return x_t - sigma * output

    def odds(self, sigma: float) -> float:
        return sigma

    def gain(self, sigma: float, ratio: float) -> float:
        return ratio
