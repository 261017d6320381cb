"""Losses on pictures, of an autoencoder or a student: edges, the strength of the finest detail."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.conditioning import Conditioning
from ..distill.objective import Seen
from ..distill.precision import fast_autocast
from ..scenes.autoencoder import FACTOR, Autoencoder

BORDER = 8  # pixels at a crop's edge that the decoder made without what lies beyond


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


@dataclass(frozen=True)
class Numbered(Conditioning):
    """With the numbers (B,) of the pictures that the prompts are of."""

    pictures: Tensor | None = None


@dataclass(frozen=True)
class PictureDetail:
    """A student's loss by way of the decoder: as much fine detail as the real picture has.

    Latents can have all their strength at high frequencies and still decode to a soft picture,
    because the decoder draws an edge only where the channels agree.

    Args:
        vae: the frozen autoencoder. pictures: uint8 (N, 3, S, S) by picture side.
        crop: side of the decoded part, in cells. count: pictures of a
            batch that are decoded.
    """

    vae: Autoencoder
    pictures: Mapping[int, Tensor]
    crop: int = 16
    count: int = 12

    def __call__(self, seen: Seen) -> Tensor:
        """The loss of x0 (B, 16, H, W), whose text is `Numbered`."""
        x0 = seen.x0
        side, chosen = x0.shape[-1], seen.text.pictures[: self.count]
        cells = min(self.crop, side)
        y, x = torch.randint(side - cells + 1, (2,), generator=seen.draws.generator).tolist()
        with fast_autocast(x0.device):
            made = self.vae.decode(x0[: self.count, :, y : y + cells, x : x + cells].float())
        top, left, size = (FACTOR * n for n in (y, x, cells))
        real = self.pictures[FACTOR * side][chosen, :, top : top + size, left : left + size]
        inner = slice(BORDER, -BORDER)
        made, real = (t[..., inner, inner].float() for t in (made, real))
        return detail_loss(made, real / 255)
