"""Latent up- and downscaling, for pictures (B, C, H, W) and videos (B, C, T, H, W)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

METHODS = ("bicubic", "bilinear", "nearest-exact", "area", "lanczos")


def _lanczos(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Separable Lanczos-3, widened when shrinking, as Pillow's resize of float pictures."""

    def weights(n_in: int, n_out: int) -> Tensor:
        scale = max(1.0, n_in / n_out)
        centres = (torch.arange(n_out, device=x.device, dtype=torch.float32) + 0.5) * n_in / n_out
        cells = torch.arange(n_in, device=x.device, dtype=torch.float32) + 0.5
        distance = (cells[None] - centres[:, None]) / scale
        kernel = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
        return kernel / kernel.sum(1, keepdim=True)

    height, width = x.shape[-2:]
    rows, columns = weights(height, size[0]), weights(width, size[1])
    return (rows @ x.float() @ columns.T).to(x.dtype)


def resize(x: Tensor, size: tuple[int, int], method: str = "bicubic") -> Tensor:
    """Resizes the last two dimensions.

    Args:
        x: (B, C, H, W) or (B, C, T, H, W), any dtype and device.
        size: new (height, width) in latent cells.
        method: one of METHODS; "bicubic" is what the paper trains and samples with
            (torch.nn.functional.interpolate with its default flags).

    Raises:
        ValueError: for an unknown method or another number of dimensions.
    """
    if method not in METHODS:
        raise ValueError(
            f"Unknown resampling method {method!r}; choose one of {', '.join(METHODS)}."
        )
    if x.ndim == 5:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(resize(frames, size, method), "(b t) c h w -> b c t h w", b=x.shape[0])
    if x.ndim != 4:
        raise ValueError(f"Latents are (B, C, H, W) or (B, C, T, H, W), not {tuple(x.shape)}.")
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if method == "lanczos":
        return _lanczos(x, size)
    return F.interpolate(x, size=size, mode=method)


def upscale(x: Tensor, size: tuple[int, int], method: str = "bicubic") -> Tensor:
    """Enlarges a clean latent to `size`; see `resize`."""
    return resize(x, size, method)


def downscale(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrinks a latent or mask (B, C, H, W) or (B, C, T, H, W) to `size`, without aliasing."""
    if x.ndim == 5:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(downscale(frames, size), "(b t) c h w -> b c t h w", b=x.shape[0])
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)
