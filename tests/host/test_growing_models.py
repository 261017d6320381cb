"""Growing with the host's own classes of the models that people run, small and random.

SD3.5, FLUX.1 and SDXL are in test_growing.py. Where ComfyUI 0.3.64 has no class the test says so.
"""

import pytest
import torch
from chain import call, hosted
from growing_models import MODELS, SIZES, empty, make, text
from grown import growth, host_noise, sample, sampler_of
from paper import SEED

ELSEWHERE = ("sd35-medium", "flux", "sdxl")


@pytest.fixture(scope="module", params=[name for name in MODELS if name not in ELSEWHERE])
def one(request, pack, small):
    found = make(request.param)
    if found is None:
        pytest.skip(f"this ComfyUI has no class for {request.param}")
    return found


def watched(model):
    """A clone of the MODEL that writes down the latent size of each call."""
    seen, clone = [], model.clone()

    def watch(apply, args):
        seen.append(tuple(args["input"].shape[-2:]))
        return apply(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(watch)
    return clone, seen


@pytest.mark.parametrize("size", SIZES)
def test_it_begins_small_and_ends_at_the_latents_size(pack, one, size):
    model, width = one
    model, seen = watched(model)
    latent = empty(model, size, batch=2)
    schedule, _, table, _ = growth(pack, model, latent, steps=4, scheduler="auto")
    with torch.inference_mode():
        out = pack["SwDSample"].execute(
            model=model, positive=text(width), negative=text(width, 2), schedule=schedule,
            latent_image={"samples": latent}, seed=SEED, cfg=2.5, upscale_method="bicubic",
        ).args[0]["samples"]  # fmt: skip
    assert out.shape == latent.shape and torch.isfinite(out).all() and out.std() > 0.01
    assert seen[-1] == size and seen[0][0] < size[0] and seen[0][1] < size[1]
    assert sorted(seen) == seen, "it only grows"
    assert f"{len(schedule.sigmas)} steps" in table


def test_one_size_is_the_hosts_own_sampler(pack, one):
    import comfy.samplers

    model, width = one
    latent = empty(model, SIZES[1])
    schedule, sigmas, *_ = growth(
        pack, model, latent, sizes=1, steps=3, sampler_name="res_multistep", scheduler="auto"
    )
    noise = host_noise(latent.shape[1], latent.shape[2:])
    ours, theirs = (
        sample(model, sampler, sigmas, text(width), latent, noise=noise)
        for sampler in (
            sampler_of(pack, schedule),
            comfy.samplers.sampler_object("res_multistep"),
        )  # fmt: skip
    )
    assert torch.equal(ours, theirs)


def test_drafts_are_finished_to_the_same_bits(pack, one):
    model, width = one
    latent = empty(model, SIZES[0])
    schedule = growth(pack, model, latent, steps=4, scheduler="auto")[0]
    shared = {"model": model, "positive": text(width), "cfg": 1.0}
    with torch.inference_mode():
        drafts = hosted(
            pack["SwDDrafts"],
            **shared, latent_image={"samples": latent}, schedule=schedule, seed=SEED, count=2,
            stop_after=1, batch=1, upscale_method="bicubic",
        ).args[0]  # fmt: skip
        finished = hosted(
            pack["SwDFinishDrafts"],
            **shared,
            drafts=drafts,
            pick="2",
            detail_seed=0,
            variations=1,
            stop_after=0,
            batch=1,
        ).args[0]["samples"]
        straight = pack["SwDSample"].execute(
            **shared, latent_image={"samples": latent, "batch_index": [1]}, schedule=schedule,
            seed=SEED, upscale_method="bicubic",
        ).args[0]["samples"]  # fmt: skip
    assert torch.equal(finished, straight)


def test_two_experts_share_a_run_by_cut_sigmas(pack, small):
    """Wan 2.2 14B: one expert down to a noise level, another from there, the same SAMPLER in both.

    As one model that changes at that step.
    """
    first, width = small.wan_model(), 32
    second, both, calls = first.clone(), first.clone(), []

    def other(apply, args):
        return 0.5 * apply(args["input"], args["timestep"], **args["c"])

    def changing(apply, args):
        calls.append(args["timestep"])
        return (other if len(calls) > 3 else first_way)(apply, args)

    def first_way(apply, args):
        return apply(args["input"], args["timestep"], **args["c"])

    second.set_model_unet_function_wrapper(other)
    both.set_model_unet_function_wrapper(changing)
    latent = empty(first, SIZES[0])
    schedule, sigmas, *_ = growth(pack, first, latent, steps=5)
    ours = sampler_of(pack, schedule)
    high = sample(first, ours, sigmas[:4], text(width), latent)
    low = sample(
        second, ours, sigmas[3:], text(width), high, noise=torch.zeros_like(high)
    )  # fmt: skip
    whole = sample(both, ours, sigmas, text(width), latent)
    assert len(calls) == 5
    assert (low - whole).abs().max() < 1e-3 * whole.abs().max()


def test_auto_makes_the_sigmas_that_the_hosts_own_scheduler_nodes_make(pack, one):
    """FLUX.2's own rule at the finished size, and for every other model "simple"."""
    model, _ = one
    latent = empty(model, SIZES[1])
    _, sigmas, table, _ = growth(pack, model, latent, steps=7, scheduler="auto")
    if type(model.model).__name__ == "Flux2":
        height, width = (side * 16 for side in SIZES[1])
        theirs = call("comfy_extras.nodes_flux:Flux2Scheduler", 7, width, height)
    else:
        scheduler = "comfy_extras.nodes_custom_sampler:BasicScheduler"
        theirs = call(scheduler, model, "simple", 7, 1.0)
    assert torch.equal(sigmas, theirs)
    assert ("FLUX.2's own" in table) == (type(model.model).__name__ == "Flux2")
