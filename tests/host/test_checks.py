"""What a link brings that a widget can't, and what doesn't fit the model: one clear sentence."""

import math

import pytest
import torch
from chain import cfg_guider, hosted, scalewise

ODD = {"INT": (-(2**70), 2**70, None), "FLOAT": (-math.inf, 1e300, math.nan, math.inf, 10**400)}
SOCKETS = {
    "LATENT": {"samples": torch.zeros(1, 16, 8, 8)},
    "IMAGE": torch.zeros(1, 64, 64, 3),
    "CONDITIONING": [[torch.zeros(1, 4, 8), {}]],
}


def linked(node) -> dict:
    """Something of the right type at every input."""
    schema = node.GET_SCHEMA()
    sockets = {entry.id: SOCKETS.get(entry.io_type, object()) for entry in schema.inputs}
    widgets = {e.id: e.default for e in schema.inputs if getattr(e, "default", None) is not None}
    menus = {entry.id: "a file" for entry in schema.inputs if entry.io_type == "COMBO"}
    given = sockets | menus | widgets
    return {key: [value] for key, value in given.items()} if schema.is_input_list else given


def test_every_number_by_a_link_is_held_to_the_schema(pack):
    tried = 0
    for node in pack.values():
        schema = node.GET_SCHEMA()
        for entry in (entry for entry in schema.inputs if entry.io_type in ODD):
            for value in ODD[entry.io_type]:
                given = [value] if schema.is_input_list else value
                with pytest.raises(ValueError, match=rf"\b{entry.id}\b") as error:
                    node.execute(**linked(node) | {entry.id: given})
                said = str(error.value)
                assert value is None or f"{entry.min} to {entry.max}" in said
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("value", ["7", 2.5, torch.tensor(1), [1]])
def test_what_is_no_whole_number_is_refused(pack, value):
    node = pack["SwDDrafts"]
    with pytest.raises(ValueError, match=r"^count is .*no number"):
        node.execute(**linked(node) | {"count": [value]})


def test_every_socket_refuses_nothing_unless_it_is_optional(pack):
    for node in pack.values():
        schema = node.GET_SCHEMA()
        for entry in schema.inputs:
            if not entry.optional and not hasattr(entry, "default"):
                nothing = [None] if schema.is_input_list else None
                with pytest.raises(ValueError, match=f"Nothing comes in at {entry.id}:"):
                    node.execute(**linked(node) | {entry.id: nothing})


@pytest.mark.parametrize("empty", ["images", "gap"])
def test_an_empty_list_is_refused(pack, empty):
    node = pack["SwDScaleStrip"]
    with pytest.raises(ValueError, match=rf"\b{empty}\b"):
        node.execute(**linked(node) | {empty: []})


def test_menus_by_a_link(pack):
    with pytest.raises(ValueError, match="upscale_method is 'cubic'; choose one of bicubic, "):
        pack["SwDSampler"].execute(schedule=object(), upscale_method="cubic")


@pytest.fixture(scope="module")
def flux(small):
    """The small FLUX.1, which counts its calls."""
    calls = []

    def counted(apply_model, call):
        calls.append(call["input"].shape)
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = small.host_model("flux")
    model.set_model_unet_function_wrapper(counted)
    return model, calls


def latent(*shape: int, **more) -> dict:
    return {"samples": torch.ones(shape), **more}


def drafts(pack, model, **inputs):
    schedule = pack["SwDScaleSchedule"].execute(
        model=model, preset="flux-4", custom_sizes="", custom_sigmas=""
    ).args[0]  # fmt: skip
    given = {
        "latent_image": SOCKETS["LATENT"], "seed": 0, "count": 4, "stop_after": 1, "batch": 4,
        "cfg": 1.0, "upscale_method": "bicubic",
    }  # fmt: skip
    return hosted(pack["SwDDrafts"], model=model, schedule=schedule, **given | inputs).args[0]


LATENTS = {
    "a video": (latent(1, 16, 2, 8, 8), "is of videos, and this model makes pictures"),
    "an empty video": ({"samples": torch.zeros(1, 4, 2, 8, 8)}, "is of videos, and this model"),
    "audio": (latent(1, 16, 64), "3 dimensions .*audio"),
    "audio like a picture": (latent(1, 16, 8, 8, type="audio"), "audio .*not supported"),
    "no pictures": (latent(0, 16, 8, 8), "is empty: it has no images"),
    "a mask of nothing": (latent(1, 16, 8, 8, noise_mask=torch.ones(1, 0, 0)), "noise mask .*size"),
    "other numbers": (latent(1, 16, 8, 8, batch_index=[1, 2]), r"batch_index is \[1, 2\].* 1 im"),
}
TEXTS = {
    "of SD3.5": ("sd35-medium", {}, "reads pooled text that is 768 wide.* is 48 wide"),
    "of SDXL": ("sdxl", {}, "reads text that is 64 wide.* is 2048 wide"),
    "beside the picture": ("flux", {"area": (4, 4, 0, 8)}, r"begins at \(0, 8\) of .*\(8, 8\)"),
    "in a video": ("flux", {"area": (1, 4, 4, 0, 0, 0)}, "area of a video where a picture"),
    "with three masks": ("flux", {"mask": torch.ones(3, 64, 64)}, r"mask of \(3, 64, 64\)"),
    "with a reference of SDXL": (
        "flux", {"reference_latents": [torch.ones(1, 4, 8, 8)]}, r"reference latent of \(1, 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LATENTS)
def test_latents_that_do_not_fit_are_refused_before_the_model_runs(pack, small, flux, name):
    (model, calls), (given, says) = flux, LATENTS[name]
    calls.clear()
    with pytest.raises(ValueError, match=says):
        drafts(pack, model, positive=small.conditioning("flux"), latent_image=given)
    assert not calls


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_do_not_fit_are_refused_before_the_model_runs(pack, small, flux, name):
    (model, calls), (family, more, says) = flux, TEXTS[name]
    calls.clear()
    with pytest.raises(ValueError, match=says):
        drafts(pack, model, positive=small.conditioning(family, **more))
    assert not calls


def test_a_video_is_refused_by_the_sampler_too(pack, small, flux):
    model, calls = flux
    calls.clear()
    guider = cfg_guider(model, small.conditioning("flux"))
    with pytest.raises(ValueError, match="is of videos, and this model makes pictures"):
        scalewise(pack, "flux-4", guider, latent=latent(1, 16, 2, 32, 48))
    assert not calls


def test_a_vae_of_another_model_is_refused_before_the_drafts_run(pack, small, flux):
    import comfy.sd
    import comfy.taesd.taesd

    model, calls = flux
    calls.clear()
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    with pytest.raises(ValueError, match="VAE decodes 4 channels, and these latents have 16"):
        drafts(pack, model, positive=small.conditioning("flux"), vae=vae)
    assert not calls
