"""Drafts on the real host: finishing one is the straight run, bit for bit, however it got there."""

import importlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import hosted
from drafts_bench import FAMILIES, SEED, Bench, counting
from PIL import Image


@pytest.fixture(params=FAMILIES)
def bench(pack, small, models, request, folders):
    return Bench(pack, small, models[request.param], request.param)


@pytest.fixture
def one(pack, small, models, folders):
    """The SD3.5-like bench alone, where the family makes no difference."""
    return Bench(pack, small, models["sd35-medium"], "sd35-medium")


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_finishing_is_the_straight_run_bit_for_bit(bench, stop_after):
    drafts, images, sheet = bench.drafts(count=3, stop_after=stop_after)
    whole = bench.straight((0, 1, 2))
    assert torch.equal(bench.finish(drafts, "all")[0]["samples"], whole)
    alone, _, _ = bench.drafts(count=1, batch=1, stop_after=stop_after)
    assert torch.equal(bench.finish(alone, "1")[0]["samples"], bench.straight((0,)))
    assert images.shape[0] == 3 and images.shape[1] < 192 and sheet.shape[0] == 1


def test_one_of_many_is_the_same_image_whatever_the_batches(bench):
    drafts, _, _ = bench.drafts(count=5, batch=2)
    third = bench.finish(drafts, "3,1", batch=1)[0]["samples"]
    expected = bench.straight((2, 0))
    torch.testing.assert_close(third, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_another_number_is_another_image_and_the_order_is_the_pick_s(one):
    drafts, _, _ = one.drafts()
    both = one.finish(drafts, "4,2")[0]["samples"]
    assert torch.equal(both[0], one.finish(drafts, "4")[0]["samples"][0])
    assert torch.equal(both[1], one.finish(drafts, "2")[0]["samples"][0])
    assert (both[0] - both[1]).abs().max() > 0.1


def test_drafts_of_drafts(bench):
    first, _, _ = bench.drafts(count=4)
    second, _ = bench.finish(first, "2-4", stop_after=2)
    third, _ = bench.finish(second, "1,3", stop_after=3)
    expected = bench.straight((1, 3))
    done = bench.finish(third, "all")[0]["samples"]
    torch.testing.assert_close(done, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_save_and_load_give_the_same_bits(bench, pack):
    drafts, _, _ = bench.drafts(count=2)
    expected = bench.finish(drafts, "all")[0]["samples"]
    [file] = (
        pack["SwDSaveDrafts"].execute(drafts=drafts, filename_prefix="drafts/x").ui["swd_files"]
    )
    name = f"drafts/{file['filename']} [output]"
    assert importlib.import_module("swd_pack.nodes.draft_files").saved_files() == [name]
    loaded = pack["SwDLoadDrafts"].execute(file=name, vae=FlatVAE()).args[0]
    assert torch.equal(loaded["samples"], drafts["samples"])
    assert torch.equal(bench.finish(loaded, "all")[0]["samples"], expected)


def test_a_missing_drafts_file_is_refused_with_the_way_out(pack):
    said = pack["SwDLoadDrafts"].validate_inputs(file="gone.drafts.safetensors")
    assert "gone.drafts.safetensors" in said and said.endswith("copy it to the input folder.")


class FlatVAE:
    """A picture of the first channels: only the latents are compared."""

    def decode(self, samples):
        return (
            samples[:, :3].movedim(1, -1).sigmoid().repeat_interleave(8, 1).repeat_interleave(8, 2)
        )


def test_details_are_rolled_anew_and_the_composition_stays(one):
    drafts, _, _ = one.drafts(count=3, stop_after=2)
    own = one.finish(drafts, "2")[0]["samples"]
    varied, scales = one.finish(drafts, "2", detail_seed=5, variations=3)
    images = varied["samples"]
    assert images.shape[0] == 3
    distances = [(a - b).abs().mean() for a, b in combinations((own[0], *images), 2)]
    assert min(distances) > 0.01
    for scale in scales[:2]:  # the scales of the draft itself
        assert all(torch.equal(row, scale["samples"][0]) for row in scale["samples"])
    again = one.finish(drafts, "2", detail_seed=6)[0]["samples"]
    torch.testing.assert_close(again[0], images[1], rtol=0, atol=1e-4)
    plain = one.finish(drafts, "2", variations=2)[0]["samples"]
    torch.testing.assert_close(plain[:1], own, rtol=0, atol=1e-4)


def test_scales_are_all_steps_at_their_sizes(one):
    drafts, _, _ = one.drafts(count=2)
    finished, scales = one.finish(drafts, "all")
    sides = [(12, 16), (16, 20), (18, 24), (24, 32)]
    assert [tuple(s["samples"].shape[-2:]) for s in scales] == sides
    assert torch.equal(scales[0]["samples"], drafts["samples"])
    assert torch.equal(scales[-1]["samples"], finished["samples"])


def test_inpainting_drafts_keep_what_is_masked(one):
    picture = torch.randn(1, 16, 24, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 192, 256)
    mask[..., 128:] = 1
    one.empty = {"samples": picture, "noise_mask": mask}
    drafts, _, _ = one.drafts(count=1)
    done = one.finish(drafts, "1")[0]["samples"]
    node = one.pack["SwDSample"]
    inputs = {"seed": SEED, "cfg": 1.0, "upscale_method": "bicubic", "latent_image": one.empty}
    straight = node.execute(model=one.model, positive=one.cond, schedule=one.schedule, **inputs)
    assert torch.equal(done, straight.args[0]["samples"])
    torch.testing.assert_close(done[..., :12], picture[..., :12], rtol=0, atol=1e-4)


def test_the_host_s_own_latent_nodes_may_choose(one):
    import nodes

    drafts, _, _ = one.drafts(count=4)
    (some,) = nodes.LatentFromBatch().frombatch(drafts, 2, 1)
    assert torch.equal(one.finish(some, "all")[0]["samples"], one.finish(drafts, "3")[0]["samples"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "1 to 256"),
        ({"count": 10_000}, "1 to 256"),
        ({"stop_after": 4}, "step 1 to 3"),
        ({"latent_image": {"samples": torch.zeros(2, 4, 24, 32)}}, "batch size to 1"),
        ({"cfg": 3.0}, "negative"),
    ],
)
def test_bad_drafts(one, options, says):
    calls = []
    one.model = counting(one.model, calls)
    with pytest.raises(ValueError, match=says):
        one.drafts(**options)
    assert not calls


@pytest.mark.parametrize(
    ("pick", "options", "says"),
    [
        ("6", {}, "1 to 5"),
        ("4-2", {}, "type 2-4"),
        ("two", {}, "'two'"),
        ("1", {"stop_after": 1}, "step 2 to 3"),
        ("all", {"variations": 64}, "320"),
    ],
)
def test_bad_picks(one, pick, options, says):
    drafts, _, _ = one.drafts()
    calls = []
    one.model = counting(one.model, calls)
    with pytest.raises(ValueError, match=says):
        one.finish(drafts, pick, **options)
    assert not calls


def test_drafts_of_another_model_and_no_drafts(one, models):
    drafts, _, _ = one.drafts()
    whole, one.model = one.model, models["flux"]
    with pytest.raises(ValueError, match="sd35-medium.*flux"):
        one.finish(drafts, "1")
    one.model = whole
    with pytest.raises(ValueError, match="not a draft"):
        one.finish({"samples": drafts["samples"]}, "1")
    with pytest.raises(ValueError, match="changed on the way"):
        one.finish({**drafts, "samples": drafts["samples"] * 2}, "1")
    with pytest.raises(ValueError, match="A mask was set on these drafts"):
        one.finish({**drafts, "noise_mask": torch.ones(1, 1, 192, 256)}, "1")


def test_drafts_of_a_video_in_a_file_that_says_otherwise(one):
    """A file can hold anything: it is refused by its form, not by an error inside the model."""
    drafts, _, _ = one.drafts()
    known = drafts["swd_drafts"]
    scales = tuple(x0[:, :, None] for x0 in known.scales)
    made = replace(known, scales=scales, samples=known.samples[:, :, None])
    with pytest.raises(ValueError, match="is of videos, and this model makes pictures"):
        one.finish({"samples": made.samples, "swd_drafts": made}, "1")


def test_scale_strip(pack):
    shades = [torch.full((2, side, 2 * side, 3), side / 100) for side in (10, 20)]
    strip, frames = pack["SwDScaleStrip"].execute(images=shades, gap=[4]).args
    assert strip.shape == (2, 28, 20 + 40 + 12, 3)
    assert (strip[:, 14:24, 4:24] == 0.1).all() and (strip[:, 4:24, 28:68] == 0.2).all()
    assert frames.shape == (4, 20, 40, 3)
    assert [round(float(f.mean()), 3) for f in frames] == [0.1, 0.2, 0.1, 0.2]
    with pytest.raises(ValueError, match="2, 1 images"):
        pack["SwDScaleStrip"].execute(images=[shades[0], shades[1][:1]], gap=[4])


def test_a_click_outlives_the_file_and_the_host_s_own_choice_does_not(one, pack):
    drafts, _, _ = one.drafts(count=4)
    [cells] = hosted(
        pack["SwDDrafts"],
        model=one.model, positive=one.cond, schedule=one.schedule, latent_image=one.empty,
        seed=SEED, count=4, stop_after=1, batch=16, cfg=1.0, upscale_method="bicubic",
    ).ui["swd_sheet"]  # fmt: skip
    [file] = pack["SwDSaveDrafts"].execute(drafts=drafts, filename_prefix="x").ui["swd_files"]
    loaded = (
        pack["SwDLoadDrafts"].execute(file=f"{file['filename']} [output]", vae=FlatVAE()).args[0]
    )
    clicked = f"3 @{cells['sheet']}"
    expected = one.finish(drafts, clicked)[0]["samples"]
    assert torch.equal(one.finish(loaded, clicked)[0]["samples"], expected)
    changed, _, _ = one.drafts(count=4, seed=SEED + 1)
    with pytest.raises(ValueError, match="another sheet.*Click"):
        one.finish(changed, clicked)


def test_the_page_gets_each_draft_at_its_own_size(one, pack, folders):
    """What it looks at closely: the pixels of `images`, who they are and what they cost."""
    import folder_paths

    shown = hosted(
        pack["SwDDrafts"],
        model=one.model, positive=one.cond, schedule=one.schedule, latent_image=one.empty,
        seed=SEED, count=3, stop_after=1, batch=16, cfg=1.0, upscale_method="bicubic",
        vae=FlatVAE(),
    )  # fmt: skip
    [cells], images = shown.ui["swd_sheet"], shown.args[1]
    assert cells["size"] == [images.shape[2], images.shape[1]]
    assert cells["labels"] == [f"seed {SEED}"] * 3
    for file, pixels in zip(cells["drafts"], images, strict=True):
        path = Path(folder_paths.get_directory_by_type(file["type"])) / file["filename"]
        drawn = torch.from_numpy(np.array(Image.open(path).convert("RGB"))) / 255
        torch.testing.assert_close(drawn, pixels.cpu().float(), rtol=0, atol=1.01 / 255)
    sides = [(12, 16), (16, 20), (18, 24), (24, 32)]
    assert cells["share"] == pytest.approx(12 * 16 / sum(h * w for h, w in sides))
