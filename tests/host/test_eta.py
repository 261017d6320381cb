"""Predicted noise mixed in where the size stays, on the real host."""

import importlib
import math

import pytest
import torch
from drafts_bench import FAMILIES, SEED, Bench
from test_drafts import FlatVAE

SIZES = "0.5 0.75 0.75 1 1"
LEVELS = {"sdxl": "999 800 700 600 400", "": "1 0.9 0.8 0.7 0.6"}
ETA = 0.6


@pytest.fixture(params=FAMILIES)
def bench(pack, small, models, request, folders):
    bench = Bench(pack, small, models[request.param], request.param)
    bench.levels = LEVELS.get(request.param, LEVELS[""])
    bench.schedule = schedule(bench, ETA)[0]
    return bench


def schedule(bench, eta, sizes=SIZES, **more):
    lists = {"preset": "custom", "custom_sizes": sizes, "custom_sigmas": bench.levels}
    return bench.pack["SwDScaleSchedule"].execute(model=bench.model, eta=eta, **lists, **more).args


def test_each_step_is_the_formula(bench):
    """eps = eta eps_hat + sqrt(1 - eta^2) n (arXiv 2603.06136), from what the model was given."""
    core = importlib.import_module("swd_pack.swd_core.noise")
    seen = []

    def watched(apply_model, call):
        x0 = apply_model(call["input"], call["timestep"], **call["c"])
        seen.append((call["input"].clone(), float(call["timestep"][0]), x0.clone()))
        return x0

    plain, bench.model = bench.model, bench.model.clone()
    bench.model.set_model_unet_function_wrapper(watched)
    bench.straight((2,))
    bench.model = plain
    flow = float(seen[0][1]) <= 1
    assert len(seen) == 5
    for step, ((x_t, sigma, x0), (after, new, _)) in enumerate(zip(seen, seen[1:], strict=False)):
        keep, kept = (1 - sigma, 1 - new) if flow else (1, 1)
        eps = core.draw_noise(SEED, (2,), step + 1, after.shape[1:]).to(x0)
        if x0.shape == after.shape:
            eps = ETA * (x_t - keep * x0) / sigma + math.sqrt(1 - ETA**2) * eps
        else:
            x0 = torch.nn.functional.interpolate(x0, after.shape[-2:], mode="bicubic")
        torch.testing.assert_close(after, kept * x0 + new * eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_draft_of_yesterday_is_finished_to_the_same_bits(bench, stop_after):
    whole = bench.straight((0, 1))
    drafts, _, _ = bench.drafts(count=2, stop_after=stop_after)
    assert torch.equal(bench.finish(drafts, "all")[0]["samples"], whole)
    save, load = bench.pack["SwDSaveDrafts"], bench.pack["SwDLoadDrafts"]
    [file] = save.execute(drafts=drafts, filename_prefix="drafts/eta").ui["swd_files"]
    loaded = load.execute(file=f"drafts/{file['filename']} [output]", vae=FlatVAE()).args[0]
    assert torch.equal(bench.finish(loaded, "all")[0]["samples"], whole)


def test_of_zero_the_bits_are_as_ever(bench):
    with_eta = bench.straight((0,))
    lists = {"preset": "custom", "custom_sizes": SIZES, "custom_sigmas": bench.levels}
    node = bench.pack["SwDScaleSchedule"]
    bench.schedule = node.execute(model=bench.model, **lists).args[0]
    without = bench.straight((0,))
    bench.schedule = schedule(bench, 0.0)[0]
    assert torch.equal(bench.straight((0,)), without)
    assert not torch.equal(with_eta, without)


def test_the_table_says_which_steps_it_means(bench):
    latent = {"latent_image": bench.empty}
    said = schedule(bench, ETA, **latent)[2].splitlines()[-1]
    assert said == "eta 0.6 at step 3, 5, whose size stays"
    growing = schedule(bench, ETA, "0.25 0.5 0.625 0.75 1", **latent)
    assert "eta 0.6 changes nothing here: every step grows" in growing[2]
    assert "eta" not in schedule(bench, 0.0, **latent)[2]
