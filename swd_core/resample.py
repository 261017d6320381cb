"""Latent up- and downscaling, for pictures (B, C, H, W) and videos (B, C, T, H, W)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

METHODS = ("bicubic", "bilinear", "nearest-exact", "area", "lanczos")


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _lanczos(distance: Tensor) -> Tensor:
    return torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)


def _filtered(x: Tensor, size: Sequence[int], kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Separable, by a kernel of the distance in cells that is widened when shrinking.

    Matrix products, in float32 at least: torch has no filter of its own for half precision on a
    CPU, nor for Lanczos.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)

    def weights(n_in: int, n_out: int) -> Tensor:
        scale = max(1.0, n_in / n_out)
        centres = (torch.arange(n_out, device=x.device, dtype=dtype) + 0.5) * n_in / n_out
        cells = torch.arange(n_in, device=x.device, dtype=dtype) + 0.5
        found = kernel((cells[None] - centres[:, None]) / scale)
        return found / found.sum(1, keepdim=True)

    height, width = x.shape[-2:]
    rows, columns = weights(height, size[0]), weights(width, size[1])
    return (rows @ x.to(dtype) @ columns.T).to(x.dtype)


def blend_frames(x: Tensor, frames: int) -> Tensor:
    """A video (B, C, T, H, W) with another number of frames, each a blend of its two neighbours.

    The first and the last frame stay what they are: a causal video VAE keeps the first picture
    apart, so 6 frames become 11 by one new one in the middle of every two.
    """
    last = x.shape[2] - 1
    steps = max(1, frames - 1)
    below = torch.arange(frames, device=x.device) * last
    weight = (below % steps / steps).to(x.dtype)[:, None, None]
    below //= steps
    return torch.lerp(x[:, :, below], x[:, :, (below + 1).clamp(max=last)], weight)


def pick_frames(x: Tensor, frames: int, dim: int = 2) -> Tensor:
    """Another number of frames along `dim`: each the nearest one there is, the ends as they are."""
    last, steps = x.shape[dim] - 1, max(1, frames - 1)
    nearest = (2 * torch.arange(frames, device=x.device) * last + steps) // (2 * steps)
    return x.index_select(dim, nearest)


def resize(x: Tensor, size: Sequence[int], method: str = "bicubic") -> Tensor:
    """Resizes the last two dimensions, and the frames of a video if their number is given too.

    Args:
        x: (B, C, H, W) or (B, C, T, H, W), any dtype and device.
        size: new (height, width) in latent cells, or (frames, height, width).
        method: one of METHODS; "bicubic" is what the paper trains and samples with
            (torch.nn.functional.interpolate with its default flags). In time adjacent frames are
            blended, whatever the method (arXiv 2503.16397, video experiments).

    Raises:
        ValueError: for an unknown method or another number of dimensions.
    """
    if method not in METHODS:
        raise ValueError(
            f"Unknown resampling method {method!r}; choose one of {', '.join(METHODS)}."
        )
    if x.ndim == 5:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        frames = resize(frames, size[-2:], method)
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
        return x if len(size) == 2 or size[0] == x.shape[2] else blend_frames(x, size[0])
    if x.ndim != 4 or len(size) != 2:
        raise ValueError(
            "Latents are (B, C, H, W) or (B, C, T, H, W), and only the latter have frames to "
            f"resize; not {tuple(x.shape)} to {tuple(size)}."
        )
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if method == "lanczos":
        return _filtered(x, size, _lanczos)  # as Pillow's resize of float pictures
    return F.interpolate(x, size=size, mode=method)


def upscale(x: Tensor, size: Sequence[int], method: str = "bicubic") -> Tensor:
    """Enlarges a clean latent to `size`; see `resize`."""
    return resize(x, size, method)


def downscale(x: Tensor, size: Sequence[int]) -> Tensor:
    """Shrinks a latent or mask (B, C, H, W) or (B, C, T, H, W) to `size`, without aliasing: as
    torch's antialiased bilinear interpolation.

    Fewer frames are picked ones, as in a video of a lower rate: a blend would show both of them.
    """
    if x.ndim == 5:
        x = x if len(size) == 2 or size[0] == x.shape[2] else pick_frames(x, size[0])
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        frames = downscale(frames, size[-2:])
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return _filtered(x, size, _triangle)
