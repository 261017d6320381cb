"""Videos by hand: a chain of the host's own runs, one per scale, on a small random Wan.

The chain calls the host's guider once per scale, with that scale's conditioning made by the test:
frames picked by the rule in `picked`, x0 enlarged by torch's bicubic and, in time, its linear.
"""

import torch
import torch.nn.functional as F
from chain import cfg_guider
from paper import SEED

from swd_core.noise import draw_noise

PRESET = "wan21-1.3b-4"
FRAMES, SIZE = 9, (24, 36)
TARGET = (FRAMES, *SIZE)
SIZES = [(3, 8, 12), (5, 12, 18), (7, 16, 24), TARGET]  # by hand: 1 + 8/4, 1 + 8/2, 1 + 6, 9
SIGMAS = [1, 0.896, 0.737, 0.602]
TOLERANCE = 1e-5


def random(*shape, seed=3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed=1, **more) -> list:
    return [[random(1, 7, 32, seed=seed), more]]


def empty(count=1, size=TARGET) -> dict:
    return {"samples": torch.zeros(count, 16, *size)}


def picked(x, frames: int, dim=2):
    """The frames nearest to where those of a shorter video lie, the ends as they are."""
    last = x.shape[dim] - 1
    return x.index_select(
        dim, torch.tensor([round(t * last / (frames - 1)) for t in range(frames)])
    )


def shrunk(x, size):
    """A latent or mask (B, C, T, H, W) at a smaller size: frames picked, no aliasing in space."""
    frames = picked(x, size[0]) if size[0] != x.shape[2] else x
    if tuple(x.shape[3:]) == tuple(size[1:]):
        return frames
    small = [F.interpolate(f, size[1:], mode="bilinear", antialias=True) for f in frames.unbind(2)]
    return torch.stack(small, 2)


def enlarged(x, size):
    """An x0 (B, C, T, H, W): every frame by bicubic, new ones between by linear interpolation."""
    frames = torch.stack([F.interpolate(f, size[1:], mode="bicubic") for f in x.unbind(2)], 2)
    b, c, t, h, w = frames.shape
    rows = frames.permute(0, 1, 3, 4, 2).reshape(b, -1, t)
    rows = F.interpolate(rows, size[0], mode="linear", align_corners=True)
    return rows.view(b, c, h, w, size[0]).permute(0, 1, 4, 2, 3)


def chain(model, cond_at, *, sizes=SIZES, indices=(0,), picture=None, mask=None, first=0):
    """The finished latent by the host's own runs of one step each.

    cond_at: the CONDITIONING of a step of this (T, H, W).
    """
    import comfy.samplers

    x0 = None
    for step, here in enumerate(sizes):
        if step < first:
            continue
        kept = None if picture is None else shrunk(picture, here)
        if x0 is None:
            x0 = torch.zeros(len(indices), 16, *here) if kept is None else kept
        latent = enlarged(x0, here) if x0.shape[2:] != here else x0
        part = None if mask is None else shrunk(mask, here)
        inpaint = part if step == first else None  # the first x0 is the picture: host's inpainting
        if part is not None:
            latent = part * latent + (1 - part) * kept
        x0 = cfg_guider(model, cond_at(here)).sample(
            draw_noise(SEED, indices, step, latent.shape[1:]), latent,
            comfy.samplers.sampler_object("lcm"), torch.tensor([SIGMAS[step], 0.0]),
            denoise_mask=inpaint, disable_pbar=True, seed=SEED,
        ).cpu()  # fmt: skip
        if part is not None and inpaint is None:
            x0 = part * x0 + (1 - part) * kept
    return x0


def sample(pack, model, schedule, cond, latent=None, **options) -> torch.Tensor:
    inputs = {"seed": SEED, "cfg": 1.0, "upscale_method": "bicubic", **options}
    out = pack["SwDSample"].execute(
        model=model, positive=cond, latent_image=latent or empty(), schedule=schedule, **inputs
    )
    return out.args[0]["samples"]


def custom(pack, model, frames="", sizes="0.333333 0.5 0.666667 1", sigmas="1 .896 .737 .602"):
    return pack["SwDScaleSchedule"].execute(
        model=model, preset="custom", custom_sizes=sizes, custom_sigmas=sigmas,
        custom_frames=frames,
    ).args  # fmt: skip
