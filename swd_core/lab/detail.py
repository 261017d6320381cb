"""Losses on pictures: edges, and the strength of the finest detail."""

import torch.nn.functional as F
from torch import Tensor


def laplacian(x: Tensor) -> Tensor:
    """Second differences of (B, C, H, W), all directions: what varies from pixel to pixel."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    around = x[..., 1:-1, 2:] + x[..., 1:-1, :-2] + x[..., 2:, 1:-1] + x[..., :-2, 1:-1]
    return x[..., 1:-1, 1:-1] - around / 4


def detail_loss(output: Tensor, target: Tensor) -> Tensor:
    """How far the strength of the finest detail is off, whatever its phase, in 8 x 8 windows.

    The other losses are least where uncertain detail is left out; this one wants as much of it as
    the picture has.
    """
    rms = [F.avg_pool2d(laplacian(x).square(), 8).add(1e-6).sqrt() for x in (output, target)]
    return F.l1_loss(*rms)


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, L1 of the gradients (edges) and a little L2 (PSNR)."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(output), gradients(target), strict=True))
    return F.l1_loss(output, target) + edges + 2 * F.mse_loss(output, target)
