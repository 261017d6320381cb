"""What else is in the graph means the same place of the picture at every scale.

The truth is the host's own run at each scale (chain.py), or where a region's influence lies.
"""

import random

import pytest
import torch
from chain import FAMILIES, SIZE, at_size, call, cfg_guider, host_chain, scalewise, sized, sizes_of
from paper import PRESETS, guided, relative, run_node, schedule_of

EXACT = 5e-6  # float32 sums of differently grouped numbers
FLOW = ["sd35-medium", "flux"]


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


@pytest.fixture
def compare(pack, small, models, record_property):
    """Runs the sampler once and the host scale by scale, and compares."""

    def run(family, guider_at, tolerance=EXACT, **options):
        preset = FAMILIES[family]
        target = sizes_of(small, preset)[-1]
        ours = scalewise(pack, preset, guider_at(-1, target))
        theirs = host_chain(pack, small, preset, models[family], guider_at, **options)
        difference = relative(ours, theirs)
        record_property("difference", difference)
        assert ours.isfinite().all() and ours.shape == theirs.shape
        assert difference <= tolerance
        return ours

    return run


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


def referring(cond, pictures, size=SIZE, method=None):
    """ReferenceLatent of pictures (1, 16, H, W), shrunk as a picture of SIZE to `size` is."""
    for picture in pictures:
        sides = (
            max(1, round(side * small / full / 2)) * 2
            for side, small, full in zip(picture.shape[-2:], size, SIZE, strict=True)
        )
        latent = {"samples": at_size(picture, tuple(sides))}
        cond = call("comfy_extras.nodes_edit_model:ReferenceLatent", cond, latent)
    node = "comfy_extras.nodes_flux:FluxKontextMultiReferenceLatentMethod"
    return cond if method is None else call(node, cond, method)


def picture(rows, columns, seed=5):
    return torch.randn(1, 16, rows, columns, generator=torch.Generator().manual_seed(seed))


REFERENCES = {
    "of the picture's size": [picture(*SIZE)],
    "of another size": [picture(20, 28)],
    "two": [picture(*SIZE), picture(20, 28, 6)],
}


@pytest.mark.parametrize("method", [None, "offset", "index"])
@pytest.mark.parametrize("pictures", REFERENCES)
def test_reference_latents(compare, small, models, pictures, method):
    """Their cells have the positions of the picture's own: where it shrinks, they do too."""
    cond, pictures = guided(small, "flux"), REFERENCES[pictures]

    def guider_at(step, size):
        return cfg_guider(models["flux"], referring(cond, pictures, size, method))

    ours = compare("flux", guider_at)
    plain = compare("flux", lambda step, size: cfg_guider(models["flux"], cond))
    assert relative(ours, plain) > 0.01, "the reference does something"


def test_references_beside_the_picture_keep_their_size(compare, small, models):
    """UNO's lie outside of the picture and mean no place in it."""
    cond = referring(guided(small, "flux"), [picture(20, 28)], method="uxo/uno")
    compare("flux", lambda step, size: cfg_guider(models["flux"], cond))


EDITING = {
    "flux": lambda small, models: (models["flux"], guided(small, "flux")),
    "flux2": lambda small, models: (small.flux2_model(), plain_text(48)),
    "qwen": lambda small, models: (small.qwen_model(), plain_text(48)),
}


def plain_text(width):
    return [[torch.randn(1, 7, width, generator=torch.Generator().manual_seed(1)), {}]]


@pytest.mark.parametrize("kind", EDITING)
def test_a_reference_has_the_picture_s_positions_at_every_size(pack, small, models, kind):
    """What the host's models work out of the sizes: rows and columns by token, beside an index."""
    import comfy.supported_models

    if kind == "flux2" and not hasattr(comfy.supported_models, "Flux2"):
        pytest.skip("FLUX.2 is newer than this host")
    model, cond = EDITING[kind](small, models)
    latent_format = model.get_model_object("latent_format")
    frame = (1,) if latent_format.latent_dimensions == 3 else ()
    size = (1, latent_format.latent_channels, *frame, *SIZE)
    latent = torch.randn(size, generator=torch.Generator().manual_seed(2))
    referring = call("comfy_extras.nodes_edit_model:ReferenceLatent", cond, {"samples": latent})
    seen = []
    net = model.model.diffusion_model
    handle = net.pe_embedder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    schedule = pack["SwDScaleSchedule"].execute(
        model=model, preset="custom", custom_sizes="0.25 0.5 0.75 1", custom_sigmas="1 0.8 0.6 0.4"
    ).args[0]  # fmt: skip
    try:
        out = pack["SwDSample"].execute(
            model=model, positive=referring, latent_image={"samples": torch.zeros(size)},
            schedule=schedule, seed=1, cfg=1.0, upscale_method="bicubic",
        ).args[0]["samples"]  # fmt: skip
    finally:
        handle.remove()
    assert out.shape == size and out.isfinite().all() and len(seen) == 4
    patch = 1 if kind == "flux2" else 2
    for ids, share in zip(seen, (0.25, 0.5, 0.75, 1), strict=True):
        count = round(SIZE[0] * share / patch) * round(SIZE[1] * share / patch)
        ours, theirs = ids[0, -2 * count :].split(count)  # after the text
        assert torch.equal(ours[:, 1:3], theirs[:, 1:3]) and (ours[:, 0] != theirs[:, 0]).all()


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


