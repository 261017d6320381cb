"""Forward processes: how a clean latent is noised, and how a model's output gives it back."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Process(Protocol):
    """What sampling needs; the model's own side of it is hidden in `denoise`."""

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FlowMatching:
    """x_t = (1 - sigma) x0 + sigma noise; the model predicts v = noise - x0 (SD3, FLUX).

    Any shape (B, C, H, W) or (B, C, T, H, W); sigma in 0..1, a number or broadcastable tensor.
    """

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
        return (1 - sigma) * x0 + sigma * noise

    def to_x0(self, x_t: Tensor, output: Tensor, sigma: float | Tensor) -> Tensor:
        return x_t - sigma * output


@dataclass(frozen=True)
class VarianceExploding:
    """x_t = x0 + sigma noise; the model predicts the noise (the host's form of SDXL).

    Any shape; sigma above 0, about 14.61 for pure noise with SDXL's table.
    """

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
        return x0 + sigma * noise

    def to_x0(self, x_t: Tensor, output: Tensor, sigma: float | Tensor) -> Tensor:
        return x_t - sigma * output
