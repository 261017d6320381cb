"""Patches that draw from torch's own generator: the host seeds it where a run begins."""

import importlib

import pytest
import torch
from chain import call, drafted, finished
from grown import growth
from paper import guided, schedule_of

SIDE = (32, 48)
EMPTY = {"samples": torch.zeros(1, 4, *SIDE)}
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1, 1], "channel_mult": (1, 2, 2), "num_heads": 2, "num_head_channels": -1,
    "use_spatial_transformer": True, "transformer_depth": [1, 1, 0], "context_dim": 64,
    "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 0, 0], "legacy": False,
    "use_checkpoint": False, "use_temporal_attention": False, "use_temporal_resblock": False,
    "adm_in_channels": None, "use_linear_in_transformer": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def sd15(pack):
    """Whose attention runs at every cell, as ToMe wants it."""
    import comfy.ops
    import comfy.supported_models
    from small_models import patcher, random_weights

    unet = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel")
    made = {"operations": comfy.ops.disable_weight_init, "device": "cpu", "dtype": torch.float32}
    net = unet.UNetModel(**UNET, **made)
    return patcher(comfy.supported_models.SD15(dict(UNET)), random_weights(net), torch.float32)


class DrawingVAE:
    """Draws as it decodes, as LTX-Video's does."""

    def decode(self, latent):
        pixels = latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return (pixels + 0.1 * torch.randn_like(pixels)).movedim(1, -1).sigmoid()

    def encode(self, pixels):
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([cells, cells[:, :1]], 1) * 2 - 1


@pytest.fixture(
    params=["HyperTile, student", "HyperTile, growth", "ToMe, growth", "HyperTile, pixels"]
)
def drawing(pack, small, models, sd15, request):
    """A patched model, its conditioning and a schedule."""
    patch, _, kind = request.param.partition(", ")
    if patch == "ToMe":
        generator = torch.Generator().manual_seed(1)
        cond = [[torch.randn(1, 6, 64, generator=generator), {}]]
        model = call("comfy_extras.nodes_tomesd:TomePatchModel", sd15, 0.3)
    else:
        cond = guided(small, "sdxl")
        model = call("comfy_extras.nodes_hypertile:HyperTile", models["sdxl"], 32, 4, 1, False)
    if kind == "student":
        return model, cond, schedule_of(pack, model, "sdxl-4")[0]
    widgets = {"lift": "pixels", "vae": DrawingVAE()} if kind == "pixels" else {}
    widgets |= {"steps": 9, "sizes": 3, "custom_tolerance": 0.3}
    schedule = growth(pack, model, EMPTY["samples"], **widgets)[0]
    assert len(schedule.stretches(*SIDE, 4)) == 3
    return model, cond, schedule


def straight(pack, model, cond, schedule, seed=5):
    return pack["SwDSample"].execute(
        model=model, positive=cond, latent_image=EMPTY, schedule=schedule, seed=seed, cfg=1.0,
        upscale_method="bicubic",
    ).args[0]["samples"]  # fmt: skip


def test_the_same_seed_makes_the_same_picture(pack, drawing):
    model, cond, schedule = drawing
    first = straight(pack, model, cond, schedule)
    torch.rand(7)  # whatever ran in between
    assert torch.equal(straight(pack, model, cond, schedule), first)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_finished_draft_is_the_straight_run(pack, drawing, stop):
    model, cond, schedule = drawing
    given = {"model": model, "positive": cond}
    drafts = drafted(pack, stop, latent_image=EMPTY, schedule=schedule, seed=5, **given)
    torch.rand(7)
    done = finished(pack, drafts, **given)
    assert torch.equal(done, straight(pack, model, cond, schedule))


def test_the_patches_draw(pack, drawing, monkeypatch):
    """What the other tests would not see, if a patch did nothing here."""
    seen, plain = [], torch.randint

    def spied(*given, **named):
        seen.append(plain(*given, **named))
        return seen[-1]

    monkeypatch.setattr(torch, "randint", spied)
    hypertile = importlib.import_module("comfy_extras.nodes_hypertile")
    monkeypatch.setattr(hypertile, "randint", spied)
    straight(pack, *drawing)
    assert len({tuple(drawn.flatten().tolist()) for drawn in seen}) > 1
