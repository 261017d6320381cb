"""A training by the node as the host runs it, on random latents of a small random model."""

import dataclasses
import importlib

import torch
from paper import TOLERANCE, relative

from swd_core.distill.conditioning import Conditioning

FAMILIES = ("sd35-medium", "sd35-large", "flux", "sdxl")
PRESET = {family: f"{family}-4" for family in FAMILIES}
SIDE = 16  # latent cells
VALUES = {
    "steps": 3, "rank": 4, "lr": 2e-2, "lr_fake": 1e-3, "batch_tokens": 16, "mmd": 1.0, "dmd": 1.0,
    "gan": 0.005, "guidance": 2.0, "fake_steps": 1, "seed": 0, "resume": False,
}  # fmt: skip


def packed(name: str):
    """A module of the pack as the host has loaded it; its classes are its own."""
    return importlib.import_module(f"swd_pack.{name}")


def data_for(small, family: str, count: int = 3):
    """Random latents at every size, and random text; one caption has twice the tokens."""
    kind = small.KINDS[family]
    preset = PRESET.get(family, f"{family}-4")
    schedule = packed("swd_core.presets").presets()[preset].schedule
    sizes = tuple(schedule.sizes(SIDE, SIDE, kind.multiple))
    generator = torch.Generator().manual_seed(3)
    latents = {
        s: torch.randn(count, kind.channels, *s, generator=generator) / kind.scale + kind.shift
        for s in sizes
    }
    text = [small.conditioning(family, 10 + i)[0] for i in range(count + 1)]
    text = [Conditioning(context, extra["pooled_output"]) for context, extra in text]
    text[1] = dataclasses.replace(text[1], context=text[1].context.repeat(1, 2, 1))
    captions = tuple(f"picture {i}" for i in range(count))
    return packed("swd_core.distill.memory").MemoryData(
        schedule, sizes, latents, tuple(text[:count]), text[count], captions, (8 * SIDE, 8 * SIDE),
    )  # fmt: skip


def train(pack, model, data, name="student", vae=None, **values):
    """Runs the node as the host does: in inference mode."""
    with torch.inference_mode():
        return pack["SwDDistillTrain"].execute(model, data, name, vae=vae, **{**VALUES, **values})


def bits(model) -> dict[str, torch.Tensor]:
    """A copy of every weight's bytes."""
    return {
        name: value.detach().cpu().clone().contiguous().view(-1).view(torch.uint8)
        for name, value in model.model.state_dict().items()
        if value.numel()
    }


def same_bits(model, before) -> bool:
    after = bits(model)
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def near(ours, theirs, tolerance=TOLERANCE):
    assert relative(ours.detach(), theirs.detach()) <= tolerance
