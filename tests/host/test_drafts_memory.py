"""What finishing remembers, and batches that fit into a device that has little room."""

import gc
import sys
import weakref
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drafts_bench import FAMILIES, NO_CUDA_MEMORY, Bench, counting


@pytest.fixture(params=FAMILIES)
def bench(pack, small, models, request, folders):
    return Bench(pack, small, models[request.param], request.param)


@pytest.fixture
def one(pack, small, models, folders):
    """The SD3.5-like bench alone, where the family makes no difference."""
    return Bench(pack, small, models["sd35-medium"], "sd35-medium")


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


@pytest.mark.parametrize("error", ["InterruptProcessingException", "RuntimeError"])
def test_what_was_finished_before_an_interrupt_is_not_waited_for_again(one, error):
    import comfy.model_management

    drafts, _, _ = one.drafts(count=4)
    kind = getattr(comfy.model_management, error, RuntimeError)
    stop, calls = [False], []

    def run(apply_model, call):
        calls.append(call["input"].shape[0])
        if stop[0] and len(calls) == 8:  # in the third image
            raise kind("stopped")
        return apply_model(call["input"], call["timestep"], **call["c"])

    one.model = one.model.clone()
    one.model.set_model_unet_function_wrapper(run)
    stop[0] = True
    with pytest.raises(kind):
        one.finish(drafts, "all", batch=1)
    stop[0] = False
    calls.clear()
    whole = one.finish(drafts, "all", batch=1)[0]["samples"]
    assert len(calls) == 6, "two of four were there, each of which takes three steps"
    one.model = one.model.clone()
    assert torch.equal(one.finish(drafts, "all", batch=1)[0]["samples"], whole)


def test_the_same_draft_from_a_file_with_the_text_encoded_anew_is_not_finished_again(one, pack):
    """A tray is read anew whenever one more is put on it, and its prompts are encoded anew."""
    calls = []
    one.model = counting(one.model, calls)
    drafts, _, _ = one.drafts(count=3)
    done = one.finish(drafts, "2")[0]["samples"]
    [file] = pack["SwDSaveDrafts"].execute(drafts=drafts, filename_prefix="x").ui["swd_files"]
    files = sys.modules["swd_pack.swd_core.draft_files"]
    import folder_paths

    known = files.load_drafts(Path(folder_paths.get_output_directory()) / file["filename"])
    loaded = sys.modules["swd_pack.nodes.drafting"].to_latent(known)
    calls.clear()
    again = [[context.clone(), {**extra}] for context, extra in one.cond]
    assert torch.equal(one.finish(loaded, "2", positive=again)[0]["samples"], done)
    assert calls == []
    other = [[context + 1e-3, extra] for context, extra in one.cond]
    one.finish(loaded, "2", positive=other)
    assert calls == [1, 1, 1], "another text is another picture"
    held = one.finish({**loaded, "swd_drafts": replace(known, size=(32, 32))}, "2")
    assert len(calls) == 6 and held[0]["samples"].shape[-2:] == (32, 32)


def test_one_more_prompt_and_one_more_batch_draft_only_what_is_new(one):
    named = {"fox": 1.0, "dog": -1.0, "owl": 0.3}.items()  # as SwD Prompts names its lines
    conds = [[[t * scale, {**o, "swd_prompt": name}] for t, o in one.cond] for name, scale in named]
    calls = []
    one.model = counting(one.model, calls)

    def drafted(several, **options):
        return one.drafts(positive=several, several=["positive"], batch=4, **options)[0]["samples"]

    first = drafted(conds[:2], count=4)
    assert calls == [4, 4]
    again = drafted([conds[0], conds[2], conds[1]], count=4)
    assert calls == [4, 4, 4], "the fox and the dog were there"
    assert torch.equal(again[:4], first[:4]) and torch.equal(again[8:], first[4:])
    more = drafted([conds[0]], count=6)
    assert calls == [4, 4, 4, 2] and torch.equal(more[:4], first[:4])
    # Another batch rounds otherwise, so that those four are no part of it.
    drafted([conds[0]], count=3)
    assert calls[4:] == [3]
    for changed in (
        {"seed": 1},
        {"latent_image": {"samples": torch.zeros(1, 4, 32, 32)}},
        {"stop_after": 2},
        {"upscale_method": "bilinear", "stop_after": 2},
    ):
        calls.clear()
        drafted([conds[0]], **{"count": 4, **changed})
        assert calls and set(calls) == {4}, changed


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
    lately = sys.modules["swd_pack.nodes.lately"]
    monkeypatch.setattr(lately, "MOST_BYTES", 300_000)
    monkeypatch.setattr(lately.LATELY, "rows", OrderedDict())
    calls = []
    one.model = counting(one.model, calls)
    drafts, _, _ = one.drafts(count=8)
    whole = one.finish(drafts, "all", batch=8)[0]["samples"]
    kept = [t for row in lately.LATELY.rows.values() for t in (*row.scales, row.samples)]
    size = sum(t.numel() * t.element_size() for t in kept)
    assert 0 < size <= 300_000 and 0 < len(lately.LATELY.rows) < 8
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
