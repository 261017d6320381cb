"""Drafts on the real host: finishing one is the straight run, bit for bit, however it got there."""

import gc
import importlib
import json
import shutil
import sys
import weakref
from collections import OrderedDict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import find, to_prompt
from PIL import Image
from test_live import Listener

ROOT = Path(__file__).resolve().parents[2]

SEED = 12345
FAMILIES = {"sd35-medium": "sd35-medium-4", "flux": "flux-4", "sdxl": "sdxl-4"}


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


class Bench:
    """The nodes around one small model, with 256 x 192 pixels as the finished size."""

    def __init__(self, pack, small, model, family):
        self.pack, self.model = pack, model
        extra = {"guidance": 4.5} if family == "flux" else {}
        self.cond = small.conditioning(family, 1, **extra)
        inputs = {"preset": FAMILIES[family], "custom_sizes": "", "custom_sigmas": ""}
        self.schedule = pack["SwDScaleSchedule"].execute(model=model, **inputs).args[0]
        self.empty = {"samples": torch.zeros(1, 4, 24, 32)}

    def drafts(self, **options):
        inputs = {
            "latent_image": self.empty, "seed": SEED, "count": 5, "stop_after": 1, "batch": 16,
            "cfg": 1.0, "upscale_method": "bicubic", **options,
        }  # fmt: skip
        inputs = {"model": self.model, "positive": self.cond, "schedule": self.schedule, **inputs}
        return self.pack["SwDDrafts"].execute(**inputs).args

    def finish(self, drafts, pick, **options):
        inputs = {
            "detail_seed": 0,
            "variations": 1,
            "stop_after": 0,
            "batch": 4,
            "cfg": 1.0,
            **options,
        }
        inputs = {"model": self.model, "positive": self.cond, **inputs}
        return self.pack["SwDFinishDrafts"].execute(drafts=drafts, pick=pick, **inputs).args

    def straight(self, indices, seed=SEED):
        latent = {
            "samples": self.empty["samples"].repeat(len(indices), 1, 1, 1),
            "batch_index": list(indices),
        }
        inputs = {"seed": seed, "cfg": 1.0, "upscale_method": "bicubic", "latent_image": latent}
        node = self.pack["SwDSample"]
        out = node.execute(model=self.model, positive=self.cond, schedule=self.schedule, **inputs)
        return out.args[0]["samples"]


@pytest.fixture
def folders(pack, tmp_path):
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    folder_paths.set_output_directory(str(tmp_path / "output"))
    folder_paths.set_input_directory(str(tmp_path / "input"))
    for name in ("temp", "output", "input"):
        (tmp_path / name).mkdir()


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


NO_CUDA_MEMORY = torch.cuda.OutOfMemoryError("Allocation on device")


