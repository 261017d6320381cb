"""Which noise levels a growing run asks the model at, and what compares them by itself."""

import re

import pytest
import torch
from chain import call, cfg_guider
from grown import growth, own_level, sample, sampler_of
from paper import guided, relative

SIZE = (32, 24)


def calls_of(model):
    """A clone that writes down the level of each call, beside its list."""
    seen, clone = [], model.clone()

    def watch(apply, args):
        seen.append(float(args["timestep"][0]))
        return apply(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(watch)
    return clone, seen


def test_the_table_shows_what_the_model_is_asked_at(pack, small, models):
    model, seen = calls_of(models["sd35-medium"])
    latent = torch.zeros(1, 16, *SIZE)
    schedule, sigmas, table, _ = growth(pack, model, latent, steps=6)
    sample(model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"), latent)
    rows = [line.split() for line in table.splitlines() if re.match(r" +\d+ +\d+ x ", line)]
    shown = [float(row[-1]) for row in rows]
    assert len(shown) == 6 and torch.allclose(torch.tensor(shown), torch.tensor(seen), atol=2e-4)
    small_steps = schedule.stretches(*SIZE)[0].steps
    expected = [own_level(float(s), 2.0, True) for s in sigmas[:small_steps]]
    assert torch.allclose(torch.tensor(shown[:small_steps]), torch.tensor(expected), atol=2e-4)
    assert "the model's sigma" not in growth(pack, model, latent, steps=6, lift="swd")[2]


def test_skip_layer_guidance_goes_by_the_level_that_the_model_is_asked_at(pack, small, models):
    """It asks the model once more in each step whose level lies in its range."""
    base = models["sd35-medium"]
    given = {"scale": 2.0, "rescaling_scale": 0.0, "start_percent": 0.0, "end_percent": 0.5}
    patched = call(
        "comfy_extras.nodes_slg:SkipLayerGuidanceDiT", model=base, double_layers="0",
        single_layers="", **given,
    )  # fmt: skip
    model, seen = calls_of(patched)
    latent = torch.zeros(1, 16, *SIZE)
    schedule, sigmas, *_ = growth(pack, model, latent, steps=12)
    sample(model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"), latent)
    least = base.get_model_object("model_sampling").percent_to_sigma(0.5)
    levels = sorted(set(seen), reverse=True)
    assert len(levels) == 12
    assert [seen.count(level) for level in levels] == [1 + (level >= least) for level in levels]
    at_full = sum(float(sigma) >= least for sigma in sigmas)
    assert sum(level >= least for level in levels) < at_full


def test_a_schedule_for_other_latents_is_refused_before_the_model_is_asked(pack, small, models):
    """Both are flow models with 16 channels; the spectrum and the sizes were worked out for one."""
    schedule, sigmas, *_ = growth(pack, models["flux"], torch.zeros(1, 16, *SIZE))
    model, seen = calls_of(models["sd35-medium"])
    with pytest.raises(ValueError, match="Flux latents.*SD3 ones"):
        sample(
            model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"),
            torch.zeros(1, 16, *SIZE),
        )  # fmt: skip
    assert not seen


def test_the_table_says_which_sizes_rounding_makes_alike_and_that_none_is_used(pack, models):
    """From 8 to 16 cells in patches of 2 there are only five sizes."""
    latent = torch.zeros(1, 16, 16, 16)

    def table(**widgets):
        return growth(pack, models["flux"], latent, **widgets)[2]

    assert "sizes:" not in table(sizes=4)
    assert "sizes: 5 of 8; rounding makes the others alike" in table(sizes=8)
    assert "no step is run smaller" in table(custom_tolerance=0.0001)
    assert "no step" not in table() and "no step" not in table(sizes=1)


@pytest.mark.parametrize("begin", [0, 2])
def test_noise_may_come_in_the_latent(pack, small, models, begin):
    """AddNoise, and a sampler without noise after it: the picture of RandomNoise, as the host's.

    Not of a flow, whose first level leaves nothing of a latent.
    """
    nodes = "comfy_extras.nodes_custom_sampler:"
    model, cond = models["sdxl"], guided(small, "sdxl")
    latent = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(3)) * (begin > 0)
    schedule, sigmas, *_ = growth(pack, model, latent, steps=8, custom_tolerance=0.5)
    sigmas = sigmas[begin:]
    assert len(schedule.stretches(16, 24, 4, sigmas=sigmas.tolist())) == 2

    def run(noise, given):
        guider = cfg_guider(model, cond)
        sampler = sampler_of(pack, schedule)
        given = {"samples": given}
        return call(nodes + "SamplerCustomAdvanced", noise, guider, sampler, sigmas, given)

    drawn = call(nodes + "RandomNoise", 5)
    noised = call(nodes + "AddNoise", model, drawn, sigmas, {"samples": latent})["samples"]
    theirs = run(drawn, latent)["samples"]
    ours = run(call(nodes + "DisableNoise"), noised)["samples"]
    assert relative(ours, theirs) < 5e-3
