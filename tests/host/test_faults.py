"""Faults in the middle of a run: what is said, what is left, and that the next run is whole."""

import gc
import math
import weakref

import pytest
import torch
from chain import FAMILIES, SIZE, cfg_guider, scalewise, sizes_of
from paper import PRESETS, SEED, guided, run_node, schedule_of


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


def broken_model(model, step, act):
    """A clone whose model call of one step does something else; counts its calls."""
    calls = []

    def wrapper(apply_model, call):
        calls.append(call["input"].shape)
        if len(calls) == step:
            return act(apply_model, call)
        return apply_model(call["input"], call["timestep"], **call["c"])

    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    return wrapped, calls


def run_both(pack, preset, model, cond):
    """The two ways of sampling, as functions."""
    latent = {"samples": torch.zeros(1, 4, *SIZE)}
    return (
        lambda: run_node(pack, model, preset, latent, cond),
        lambda: scalewise(pack, preset, cfg_guider(model, cond), latent=latent),
    )


@pytest.mark.parametrize("way", [0, 1], ids=["SwDSample", "SamplerCustomAdvanced"])
@pytest.mark.parametrize("family", FAMILIES)
def test_out_of_memory_leaves_nothing_behind(pack, small, models, family, way):
    preset, cond = FAMILIES[family], guided(small, family)
    whole = run_both(pack, preset, models[family], cond)[way]()
    kept = []

    def out_of_memory(apply_model, call):
        for value in (call["input"], *(v for v in call["c"].values() if torch.is_tensor(v))):
            kept.append(weakref.ref(value))
        kept.append(weakref.ref(apply_model(call["input"], call["timestep"], **call["c"])))
        raise torch.cuda.OutOfMemoryError("Allocation on device")

    model, calls = broken_model(models[family], 3, out_of_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_both(pack, preset, model, cond)[way]()
    gc.collect()
    assert len(calls) == 3 and len(kept) > 2
    assert not [
        ref for ref in kept if ref() is not None and ref().shape[0] == 1 and ref().ndim == 4
    ]
    assert torch.equal(run_both(pack, preset, model, cond)[way](), whole), "the host is usable"


@pytest.mark.parametrize("way", [0, 1], ids=["SwDSample", "SamplerCustomAdvanced"])
@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_nan_names_step_scale_and_sigma(pack, small, models, family, value, step, way):
    preset, cond = FAMILIES[family], guided(small, family)

    def bad(apply_model, call):
        out = apply_model(call["input"], call["timestep"], **call["c"])
        out[..., 3, 5] = value
        return out

    model, _ = broken_model(models[family], step, bad)
    _, sigmas = schedule_of(pack, model, preset)
    rows, columns = sizes_of(small, preset)[step - 1]
    with pytest.raises(RuntimeError) as error:
        run_both(pack, preset, model, cond)[way]()
    said = str(error.value)
    assert f"step {step} of 4" in said and f"sigma {float(sigmas[step - 1]):.4f}" in said
    assert (
        f"scale {max(rows / SIZE[0], columns / SIZE[1]):g}" in said and f"{columns}x{rows}" in said
    )
    assert run_both(pack, preset, model, cond)[way]().isfinite().all(), "the next run is whole"


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupt_stops_at_the_step(pack, small, models, family, step):
    import comfy.model_management

    preset, cond = FAMILIES[family], guided(small, family)
    whole = run_both(pack, preset, models[family], cond)[1]()

    def interrupt(apply_model, call):
        comfy.model_management.interrupt_current_processing()
        return torch.zeros_like(call["input"])

    model, calls = broken_model(models[family], step, interrupt)
    if step < 4:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run_both(pack, preset, model, cond)[1]()
        assert len(calls) == step
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(run_both(pack, preset, models[family], cond)[1](), whole)


SIGMAS = {
    "rising": ([0.5, 0.9, 0.0], "must fall"),
    "standing still": ([0.9, 0.9, 0.0], "must fall"),
    "negative": ([0.9, -0.1], "must fall"),
    "not a number": ([1.0, math.nan, 0.0], "must fall"),
    "of SDXL": ([14.6, 5.1, 2.2, 0.0], "above this model's largest"),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_wrong_sigmas_are_refused_before_the_first_model_call(pack, small, models, name):
    values, says = SIGMAS[name]
    model, calls = broken_model(models["flux"], 0, None)
    with pytest.raises(ValueError, match=says):
        scalewise(
            pack, "flux-4", cfg_guider(model, guided(small, "flux")), sigmas=torch.tensor(values)
        )
    assert not calls


def test_a_schedule_of_another_kind_of_model_is_refused(pack, small, models):
    """A schedule made with one model, sampled with another."""
    import comfy_extras.nodes_custom_sampler as custom
    from chain import call

    schedule, sigmas = schedule_of(pack, models["flux"], "flux-4")
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    model, calls = broken_model(models["sdxl"], 0, None)
    with pytest.raises(ValueError, match="needs timesteps"):
        call(
            custom.SamplerCustomAdvanced, call(custom.RandomNoise, SEED),
            cfg_guider(model, guided(small, "sdxl")), sampler, sigmas,
            {"samples": torch.zeros(1, 4, *SIZE)},
        )  # fmt: skip
    assert not calls


@pytest.mark.parametrize("sigmas", [[], [0.6]])
def test_no_steps_return_the_latent(pack, small, models, sigmas):
    picture = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(1))
    out = scalewise(
        pack, "flux-4", cfg_guider(models["flux"], guided(small, "flux")),
        sigmas=torch.tensor(sigmas), latent={"samples": picture},
    )  # fmt: skip
    assert torch.allclose(out, picture, atol=1e-5)


def test_the_sampler_keeps_nothing_of_a_run(pack, small, models):
    """The host caches the SAMPLER and the guider with the graph: they must not hold the tensors."""
    preset = "sd35-medium-4"
    schedule, sigmas = schedule_of(pack, models["sd35-medium"], preset)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    guider = cfg_guider(models["sd35-medium"], guided(small, "sd35-medium"))
    seen = []
    empty = torch.zeros(1, 16, *SIZE)
    guider.sample(
        empty, empty, sampler, sigmas, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: seen.extend((weakref.ref(x0), weakref.ref(x))),
    )  # fmt: skip
    gc.collect()
    assert len(seen) == 8 and not [ref for ref in seen if ref() is not None]


assert set(FAMILIES.values()) <= set(PRESETS)
