"""The paper's formulas, written anew around diffusers' models, and the nodes run for comparison."""

import math

import torch
import torch.nn.functional as F
from conftest import ON_CPU
from torch import Tensor

from swd_core.noise import draw_noise

SEED = 12345
TOLERANCE = 1e-5  # of the largest value; float32 reaches about 1e-6
# Of what the host works out in float16 on a card: weights with a LoRA in them, and 8-bit ones.
HALF = TOLERANCE if ON_CPU else 2e-3
# The published students: latent sides for 1024 pixels, and sigmas (SDXL: timesteps).
PRESETS = {
    "sd35-medium-4": ("sd35-medium", [64, 80, 96, 128], [1, 0.8959, 0.7371, 0.6022]),
    "sd35-medium-6": (
        "sd35-medium", [32, 48, 64, 80, 96, 128], [1, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022],
    ),
    "sd35-medium-4-2025": ("sd35-medium", [32, 64, 96, 128], [1, 0.9454, 0.7904, 0.6022]),
    "sd35-large-4": ("sd35-large", [64, 80, 96, 128], [1, 0.8959, 0.7371, 0.6022]),
    "sd35-large-6-2025": (
        "sd35-large", [32, 48, 64, 80, 96, 128], [1, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022],
    ),
    "flux-4": ("flux", [64, 80, 96, 128], [1, 0.8956, 0.7363, 0.6007]),
    "flux-4-paper": ("flux", [32, 64, 96, 128], [1, 0.945, 0.79, 0.602]),
    "sdxl-4": ("sdxl", [64, 80, 96, 128], [999, 800, 600, 400]),
}  # fmt: skip


def relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def small_sides(side: int, sides: list[int], multiple: int) -> list[int]:
    """A preset's latent sides for another target, on the model's patch grid."""
    grid = [multiple * math.floor(side * s / sides[-1] / multiple + 0.5) for s in sides[:-1]]
    return [*grid, side]


def velocity(family: str, x: Tensor, sigma: float, cond: list, net) -> Tensor:
    """The flow models' output as diffusers computes it."""
    context, pooled = cond[0][0].to(x.dtype), cond[0][1]["pooled_output"].to(x.dtype)
    b, _, h, w = x.shape
    context, pooled = context.expand(b, -1, -1), pooled.expand(b, -1)
    level = torch.full((b,), sigma, dtype=torch.float32)
    if family != "flux":
        return net(
            x, encoder_hidden_states=context, pooled_projections=pooled, timestep=1000 * level
        ).sample
    tokens = x.view(b, 16, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 64)
    ids = torch.zeros(h // 2, w // 2, 3)
    ids[..., 1] += torch.arange(h // 2)[:, None]
    ids[..., 2] += torch.arange(w // 2)[None]
    out = net(
        tokens, encoder_hidden_states=context, pooled_projections=pooled, timestep=level,
        guidance=torch.full((b,), cond[0][1].get("guidance", 3.5)), img_ids=ids.view(-1, 3),
        txt_ids=torch.zeros(context.shape[1], 3),
    ).sample  # fmt: skip
    return out.view(b, h // 2, w // 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, 16, h, w)


def flow_step(family, x0, noise, sigma, cond, net, target) -> Tensor:
    """Flow matching: x = (1 - s) x0 + s eps, x0 = x - s v."""
    x = (1 - sigma) * x0 + sigma * noise
    return x - sigma * velocity(family, x.to(net.dtype), sigma, cond, net).float()


def sdxl_step(family, x0, noise, t, cond, net, target) -> Tensor:
    """DDPM: x = sqrt(a) x0 + sqrt(1 - a) eps; the size conditioning is the target's throughout."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)[t].item()
    # The largest timestep stands for pure noise.
    x = noise if t == 999 else a**0.5 * x0 + (1 - a) ** 0.5 * noise
    b, (height, width) = x.shape[0], (8 * target[0], 8 * target[1])
    times = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    added = {
        "text_embeds": cond[0][1]["pooled_output"].expand(b, -1).to(net.dtype),
        "time_ids": times.expand(b, -1),
    }
    context = cond[0][0].expand(b, -1, -1).to(net.dtype)
    eps = net(x.to(net.dtype), t, encoder_hidden_states=context, added_cond_kwargs=added).sample
    return (x - (1 - a) ** 0.5 * eps.float()) / a**0.5


@torch.inference_mode()
def reference_latent(
    small, preset, width, height, cond, *, negative=None, cfg=1.0, indices=(0,), net=None
) -> Tensor:
    """A whole scale-wise run: predict x0, enlarge it, noise it afresh; at the end x0 itself."""
    family, sides, levels = PRESETS[preset]
    kind = small.KINDS[family]
    net = small.reference(family) if net is None else net
    step_of = sdxl_step if family == "sdxl" else flow_step
    target = (height // 8, width // 8)
    rows, columns = (small_sides(side, sides, kind.multiple) for side in target)
    x0 = torch.zeros(1)
    for step, level in enumerate(levels):
        size = (rows[step], columns[step])
        if step:
            x0 = F.interpolate(x0, size, mode="bicubic")
        noise = draw_noise(SEED, indices, step, (kind.channels, *size))
        out = step_of(family, x0, noise, level, cond, net, target)
        if cfg != 1.0:
            against = step_of(family, x0, noise, level, negative, net, target)
            out = against + cfg * (out - against)
        x0 = out
    return x0 / kind.scale + kind.shift


def schedule_of(pack, model, preset):
    out = pack["SwDScaleSchedule"].execute(
        model=model, preset=preset, custom_sizes="", custom_sigmas=""
    )
    return out.args[0], out.args[1]


def empty(width, height, indices=(0,)) -> dict:
    latent = {"samples": torch.zeros(len(indices), 4, height // 8, width // 8)}
    return latent if indices == (0,) else {**latent, "batch_index": list(indices)}


@torch.inference_mode()  # as the host runs its nodes
def run_node(pack, model, preset, latent, cond, **options) -> Tensor:
    schedule, _ = schedule_of(pack, model, preset)
    inputs = {"seed": SEED, "cfg": 1.0, "upscale_method": "bicubic", **options}
    out = pack["SwDSample"].execute(
        model=model, positive=cond, latent_image=latent, schedule=schedule, **inputs
    )
    return out.args[0]["samples"]


def guided(small, family, seed=1):
    return small.conditioning(family, seed, **({"guidance": 4.5} if family == "flux" else {}))