def counting(model, calls, most=None, error=NO_CUDA_MEMORY):
    """The model with the batch of each call noted; more than `most` at once raises `error`."""

    def count(apply_model, call):
        calls.append(call["input"].shape[0])
        if most is not None and calls[-1] > most:
            raise error
        return apply_model(call["input"], call["timestep"], **call["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(count)
    return counted


def test_nothing_is_computed_twice(one):
    calls = []
    one.model = counting(one.model, calls)
    drafts, _, _ = one.drafts(count=5)
    assert calls == [5]
    one.finish(drafts, "2")
    assert calls == [5, 1, 1, 1]
    first = one.finish(drafts, "2,4")[0]["samples"]
    assert calls == [5] + [1] * 6, "only draft 4 was missing"
    assert torch.equal(one.finish(drafts, "4,2")[0]["samples"], first.flip(0))
    assert len(calls) == 7
    one.finish(drafts, "")
    assert len(calls) == 7


def test_finishing_keeps_no_model_alive(one):
    """What is remembered for the next pick holds neither the MODEL nor its conditioning."""
    drafts, _, _ = one.drafts(count=2)
    one.model, shared = one.model.clone(), one.cond
    one.cond = [[context.clone(), dict(extra)] for context, extra in shared]
    one.finish(drafts, "all")
    gone = [weakref.ref(one.model), weakref.ref(one.cond[0][0])]
    one.model = one.cond = None
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert set(drafts) == {"samples", "swd_drafts"}, "nothing that grows lies in cached outputs"


def test_what_is_remembered_is_bounded(one, monkeypatch):
    finished = sys.modules["swd_pack.nodes.finished"]
    monkeypatch.setattr(finished, "MOST_BYTES", 300_000)
    monkeypatch.setattr(finished.LATELY, "rows", OrderedDict())
    calls = []
    one.model = counting(one.model, calls)
    drafts, _, _ = one.drafts(count=8)
    whole = one.finish(drafts, "all", batch=8)[0]["samples"]
    kept = [t for row in finished.LATELY.rows.values() for t in row]
    size = sum(t.numel() * t.element_size() for t in kept)
    assert 0 < size <= 300_000 and 0 < len(finished.LATELY.rows) < 8
    del calls[:]
    assert torch.equal(one.finish(drafts, "8")[0]["samples"][0], whole[7]) and not calls
    again = one.finish(drafts, "all", batch=8)[0]["samples"]
    assert calls and set(calls) != {8}
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_two_finishing_nodes_don_t_make_each_other_forget(one):
    """One node per prompt, as in a graph that compares two; another model starts anew."""
    calls = []
    one.model = counting(one.model, calls)
    drafts, _, _ = one.drafts(count=2)
    other = [[context.flip(1), extra] for context, extra in one.cond]
    first = [one.finish(drafts, "1", positive=cond)[0]["samples"] for cond in (one.cond, other)]
    assert not torch.equal(*first)
    del calls[:]
    again = [one.finish(drafts, "1", positive=cond)[0]["samples"] for cond in (one.cond, other)]
    assert all(map(torch.equal, first, again)) and not calls
    one.model = one.model.clone()
    one.finish(drafts, "1")
    assert calls == [1, 1, 1]


def test_out_of_memory_halves_the_batch_and_loses_nothing(one, caplog):
    calls, expected = [], one.drafts(count=7)[0]["samples"]
    one.model = counting(one.model, calls, most=2)
    with caplog.at_level("WARNING"):
        drafts, _, _ = one.drafts(count=7, batch=8)
    assert calls == [7, 3, 1, 1, 1, 1, 1, 1, 1] and "going on with 3" in caplog.text
    torch.testing.assert_close(drafts["samples"], expected, rtol=0, atol=1e-4)


# What torch raises on its devices where there is no room.
NO_ROOM = [
    NO_CUDA_MEMORY,
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.87 GB, max allowed: 18.13 GB)."),
    RuntimeError("Invalid buffer size: 18.00 GB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate "
                 "memory: you tried to allocate 68719476736 bytes. Error code 12"),
    RuntimeError("Could not allocate tensor with 2147483648 bytes. There is not enough GPU video "
                 "memory available!"),
    MemoryError(),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_ROOM, ids=lambda e: f"{type(e).__name__} {e}"[:40])
def test_every_device_s_out_of_memory_halves_the_batch(one, error):
    calls = []
    one.model = counting(one.model, calls, most=2, error=error)
    drafts, _, _ = one.drafts(count=4)
    assert calls == [4, 2, 2] and drafts["samples"].shape[0] == 4
    calls.clear()
    one.model = counting(one.model, calls, most=0, error=error)
    with pytest.raises(type(error)):
        one.drafts(count=2)
    assert calls == [2, 1], "one image that has no room is the device's own error"


def test_another_error_is_not_tried_again(one):
    calls = []
    one.model = counting(one.model, calls, most=0, error=RuntimeError("shapes don't match"))
    with pytest.raises(RuntimeError, match="shapes don't match"):
        one.drafts(count=4)
    assert calls == [4]


def test_memory_is_given_back_when_nothing_of_the_failed_batch_is_left(one, monkeypatch):
    import comfy.model_management

    inputs, alive = [], []

    def no_room(apply_model, call):
        if call["input"].shape[0] > 2:
            inputs.append(weakref.ref(call["input"]))
            raise torch.cuda.OutOfMemoryError("too many at once")
        return apply_model(call["input"], call["timestep"], **call["c"])

    def look(*_):
        if inputs:
            alive.append(inputs[-1]() is not None)

    one.model = one.model.clone()
    one.model.set_model_unet_function_wrapper(no_room)
    monkeypatch.setattr(comfy.model_management, "soft_empty_cache", look)
    one.drafts(count=4)
    assert alive == [False]


@pytest.fixture
def asked(monkeypatch):
    """The bytes that the host is asked to make room for, of every run: (usual, least)."""
    import comfy.model_management as management

    found, load = [], management.load_models_gpu

    def note(models, memory_required=0, *args, minimum_memory_required=None, **more):
        if minimum_memory_required is not None:  # asked by a sampling run, not by a VAE
            found.append((memory_required, minimum_memory_required))
        named = {"memory_required": memory_required, **more}
        return load(models, *args, minimum_memory_required=minimum_memory_required, **named)

    monkeypatch.setattr(management, "load_models_gpu", note)
    return found


def largest(shapes):
    return max(shapes, key=np.prod)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_the_host_makes_room_for_the_largest_step_that_runs(bench, asked, cfg):
    """As much as for a run of the host's own sampler at that size, and no more."""
    import comfy.samplers

    calls = []

    def note(apply_model, call):
        calls.append(tuple(call["input"].shape))
        return apply_model(call["input"], call["timestep"], **call["c"])

    plain, bench.model = bench.model, bench.model.clone()
    bench.model.set_model_unet_function_wrapper(note)
    more = {"cfg": cfg, "negative": bench.cond}

    def asks_what_the_host_would(images):
        [ours], shape = set(asked), list(largest(calls))
        shape[0] = images
        asked.clear(), calls.clear()
        guider = comfy.samplers.CFGGuider(plain)
        guider.set_conds(bench.cond, bench.cond)
        latent, sigmas = torch.zeros(shape), torch.tensor([1.0, 0.0])
        lcm = comfy.samplers.sampler_object("lcm")
        guider.sample(latent, latent, lcm, sigmas, disable_pbar=True, seed=0)
        assert [ours] == asked
        asked.clear()
        return shape[-2:]

    drafts, _, _ = bench.drafts(count=4, **more)
    assert asks_what_the_host_would(4) == [12, 16]
    later, _ = bench.finish(drafts, "1-3", stop_after=3, **more)
    assert asks_what_the_host_would(3) in ([18, 24], [20, 24])  # SDXL's sides are fours
    bench.finish(later, "1,2", **more)
    assert asks_what_the_host_would(2) == [24, 32]
    bench.finish(drafts, "1", batch=1, **more)
    assert asks_what_the_host_would(1) == [24, 32]
    bench.straight((0, 1))
    assert asks_what_the_host_would(2) == [24, 32]


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
    one.model = models["flux"]
    with pytest.raises(ValueError, match="sd35-medium.*flux"):
        one.finish(drafts, "1")
    with pytest.raises(ValueError, match="not a draft"):
        one.finish({"samples": drafts["samples"]}, "1")
    with pytest.raises(ValueError, match="changed on the way"):
        one.finish({**drafts, "samples": drafts["samples"] * 2}, "1")


def test_scale_strip(pack):
    shades = [torch.full((2, side, 2 * side, 3), side / 100) for side in (10, 20)]
    strip, frames = pack["SwDScaleStrip"].execute(images=shades, gap=[4]).args
    assert strip.shape == (2, 28, 20 + 40 + 12, 3)
    assert (strip[:, 14:24, 4:24] == 0.1).all() and (strip[:, 4:24, 28:68] == 0.2).all()
    assert frames.shape == (4, 20, 40, 3)
    assert [round(float(f.mean()), 3) for f in frames] == [0.1, 0.2, 0.1, 0.2]
    with pytest.raises(ValueError, match="2, 1 images"):
        pack["SwDScaleStrip"].execute(images=[shades[0], shades[1][:1]], gap=[4])


def graph_of(server, name="swd_drafts_emoji") -> dict:
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(graph, server.get("/object_info"))


def key_of(prompt: dict, class_type: str) -> str:
    [key] = [k for k, n in prompt.items() if n["class_type"] == class_type]
    return key


def saved(server, prompt: dict) -> list[np.ndarray]:
    """Runs a graph and gives the pictures that its SaveImage wrote."""
    entry = server.run(prompt)
    assert entry.get("status", {}).get("status_str") == "success", entry
    files = entry["outputs"].get(key_of(prompt, "SaveImage"), {}).get("images", [])
    paths = [server.base / "output" / f["filename"] for f in files]
    return [np.asarray(Image.open(p).convert("RGB")).astype(int) for p in paths]


def straight_picture(server, number: int, seed: int) -> np.ndarray:
    """Picture `number` of the quick start graph's seed, alone, for the prompt of the drafts."""
    prompt = graph_of(server, "swd_quickstart_emoji")
    find(prompt, "CLIPTextEncode")["text"] = find(graph_of(server), "CLIPTextEncode")["text"]
    empty = key_of(prompt, "EmptySD3LatentImage")
    find(prompt, "EmptySD3LatentImage")["batch_size"] = number
    pick = {"samples": [empty, 0], "batch_index": number - 1, "length": 1}
    prompt["99"] = {"class_type": "LatentFromBatch", "inputs": pick}
    find(prompt, "SwDSample").update(latent_image=["99", 0], seed=seed)
    return saved(server, prompt)[0]


def test_through_the_server_from_drafts_to_a_file_on_another_one(server, tmp_path_factory):
    prompt = graph_of(server)
    drafting, finishing = find(prompt, "SwDDrafts"), find(prompt, "SwDFinishDrafts")
    drafting["seed"] = 4321
    prompt["98"] = {
        "class_type": "SwDSaveDrafts",
        "inputs": {"drafts": [key_of(prompt, "SwDDrafts"), 0], "filename_prefix": "drafts/x"},
    }
    assert saved(server, prompt) == [], "nothing is picked"
    finishing["pick"] = "5"
    [fifth] = saved(server, prompt)
    assert np.abs(fifth - straight_picture(server, 5, 4321)).max() <= 1
    assert fifth.std() > 20, "not an empty picture"

    base = tmp_path_factory.mktemp("another_machine")
    (base / "input").mkdir()
    [file] = (server.base / "output" / "drafts").glob("x_*")
    shutil.copy(file, base / "input" / file.name)
    other = type(server)(base)
    try:
        del prompt["98"]
        prompt[key_of(prompt, "SwDDrafts")] = {
            "class_type": "SwDLoadDrafts",
            "inputs": {"file": file.name, "vae": [key_of(prompt, "SwDEmojiStudent"), 2]},
        }
        [again] = saved(other, prompt)
    finally:
        other.stop()
    assert np.array_equal(again, fifth)


def test_a_click_on_one_sheet_finishes_nothing_of_another(server):
    """As the page posts it where the seed has rolled on since, and by the API."""
    prompt = graph_of(server)
    drafting, finishing = find(prompt, "SwDDrafts"), find(prompt, "SwDFinishDrafts")
    drafting["seed"] = 5551
    entry = server.run(prompt)
    [cells] = entry["outputs"][key_of(prompt, "SwDDrafts")]["swd_sheet"]
    assert cells["seed"] == 5551
    finishing["pick"] = f"2,5 @{cells['sheet']}"
    second, fifth = saved(server, prompt)
    drafting["seed"] = 5552
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error" and "another sheet" in json.dumps(entry)
    assert key_of(prompt, "SaveImage") not in entry["outputs"]
    drafting["seed"] = 5551
    again = saved(server, prompt)
    assert all(np.array_equal(a, b) for a, b in zip(again, (second, fifth), strict=True))


def test_a_click_outlives_the_file_and_the_host_s_own_choice_does_not(one, pack):
    drafts, _, _ = one.drafts(count=4)
    [cells] = pack["SwDDrafts"].execute(
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


def test_after_an_interrupt(server):
    prompt = graph_of(server)
    find(prompt, "SwDDrafts")["seed"] = 987
    find(prompt, "EmptySD3LatentImage").update(width=512, height=512)
    find(prompt, "SwDFinishDrafts").update(pick="all", batch=2)
    listener = Listener(server)
    listener.on_progress = lambda value: value >= 4 and server.post("/interrupt", {})
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_interrupted"
    find(prompt, "SwDFinishDrafts")["pick"] = "2"
    after = saved(server, prompt)[0]
    find(prompt, "SwDDrafts")["seed"] = 988
    saved(server, prompt)
    find(prompt, "SwDDrafts")["seed"] = 987
    assert np.abs(saved(server, prompt)[0] - after).max() <= 1


@pytest.mark.parametrize(
    ("node", "values", "says"),
    [
        ("SwDDrafts", {"count": 10_000}, "256"),
        ("SwDDrafts", {"count": 0}, "smaller than min of 1"),
        ("SwDFinishDrafts", {"pick": "17"}, "drafts 1 to 16"),
        ("SwDFinishDrafts", {"pick": "3-1"}, "type 1-3"),
    ],
)
def test_bad_input_through_the_server(server, node, values, says):
    prompt = graph_of(server)
    find(prompt, node).update(values)
    assert says in json.dumps(server.run(prompt))
