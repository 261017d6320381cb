"""The nodes against the paper's formulas around diffusers' models of the same weights."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from chain import hosted
from paper import (
    PRESETS,
    SEED,
    TOLERANCE,
    empty,
    guided,
    reference_latent,
    relative,
    run_node,
    schedule_of,
    small_sides,
)

from swd_core.noise import draw_noise
from swd_core.schedule import ScaleSchedule

# Width, height in pixels; the third and fourth are a quarter of 1216 x 832 and 1536 x 640.
SIZES = [(256, 192), (128, 384), (304, 208), (384, 160), (256, 256)]
FULL_SIZES = [
    ("sd35-medium-4", (832, 1216)), ("sd35-medium-4", (1344, 768)), ("sd35-medium-4", (1536, 640)),
    ("sd35-large-6-2025", (832, 1216)), ("flux-4", (1536, 640)), ("sdxl-4", (832, 1216)),
]  # fmt: skip
NEWEST = ["sd35-medium-4", "sd35-large-4", "flux-4", "sdxl-4"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_node_is_the_paper_around_diffusers(pack, small, models, preset, size):
    family = PRESETS[preset][0]
    if family == "sdxl":
        size = tuple(32 * round(side / 32) for side in size)
    cond = guided(small, family)
    ours = run_node(pack, models[family], preset, empty(*size), cond)
    theirs = reference_latent(small, preset, *size, cond)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(("preset", "size"), FULL_SIZES, ids=str)
def test_sizes_people_use(pack, small, models, preset, size):
    family = PRESETS[preset][0]
    cond = guided(small, family)
    ours = run_node(pack, models[family], preset, empty(*size), cond)
    theirs = reference_latent(small, preset, *size, cond)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("preset", NEWEST)
def test_batch_with_chosen_images(pack, small, models, preset):
    family = PRESETS[preset][0]
    cond, indices = guided(small, family), (5, 0, 2)
    ours = run_node(pack, models[family], preset, empty(192, 256, indices), cond)
    theirs = reference_latent(small, preset, 192, 256, cond, indices=indices)
    assert relative(ours, theirs) <= TOLERANCE
    assert relative(ours[:1], theirs[1:2]) > 0.1, "the images differ"


@pytest.mark.parametrize("preset", ["sd35-medium-4", "sdxl-4"])
def test_guidance_other_than_one(pack, small, models, preset):
    family = PRESETS[preset][0]
    cond, against = guided(small, family), guided(small, family, seed=2)
    ours = run_node(pack, models[family], preset, empty(192, 256), cond, cfg=3.0, negative=against)
    theirs = reference_latent(small, preset, 192, 256, cond, negative=against, cfg=3.0)
    assert relative(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("preset", NEWEST)
def test_guidance_of_one_runs_the_model_once_a_step(pack, small, models, preset):
    family, sides, _ = PRESETS[preset]
    seen = []

    def count(apply_model, call):
        seen.append(call["input"].shape)
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = models[family].clone()
    model.set_model_unet_function_wrapper(count)
    cond = guided(small, family)
    run_node(pack, model, preset, empty(256, 256), cond, negative=guided(small, family, 2))
    assert [shape[0] for shape in seen] == [1] * 4
    assert [shape[-1] for shape in seen] == small_sides(32, sides, small.KINDS[family].multiple)


@pytest.mark.parametrize("same_units", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_node_is_the_chain_of_the_hosts_own_steps(
    pack, small, models, preset, same_units, monkeypatch
):
    """One image-to-image run of the host for each step: SIGMAS [s, 0] on the enlarged latent.

    Between its runs the chain goes through the units of the VAE, which rounds; where they are the
    model's own the two agree in every bit.
    """
    import comfy.latent_formats
    import comfy.samplers

    family, sides, _ = PRESETS[preset]
    kind, model, (width, height) = small.KINDS[family], models[family], (256, 192)
    if same_units:
        units = comfy.latent_formats.LatentFormat()
        units.latent_channels = kind.channels
        monkeypatch.setattr(model.model, "latent_format", units)
    _, sigmas = schedule_of(pack, model, preset)
    cond = guided(small, family)
    sized = [[cond[0][0], {**cond[0][1], "width": width, "height": height}]]
    rows = small_sides(height // 8, sides, kind.multiple)
    columns = small_sides(width // 8, sides, kind.multiple)
    latent = torch.zeros(1, kind.channels, rows[0], columns[0])
    for step, size in enumerate(zip(rows, columns, strict=True)):
        if step:
            # Where the model is: a card rounds differently.
            latent = F.interpolate(latent.to(model.load_device), size, mode="bicubic").cpu()
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(sized, sized)
        guider.set_cfg(1.0)
        latent = guider.sample(
            draw_noise(SEED, (0,), step, latent.shape[1:]), latent,
            comfy.samplers.sampler_object("lcm"), torch.stack([sigmas[step], torch.tensor(0.0)]),
            disable_pbar=True, seed=SEED,
        ).cpu()  # fmt: skip
    ours = run_node(pack, model, preset, empty(width, height), cond)
    if same_units:
        assert torch.equal(ours, latent)
    else:
        assert relative(ours, latent) <= 2e-6


def test_steps_close_in_noise_keep_their_own_sizes(pack, small, models):
    """The table says so; a size that noise levels alike share would end the run too small."""
    model, seen = models["sd35-medium"].clone(), []

    def watch(apply_model, args):
        seen.append(tuple(args["input"].shape[-2:]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    schedule = ScaleSchedule((0.25, 0.5, 1), (0.60002, 0.60001, 0.6))
    sample = pack["SwDSample"].execute
    cond = guided(small, "sd35-medium")
    sample(model, cond, empty(256, 192), schedule, SEED, 1.0, "bicubic")
    assert seen == [(6, 8), (12, 16), (24, 32)]


@pytest.mark.parametrize("preset", NEWEST)
@pytest.mark.parametrize("indices", [(0,), (0, 1, 2), (4, 1)], ids=str)
def test_both_ways_of_sampling_give_the_same_bits(pack, small, models, preset, indices):
    from comfy_extras.nodes_custom_sampler import (
        BasicGuider,
        CFGGuider,
        RandomNoise,
        SamplerCustomAdvanced,
    )

    def call(node, *inputs):
        run = getattr(node, "execute", None) or getattr(node(), node.FUNCTION)
        out = run(*inputs)
        return getattr(out, "args", out)

    family = PRESETS[preset][0]
    model, cond, latent = models[family], guided(small, family), empty(192, 256, indices)
    schedule, sigmas = schedule_of(pack, model, preset)
    (sampler,) = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args
    one = run_node(pack, model, preset, latent, cond)
    for guider in (call(BasicGuider, model, cond), call(CFGGuider, model, cond, cond, 1.0)):
        noise = call(RandomNoise, SEED)[0]
        out = call(SamplerCustomAdvanced, noise, guider[0], sampler, sigmas, latent)[0]
        assert torch.equal(out["samples"], one)


@pytest.mark.parametrize("preset", NEWEST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_as_the_reference_is(pack, small, preset, dtype):
    family = PRESETS[preset][0]
    cond = guided(small, family)
    exact = reference_latent(small, preset, 192, 256, cond)
    half = copy.deepcopy(small.reference(family)).to(dtype)
    theirs = relative(reference_latent(small, preset, 192, 256, cond, net=half), exact)
    ours = run_node(pack, small.host_model(family, dtype), preset, empty(192, 256), cond)
    assert ours.isfinite().all() and ours.dtype == torch.float32
    assert relative(ours, exact) <= 1.5 * theirs


def test_a_linked_negative_seed_is_the_hosts_own(pack, small, models):
    """-1 is 2^64-1 to torch, and so to KSampler and RandomNoise, which links don't hold to 0."""
    from chain import call

    custom, preset = "comfy_extras.nodes_custom_sampler:", "sd35-medium-4"
    model, cond = models["sd35-medium"], guided(small, "sd35-medium")
    schedule, sigmas = schedule_of(pack, model, preset)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    guider = call(custom + "BasicGuider", model, cond)
    expected = run_node(pack, model, preset, empty(192, 256), cond, seed=2**64 - 1)
    assert torch.equal(run_node(pack, model, preset, empty(192, 256), cond, seed=-1), expected)
    noise = call(custom + "RandomNoise", -1)
    latent = empty(192, 256)
    out = call(custom + "SamplerCustomAdvanced", noise, guider, sampler, sigmas, latent)
    assert torch.equal(out["samples"], expected)
    drafts = hosted(
        pack["SwDDrafts"],
        model=model, positive=cond, latent_image=latent, schedule=schedule, seed=-1, count=1,
        stop_after=1, batch=1, cfg=1.0, upscale_method="bicubic",
    ).args[0]  # fmt: skip
    assert drafts["swd_drafts"].images[0].seed == 2**64 - 1, "as a file can hold it"
    finished = hosted(
        pack["SwDFinishDrafts"],
        model=model, positive=cond, drafts=drafts, pick="1", detail_seed=0, variations=1,
        stop_after=0, batch=1, cfg=1.0,
    ).args[0]  # fmt: skip
    assert torch.equal(finished["samples"], expected)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_patches_that_read_the_negative_at_cfg_one(pack, small, models, family, monkeypatch):
    """The host's own NAG: each step is one of its runs, and what it costs is said."""
    pytest.importorskip("comfy_extras.nodes_nag", reason="NAG is newer than this host")
    from chain import FAMILIES, call, cfg_guider, host_chain, scalewise, sized

    said = []
    monkeypatch.setattr(sys.modules["swd_pack.nodes._host"], "say", said.append)
    preset = FAMILIES[family]
    nag = call("comfy_extras.nodes_nag:NAGuidance", models[family], 5.0, 0.5, 1.5)
    positive, negative = (sized(guided(small, family, seed)) for seed in (1, 2))

    def guider_at(step, size):
        return cfg_guider(nag, positive, negative, 1.0)

    ours = scalewise(pack, preset, guider_at(-1, None))
    assert relative(ours, host_chain(pack, small, preset, nag, guider_at)) <= 5e-6
    latent = empty(384, 256)
    plain = run_node(pack, models[family], preset, latent, positive, negative=negative)
    assert not said
    node = run_node(pack, nag, preset, latent, positive, negative=negative)
    assert relative(node, plain) > 0.001, "the negative does something"
    assert "runs the model twice" in said[-1] and "None is connected" not in said[-1]
    alone = run_node(pack, nag, preset, latent, positive)
    assert relative(alone, plain) < 1e-4
    assert "None is connected" in said[-1]