def lora_of(model, seed=11):
    """A random LoRA of two layers in the host's own key names."""
    import comfy.lora

    generator = torch.Generator().manual_seed(seed)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    chosen = [k for k in keys if k.startswith("lora_unet_") and "attn" in k][:6]
    state = {}
    for key in chosen:
        weight = model.model.state_dict()[keys[key] if isinstance(keys[key], str) else keys[key][0]]
        if weight.ndim != 2:
            continue
        state[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
        state[f"{key}.lora_down.weight"] = (
            torch.randn(4, weight.shape[1], generator=generator) * 0.1
        )
    return state


@pytest.mark.parametrize("family", ["sd35-medium", "sdxl"])
def test_lora_hooks_with_keyframes(pack, small, models, record_property, family):
    """A LoRA whose strength changes equals the host's runs with it at each strength."""
    import comfy.hooks
    import comfy.sd

    preset, model = FAMILIES[family], models[family]
    lora, cond = lora_of(model), sized(guided(small, family))
    _, sigmas = schedule_of(pack, model, preset)
    strengths = [0.0, 1.0, 0.5, 0.25]
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    sampling = model.get_model_object("model_sampling")
    for step, strength in enumerate(strengths):
        percent = max(
            0.0,
            next(
                p / 1000
                for p in range(1000)
                if float(sampling.percent_to_sigma(p / 1000)) <= 1.005 * sigmas[step]
            ),
        )
        keyframes.add(
            comfy.hooks.HookKeyframe(strength, start_percent=0.0 if step == 0 else percent - 0.002)
        )
    hooks.set_keyframes_on_hooks(keyframes)
    hooked = [[c, {**more, "hooks": hooks}] for c, more in cond]

    def guider_at(step, size):
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strengths[step], 0.0)
        return cfg_guider(patched, cond)

    ours = scalewise(pack, preset, cfg_guider(model, hooked))
    theirs = host_chain(pack, small, preset, model, guider_at)
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= 5e-5
    without = scalewise(pack, preset, cfg_guider(model, cond))
    assert relative(ours, without) > 1e-3, "the hook does something"


# The host's own model patches: name -> (families they are for, patch).
PATCHES = {
    "FreeU V2": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_freelunch:FreeU_V2", m, 1.3, 1.4, 0.9, 0.2),
    ),
    "HyperTile": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_hypertile:HyperTile", m, 64, 2, 0, False),
    ),
    "PAG": (["sdxl"], lambda m: call("comfy_extras.nodes_pag:PerturbedAttentionGuidance", m, 2.0)),
    "SAG": (["sdxl"], lambda m: call("comfy_extras.nodes_sag:SelfAttentionGuidance", m, 0.5, 2.0)),
    "Skip layer guidance": (
        ["sd35-medium"],
        lambda m: call("comfy_extras.nodes_sd3:SkipLayerGuidanceSD3", m, "1", 2.0, 0.0, 1.0),
    ),
    "RescaleCFG": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_model_advanced:RescaleCFG", m, 0.7),
    ),
    "CFG zero star": (FLOW, lambda m: call("comfy_extras.nodes_cfg:CFGZeroStar", m)),
    "TCFG": (list(FAMILIES), lambda m: call("comfy_extras.nodes_tcfg:TCFG", m)),
    "Mahiro": (list(FAMILIES), lambda m: call("comfy_extras.nodes_mahiro:Mahiro", m)),
    "FreSca": (list(FAMILIES), lambda m: call("comfy_extras.nodes_fresca:FreSca", m, 1.0, 1.25, 3)),
    "APG without momentum": (
        list(FAMILIES), lambda m: call("comfy_extras.nodes_apg:APG", m, 0.8, 5.0, 0.0),
    ),
    "tomesd": (["sdxl"], lambda m: call("comfy_extras.nodes_tomesd:TomePatchModel", m, 0.3)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "family"), [(n, f) for n, (families, _) in PATCHES.items() for f in families]
)
def test_model_patches(compare, small, models, name, family):
    patched = PATCHES[name][1](models[family])
    positive, negative = sized(guided(small, family, 1)), sized(guided(small, family, 2))

    def guider_at(step, size):
        if name == "tomesd":  # it draws from the global generator
            torch.manual_seed(0)
        return cfg_guider(patched, positive, negative, 3.0)

    compare(family, guider_at, tolerance=1e-4)


def perp_neg(model, conds):
    return call("comfy_extras.nodes_perpneg:PerpNegGuider", model, *conds, 3.0, 0.8)


def dual(style):
    return lambda model, conds: call(
        "comfy_extras.nodes_custom_sampler:DualCFGGuider", model, *conds, 3.0, 2.0, style
    )


GUIDERS = {"PerpNeg": perp_neg, "DualCFG": dual("regular"), "DualCFG nested": dual("nested")}


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_guiders(compare, small, models, name, family):
    conds = [sized(guided(small, family, seed)) for seed in (1, 2, 3)]
    compare(family, lambda step, size: GUIDERS[name](models[family], conds), tolerance=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_post_cfg_functions(compare, small, models, family):
    patched = models[family].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)
    cond = sized(guided(small, family))
    compare(family, lambda step, size: cfg_guider(patched, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_apg_with_momentum_is_refused_by_name(pack, small, models, family):
    patched = call("comfy_extras.nodes_apg:APG", models[family], 1.0, 5.0, -0.5)
    calls = []
    patched.set_model_unet_function_wrapper(lambda apply, a: calls.append(1))
    cond = guided(small, family)
    with pytest.raises(ValueError, match="Adaptive Projected Guidance.*momentum -0.5"):
        scalewise(pack, FAMILIES[family], cfg_guider(patched, cond, cond, 2.0))
    assert not calls, "said before the first model call"


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
