"""The independent truth: one run of the host for each scale, everything resolved by the host.

SIGMAS are [s, 0] and the latent is the enlarged x0 of the scale before, as swd_core's paper has it.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from paper import PRESETS, SEED, schedule_of, small_sides
from torch import Tensor

from swd_core.noise import draw_noise

FAMILIES = {"sd35-medium": "sd35-medium-4", "flux": "flux-4", "sdxl": "sdxl-4"}
SIZE = (32, 48)  # latent height and width of most tests; quarters fall on cells at every scale


def outputs(node: Any, *inputs: Any, **named: Any) -> tuple:
    """Of a host node given as class, or "module:Class" of comfy_extras."""
    if isinstance(node, str):
        module, _, name = node.partition(":")
        node = getattr(importlib.import_module(module), name)
    run = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
    out = run(*inputs, **named)
    return getattr(out, "args", out)


def call(node: Any, *inputs: Any, **named: Any) -> Any:
    """The first of its `outputs`."""
    return outputs(node, *inputs, **named)[0]


def hosted(node: Any, several: Sequence[str] = (), **named: Any) -> Any:
    """What a node of ours gives, called as the host does: with lists where it takes lists.

    several: the inputs that are lists already.
    """
    if node.GET_SCHEMA().is_input_list:
        named = {k: v if k in several else [v] for k, v in named.items()}
    return node.execute(**named)


def drafted(pack: Any, stop_after: int, **given: Any) -> dict[str, Any]:
    """The LATENT of SwD Drafts, of one draft where nothing else is said."""
    given = {"count": 1, "batch": 1, "cfg": 1.0, "upscale_method": "bicubic", **given}
    return hosted(pack["SwDDrafts"], stop_after=stop_after, **given).args[0]


def finished(pack: Any, drafts: dict[str, Any], **given: Any) -> Tensor:
    """The samples of SwD Finish Drafts, of the first draft where nothing else is said."""
    given = {"pick": "1", "batch": 1, "cfg": 1.0, **given}
    given |= {"detail_seed": 0, "variations": 1, "stop_after": 0}
    return hosted(pack["SwDFinishDrafts"], drafts=drafts, **given).args[0]["samples"]


def cfg_guider(model: Any, positive: list, negative: list | None = None, cfg: float = 1.0) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    return guider


def sized(cond: list, size: tuple[int, int] = SIZE) -> list:
    """SDXL's size conditioning, which must be the target's at every scale."""
    return [[c, {"width": size[1] * 8, "height": size[0] * 8, **more}] for c, more in cond]


def sizes_of(small: Any, preset: str, size: tuple[int, int] = SIZE) -> list[tuple[int, int]]:
    family, sides, _ = PRESETS[preset]
    multiple = small.KINDS[family].multiple
    rows, columns = (small_sides(side, sides, multiple) for side in size)
    return list(zip(rows, columns, strict=True))


def at_size(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A latent or mask (B, C, H, W) shrunk without aliasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def host_chain(
    pack: Any,
    small: Any,
    preset: str,
    model: Any,
    guider_at: Callable[[int, tuple[int, int]], Any],
    *,
    size: tuple[int, int] = SIZE,
    indices: Sequence[int] = (0,),
    picture: Tensor | None = None,
    mask_at: Callable[[int, tuple[int, int]], Tensor] | None = None,
    first: int = 0,
    sampler: Any = None,
) -> Tensor:
    """The finished latent of the host's own runs.

    Args:
        guider_at: the guider of a step of this latent size.
        picture: a latent (B, C, H, W) to keep where `mask_at` is 0, or to start from at `first`.
        sampler: in place of the host's LCM.
    """
    import comfy.samplers

    kind = small.KINDS[PRESETS[preset][0]]
    _, sigmas = schedule_of(pack, model, preset)
    x0 = None
    for step, here in enumerate(sizes_of(small, preset, size)):
        if step < first:
            continue
        kept = None if picture is None else at_size(picture, here)
        if x0 is None:
            x0 = torch.zeros(len(indices), kind.channels, *here) if kept is None else kept
        latent = F.interpolate(x0, here, mode="bicubic") if x0.shape[-2:] != here else x0
        mask = None if mask_at is None else mask_at(step, here)
        inpaint = (
            mask if step == first else None
        )  # the first x0 is the picture itself: host's inpainting
        if mask is not None:
            latent = mask * latent + (1 - mask) * kept
        x0 = guider_at(step, here).sample(
            draw_noise(SEED, indices, step, latent.shape[1:]), latent,
            sampler or comfy.samplers.sampler_object("lcm"),
            torch.stack([sigmas[step], torch.tensor(0.0)]),
            denoise_mask=inpaint, disable_pbar=True, seed=SEED,
        ).cpu()  # fmt: skip
        if mask is not None and inpaint is None:
            x0 = mask * x0 + (1 - mask) * kept
    return x0


def scalewise(
    pack: Any, preset: str, guider: Any, *, size: tuple[int, int] = SIZE,
    latent: dict | None = None,
    sigmas: Tensor | None = None, seed: int = SEED, callback: Any = None, wrap: Any = None,
) -> Tensor:  # fmt: skip
    """The same by our SAMPLER in the host's own way of calling one (SamplerCustomAdvanced's).

    wrap: makes another SAMPLER of ours, which is run.
    """
    model = guider.model_patcher
    schedule, own = schedule_of(pack, model, preset)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    sampler = sampler if wrap is None else wrap(sampler)
    sigmas = own if sigmas is None else sigmas
    noise = importlib.import_module("comfy_extras.nodes_custom_sampler")
    if latent is None:
        latent = {"samples": torch.zeros(1, 4, *size)}
    if callback is None:
        return call(
            noise.SamplerCustomAdvanced,
            call(noise.RandomNoise, seed),
            guider,
            sampler,
            sigmas,
            latent,
        )["samples"]
    channels = model.get_model_object("latent_format").latent_channels
    samples = latent["samples"].new_zeros(latent["samples"].shape[0], channels, *size)
    return guider.sample(
        samples, samples, sampler, sigmas, callback=callback, disable_pbar=True, seed=seed
    ).cpu()
