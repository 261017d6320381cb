"""Drafts of growing runs: stopped after a size, picked, kept, finished to the same bits."""

import dataclasses
import importlib.util
import inspect
import sys

import pytest
import torch
from chain import call, hosted
from grown import growth
from paper import SEED, guided

SIDE = (32, 24)


@pytest.fixture(scope="module", params=["sd35-medium", "sdxl"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def one(pack, small, models, family):
    return Graph(pack, small, models[family], family)


class Graph:
    cfg, negative = 1.0, None

    def __init__(self, pack, small, model, family):
        self.pack, self.model = pack, model
        self.positive = guided(small, family)
        self.empty = torch.zeros(1, small.KINDS[family].channels, *SIDE)

    def schedule(self, **widgets):
        return growth(
            self.pack, self.model, self.empty, **{"sizes": 3, "custom_tolerance": 0.1, **widgets}
        )[0]

    @torch.inference_mode()
    def drafts(self, schedule, **widgets):
        given = {
            "seed": SEED, "count": 3, "stop_after": 1, "batch": 2, "cfg": self.cfg,
            "negative": self.negative, "upscale_method": "bicubic", **widgets,
        }  # fmt: skip
        return hosted(
            self.pack["SwDDrafts"],
            model=self.model, positive=self.positive, latent_image={"samples": self.empty},
            schedule=schedule, **given,
        ).args  # fmt: skip

    @torch.inference_mode()
    def finish(self, drafts, pick, **widgets):
        given = {
            "detail_seed": 0, "variations": 1, "stop_after": 0, "batch": 2, "cfg": self.cfg,
            "negative": self.negative, **widgets,
        }  # fmt: skip
        return hosted(
            self.pack["SwDFinishDrafts"],
            model=self.model, positive=self.positive, drafts=drafts, pick=pick, **given
        ).args  # fmt: skip

    @torch.inference_mode()
    def straight(self, schedule, index, sampler=None):
        latent = {"samples": self.empty, "batch_index": [index]}
        return self.pack["SwDSample"].execute(
            model=self.model, positive=self.positive, latent_image=latent, schedule=schedule,
            seed=SEED, cfg=self.cfg, negative=self.negative, upscale_method="bicubic",
            sampler=sampler,
        ).args[0]["samples"]  # fmt: skip


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_ancestral", "ipndm", "dpmpp_2m_sde"])
def test_finished_drafts_are_the_bits_of_a_straight_run(one, solver):
    """One image at a time, as some kernels round by the batch; also by way of a second sheet."""
    schedule = one.schedule(sampler_name=solver)
    drafts, images, _ = one.drafts(schedule, batch=1)
    assert images.shape[0] == 3 and drafts["samples"].shape[-2:] < SIDE
    whole, scales = one.finish(drafts, "1,3", batch=1)
    for row, index in enumerate((0, 2)):
        assert torch.equal(whole["samples"][row], one.straight(schedule, index)[0])
    assert [tuple(s["samples"].shape[-2:]) for s in scales][-1] == SIDE and len(scales) == 3
    later = one.finish(drafts, "3", stop_after=2, batch=1)[0]
    assert torch.equal(one.finish(later, "1", batch=1)[0]["samples"][0], whole["samples"][1])


def test_a_file_brings_them_back_and_older_packs_are_told(one, tmp_path):
    files = sys.modules["swd_pack.swd_core.draft_files"]
    drafting = sys.modules["swd_pack.nodes.drafting"]
    drafts = one.drafts(one.schedule(sampler_name="dpmpp_2m"))[0]
    known = drafting.from_latent(drafts)
    path = tmp_path / "x.drafts.safetensors"
    files.save_drafts(known, path)
    back = files.load_drafts(path)
    assert back.schedule == known.schedule and back.stretches == 3
    assert torch.equal(back.x_t, known.x_t)
    finished = one.finish(drafting.to_latent(back), "2", batch=1)[0]["samples"]
    assert torch.equal(finished, one.finish(drafts, "2", batch=1)[0]["samples"])
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert '"version": 2' in file.metadata()["swd_drafts"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("euler_ancestral", {"eta": 0.3, "s_noise": 0.9}), ("dpmpp_2m_sde", {"solver_type": "heun"})],
)
def test_a_sampler_with_options_goes_along_to_drafts_and_their_files(one, tmp_path, name, options):
    import comfy.samplers

    files = sys.modules["swd_pack.swd_core.draft_files"]
    drafting = sys.modules["swd_pack.nodes.drafting"]
    sampler = comfy.samplers.ksampler(name, options)
    plain = one.schedule(sampler_name=name)
    drafts = one.drafts(one.schedule(sampler=sampler), batch=1)[0]
    files.save_drafts(drafting.from_latent(drafts), tmp_path / "x.drafts.safetensors")
    back = drafting.to_latent(files.load_drafts(tmp_path / "x.drafts.safetensors"))
    finished = one.finish(back, "2", batch=1)[0]["samples"]
    assert torch.equal(finished, one.finish(drafts, "2", batch=1)[0]["samples"])
    assert torch.equal(finished, one.straight(plain, 1, sampler=sampler))
    assert not torch.equal(finished, one.straight(plain, 1))


def test_samplers_that_a_schedule_cant_keep_are_refused(one):
    import comfy.samplers

    def foreign(model, x, sigmas, extra_args=None, callback=None, disable=None):
        raise AssertionError("never called")

    shaped = comfy.samplers.ksampler("euler", {"s_tmax": lambda sigma: sigma})
    churned = comfy.samplers.ksampler("euler", {"s_churn": 1.0})
    for sampler, said in (
        (comfy.samplers.KSAMPLER(foreign), "foreign"), (shaped, "euler"), (churned, "s_churn"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            one.schedule(sampler=sampler)


@pytest.mark.parametrize("options", [{"gone": 1.0}, {"eta": "much"}, {"callback": 1.0}])
def test_a_file_with_options_that_the_sampler_hasnt_is_refused(one, options):
    schedule = one.schedule(sampler_name="euler_ancestral")
    crafted = dataclasses.replace(schedule, options=options)
    with pytest.raises(ValueError, match=next(iter(options))):
        one.drafts(crafted)


def test_the_sheet_says_what_share_of_a_full_run_it_cost(one, monkeypatch):
    """By latent cells: the steps of the small size times its area, of all steps at full size."""
    said = []
    monkeypatch.setattr(sys.modules["swd_pack.nodes.drafts"], "say", said.append)
    schedule = one.schedule(sizes=2)
    multiple = sys.modules["swd_pack.nodes._host_model"].patch_multiple(one.model)
    first, last = schedule.stretches(*SIDE, multiple)
    one.drafts(schedule, count=4, batch=4)
    small = first.steps * first.size[0] * first.size[1]
    share = small / ((first.steps + last.steps) * SIDE[0] * SIDE[1])
    assert said == [
        f"4 drafts, each {share:.3f} of a run at full size; all of them {4 * share:.2f} runs"
    ]


def test_detail_seeds_keep_the_drafts_low_frequencies(one):
    schedule = one.schedule(sizes=2)
    drafts = one.drafts(schedule, count=1)[0]
    own, other = one.finish(drafts, "1", variations=2, batch=1)[0]["samples"]
    assert not torch.equal(own, other)
    assert torch.equal(own, one.straight(schedule, 0)[0])


def test_what_cannot_be_drafted_is_said(one):
    with pytest.raises(ValueError, match="only the finished size"):
        one.drafts(one.schedule(sizes=1))
    with pytest.raises(ValueError, match="stop_after is 3"):
        one.drafts(one.schedule(), stop_after=3)
    drafts = one.drafts(one.schedule())[0]
    with pytest.raises(ValueError, match="of 3 sizes stop after size 2. They have 1"):
        one.finish(drafts, "1", stop_after=1)


def zimage_omni(small):
    """Z-Image that reads reference pictures: latents, and what a vision encoder sees in them."""
    import comfy.ldm.lumina.model

    if "siglip_feat_dim" not in inspect.signature(comfy.ldm.lumina.model.NextDiT).parameters:
        pytest.skip("Z-Image Omni is newer than this host")
    model, width = small.other_model("zimage", siglip_feat_dim=40)
    texts = [torch.randn(1, 8, width) for _ in range(2)]
    return model, width, {"reference_latents_text_embeds": texts}


def flux2(small):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "Flux2"):
        pytest.skip("FLUX.2 is newer than this host")
    return small.flux2_model(), 48, {"reference_latents_method": "index_timestep_zero"}


@pytest.mark.parametrize("made", [zimage_omni, flux2])
def test_references_that_the_host_takes_for_one_picture_alone(pack, small, made):
    """Its own KSampler fails with two; drafts are many by default."""
    model, width, more = made(small)
    channels = model.get_model_object("latent_format").latent_channels
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(1, channels, *SIDE, generator=generator)
    text = torch.randn(1, 7, width, generator=generator)
    one = object.__new__(Graph)
    one.pack, one.model, one.empty = pack, model, torch.zeros(1, channels, *SIDE)
    one.positive = [[text, {"reference_latents": [reference], **more}]]
    schedule = one.schedule(scheduler="auto")
    drafts = one.drafts(schedule, batch=16)[0]
    done = one.finish(drafts, "all", batch=4)[0]["samples"]
    for row, picture in enumerate(done):
        assert torch.equal(picture, one.straight(schedule, row)[0])


GUIDANCE = {
    "lumina2:RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 1.0},
    "eps:TemporalScoreRescaling": {"tsr_k": 0.95, "tsr_sigma": 1.0},
    "mahiro:Mahiro": {},
    "slg:SkipLayerGuidanceDiT": {
        "double_layers": "0",
        "single_layers": "",
        "scale": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "rescaling_scale": 0.7,
    },
    "easycache:EasyCacheNode": {
        "reuse_threshold": 0.3,
        "start_percent": 0.1,
        "end_percent": 1.0,
        "verbose": False,
    },
    "easycache:LazyCacheNode": {
        "reuse_threshold": 0.3,
        "start_percent": 0.1,
        "end_percent": 1.0,
        "verbose": False,
    },
    "perpneg:PerpNeg": {"empty_conditioning": None, "neg_scale": 1.0},
    "video_model:VideoLinearCFGGuidance": {"min_cfg": 1.0},
    "video_model:VideoTriangleCFGGuidance": {"min_cfg": 1.0},
}


@pytest.mark.parametrize("node", GUIDANCE)
def test_guidance_that_looks_at_a_whole_batch(pack, small, models, node):
    """Two of the host's fail in KSampler with two pictures, the others mix them."""
    module, _, name = node.partition(":")
    if importlib.util.find_spec(f"comfy_extras.nodes_{module}") is None:
        pytest.skip(f"{name} is newer than this host")
    if not hasattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name):
        pytest.skip(f"{name} is newer than this host")
    one = Graph(pack, small, models["sd35-medium"], "sd35-medium")
    one.negative, one.cfg = small.conditioning("sd35-medium", 9), 4.0
    widgets = {**GUIDANCE[node]}
    if "empty_conditioning" in widgets:
        widgets["empty_conditioning"] = small.conditioning("sd35-medium", 8)
    one.model = call(f"comfy_extras.nodes_{node}", model=one.model, **widgets)
    schedule = one.schedule(steps=16)
    drafts = one.drafts(schedule, batch=16)[0]
    done = one.finish(drafts, "all", batch=4)[0]["samples"]
    for row, picture in enumerate(done):
        assert torch.equal(picture, one.straight(schedule, row)[0])


def test_a_reference_that_a_node_makes_still(pack, small):
    """Flux KV Cache tells the MODEL so, not the text."""
    flux = pytest.importorskip("comfy_extras.nodes_flux")
    if not hasattr(flux, "FluxKVCache"):
        pytest.skip("Flux KV Cache is newer than this host")
    model, width, _ = flux2(small)
    channels = model.get_model_object("latent_format").latent_channels
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(1, channels, *SIDE, generator=generator)
    one = object.__new__(Graph)
    one.pack, one.empty = pack, torch.zeros(1, channels, *SIDE)
    one.model = call("comfy_extras.nodes_flux:FluxKVCache", model)
    text = torch.randn(1, 7, width, generator=generator)
    one.positive = [[text, {"reference_latents": [reference]}]]
    schedule = one.schedule(scheduler="auto")
    done = one.finish(one.drafts(schedule, batch=16)[0], "all", batch=4)[0]["samples"]
    for row, picture in enumerate(done):
        assert torch.equal(picture, one.straight(schedule, row)[0])


def test_references_of_the_negative_alone_are_no_other(pack, small):
    model, width, more = flux2(small)
    channels = model.get_model_object("latent_format").latent_channels
    one = object.__new__(Graph)
    one.pack, one.model, one.empty = pack, model, torch.zeros(1, channels, *SIDE)
    one.positive = [[torch.randn(1, 7, width), {}]]
    negative = [[torch.randn(1, 5, width), {"reference_latents": [one.empty + 1], **more}]]
    schedule = one.schedule(scheduler="auto")
    batches, alone = (
        one.drafts(schedule, batch=batch, negative=negative, cfg=2.0)[0]["samples"]
        for batch in (16, 1)
    )
    assert torch.equal(batches, alone)
