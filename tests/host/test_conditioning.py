"""What else is in the graph means the same place of the picture at every scale.

The truth is the host's own run at each scale (chain.py), or where a region's influence lies.
"""

import random

import pytest
import torch
from chain import FAMILIES, SIZE, call, cfg_guider, scalewise, sized
from paper import PRESETS, guided, relative, run_node

FLOW = ["sd35-medium", "flux"]


def box_mask(size=SIZE, place=(0.25, 0.75, 0.0, 0.5)):
    """A mask (1, 8 H, 8 W) of a box given as shares: top, bottom, left, right."""
    height, width = 8 * size[0], 8 * size[1]
    top, bottom, left, right = place
    mask = torch.zeros(1, height, width)
    mask[:, int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = 1
    return mask


def pixel_area(cond, size, place, strength=1.0):
    """ConditioningSetArea at a latent size: shares of the picture in pixels of that size."""
    top, bottom, left, right = place
    height, width = 8 * size[0], 8 * size[1]
    box = (right - left) * width, (bottom - top) * height, left * width, top * height
    return call("nodes:ConditioningSetArea", cond, *(round(v) for v in box), strength)


# Each takes a conditioning and the latent size it is meant for, and gives that of one region.
REGIONS = {
    "SetMask default": lambda c, size: call(
        "nodes:ConditioningSetMask", c, box_mask(), "default", 1.0
    ),
    "SetMask bounds": lambda c, size: call(
        "nodes:ConditioningSetMask", c, box_mask(), "mask bounds", 0.7
    ),
    "SetAreaPercentage": lambda c, size: call(
        "nodes:ConditioningSetAreaPercentage", c, 0.5, 0.5, 0.25, 0.25, 1.3
    ),
    "SetArea": lambda c, size: pixel_area(c, size, (0.25, 0.75, 0.0, 0.5)),
    "SetArea at the edge": lambda c, size: pixel_area(c, size, (0.5, 1.0, 0.5, 1.0), 0.8),
    "SetTimestepRange": lambda c, size: call("nodes:ConditioningSetTimestepRange", c, 0.3, 0.7),
}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_regional_prompts(compare, small, models, family, region):
    whole, part = sized(guided(small, family, 1)), sized(guided(small, family, 2))

    def guider_at(step, size):
        positive = whole + REGIONS[region](part, size)
        return cfg_guider(models[family], positive, sized(guided(small, family, 3)), 2.0)

    compare(family, guider_at)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_regions_at_once(compare, small, models, family):
    parts = [sized(guided(small, family, seed)) for seed in (2, 3, 4)]

    def guider_at(step, size):
        positive = sized(guided(small, family, 1))
        for part, region in zip(
            parts, ("SetMask default", "SetAreaPercentage", "SetArea"), strict=True
        ):
            positive = positive + REGIONS[region](part, size)
        return cfg_guider(models[family], positive)

    compare(family, guider_at)


@pytest.mark.parametrize("region", ["SetMask default", "SetAreaPercentage", "SetArea"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75])
def test_a_regions_influence_lies_in_its_place(pack, small, models, family, region, scale):
    """What changes of the first x0 when the region's prompt changes, at any first scale."""
    size, kind = (64, 64), "timestep" if family == "sdxl" else "flow"
    place = (0.25, 0.75, 0.25, 0.75) if region == "SetAreaPercentage" else (0.25, 0.75, 0.0, 0.5)
    levels = "1000 500" if kind == "timestep" else "1 0.6"
    schedule, sigmas = (
        pack["SwDScaleSchedule"]
        .execute(
            model=models[family], preset="custom", custom_sizes=f"{scale} 1", custom_sigmas=levels
        )
        .args[:2]
    )
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    seen = []
    for seed in (2, 3):
        whole, part = guided(small, family, 1), guided(small, family, seed)
        if region == "SetMask default":
            mask = box_mask(size, place)
            positive = whole + call("nodes:ConditioningSetMask", part, mask, "default", 1.0)
        elif region == "SetArea":
            positive = whole + pixel_area(part, size, place)
        else:
            positive = whole + REGIONS[region](part, size)
        steps = []
        latent = torch.zeros(1, small.KINDS[family].channels, *size)
        cfg_guider(models[family], positive).sample(
            latent, latent, sampler, sigmas, seed=1, disable_pbar=True,
            callback=lambda step, x0, x, total, steps=steps: steps.append(x0),
        )  # fmt: skip
        seen.append(steps[0])
    changed = (seen[0] - seen[1]).abs().amax((0, 1)) > 1e-6
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    side = changed.shape[0]
    assert side == round(64 * scale)
    top, bottom, left, right = (round(share * side) for share in place)
    found = rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1
    for ours, wanted in zip(found, (top, bottom, left, right), strict=True):
        assert abs(ours - wanted) <= 1, (found, (top, bottom, left, right))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_agree_with_regions(pack, small, models, family):
    preset = FAMILIES[family]
    part = guided(small, family, 2)
    positive = guided(small, family) + REGIONS["SetArea"](part, SIZE)
    latent = {"samples": torch.zeros(1, 4, *SIZE)}
    one = run_node(pack, models[family], preset, latent, positive)
    assert torch.equal(one, scalewise(pack, preset, cfg_guider(models[family], positive)))


def test_attention_masks_of_style_models(compare, small, models):
    cond = guided(small, "flux")
    tokens, rows, columns = cond[0][0].shape[1], SIZE[0] // 2, SIZE[1] // 2
    mask = torch.zeros(1, tokens + rows * columns, tokens + rows * columns)
    mask[:, tokens:, : tokens // 2] = -2.0
    styled = [[cond[0][0], {
        **cond[0][1], "attention_mask": mask, "attention_mask_img_shape": (rows, columns),
    }]]  # fmt: skip
    compare("flux", lambda step, size: cfg_guider(models["flux"], styled), tolerance=5e-5)


def test_unclip(compare, small, models):
    class Vision(dict):
        def __getattr__(self, name):
            return self[name]

    vision = Vision(image_embeds=torch.randn(1, 1280, generator=torch.Generator().manual_seed(4)))
    cond = call("nodes:unCLIPConditioning", sized(guided(small, "sdxl")), vision, 1.0, 0.0)
    compare("sdxl", lambda step, size: cfg_guider(models["sdxl"], cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_controlnets(compare, small, models, controls, family):
    """Two at once, one of them for some steps only; FLUX- and SD3-type hints go through a VAE."""
    cond, negative = sized(guided(small, family, 1)), sized(guided(small, family, 2))
    hint = torch.rand(1, 8 * SIZE[0], 8 * SIZE[1], 3, generator=torch.Generator().manual_seed(3))

    def guider_at(step, size):
        net, vae = controls(family)
        positive, against = cond, negative
        for start, end, strength in ((0.0, 1.0, 0.9), (0.2, 0.6, 0.5)):
            node = __import__("nodes").ControlNetApplyAdvanced()
            positive, against = node.apply_controlnet(
                positive, against, net, hint, strength, start, end, vae=vae
            )
        return cfg_guider(models[family], positive, against, 2.0)

    ours = compare(family, guider_at)
    plain = compare(family, lambda step, size: cfg_guider(models[family], cond, negative, 2.0))
    assert relative(ours, plain) > 1e-3, "the hint does something"


def test_control_for_positive_and_negative_by_one_input(compare, small, models, controls):
    """The old ControlNetApply node: the host copies the net to the negative side itself."""
    cond, negative = sized(guided(small, "sdxl", 1)), sized(guided(small, "sdxl", 2))
    hint = torch.rand(1, 8 * SIZE[0], 8 * SIZE[1], 3, generator=torch.Generator().manual_seed(3))

    def guider_at(step, size):
        net, _ = controls("sdxl")
        positive = call("nodes:ControlNetApply", cond, net, hint, 0.9)
        return cfg_guider(models["sdxl"], positive, negative, 2.0)

    compare("sdxl", guider_at)


def test_gligen_boxes_keep_their_place(pack, small, models):
    """What the box is divided by is the latent's size, so a box in cells must shrink with it."""
    import comfy.model_patcher

    seen = []

    class Boxes(torch.nn.Module):
        """The part of a GLIGEN model that sees the boxes; its attention adds nothing."""

        def set_position(self, shape, boxes, device):
            height, width = shape[-2:]
            seen.append([(h / height, w / width, y / height, x / width) for _, h, w, y, x in boxes])
            return lambda x, extra: x

        def set_empty(self, shape, device):
            return lambda x, extra: x

    cpu = torch.device("cpu")
    gligen = comfy.model_patcher.ModelPatcher(Boxes(), load_device=cpu, offload_device=cpu)
    cond = guided(small, "sdxl")
    boxes = [(cond[0][1]["pooled_output"], 16, 24, 8, 12)]
    placed = [[cond[0][0], {**cond[0][1], "gligen": ("position", gligen, boxes)}]]
    guider = cfg_guider(models["sdxl"], placed)
    scalewise(pack, "sdxl-4", guider)
    assert len(seen) == 4
    assert all(places == [(0.5, 0.5, 0.25, 0.25)] for places in seen)


def test_nothing_of_the_graphs_own_conditioning_is_changed(pack, small, models):
    random.seed(0)
    cond = guided(small, "sdxl") + REGIONS["SetArea"](guided(small, "sdxl", 2), SIZE)
    before = [(c.clone(), dict(more)) for c, more in cond]
    scalewise(pack, "sdxl-4", cfg_guider(models["sdxl"], cond))
    for (c, more), (c_before, more_before) in zip(cond, before, strict=True):
        assert torch.equal(c, c_before) and more.keys() == more_before.keys()
        assert more.get("area") == more_before.get("area")


assert set(FAMILIES.values()) <= set(PRESETS)
