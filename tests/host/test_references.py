"""Reference latents mean the same place of the picture at every scale.

The truth is the host's own run at each scale (chain.py).
"""

import pytest
import torch
from chain import SIZE, at_size, call, cfg_guider
from growing_models import text as hidream_text
from grown import growth, sample, sampler_of
from paper import guided, relative


def referring(cond, pictures, size=SIZE, method=None):
    """ReferenceLatent of pictures (1, 16, H, W), shrunk as a picture of SIZE to `size` is."""
    for picture in pictures:
        sides = (
            max(1, round(side * small / full / 2)) * 2
            for side, small, full in zip(picture.shape[-2:], size, SIZE, strict=True)
        )
        latent = {"samples": at_size(picture.float(), tuple(sides)).to(picture.dtype)}
        cond = call("comfy_extras.nodes_edit_model:ReferenceLatent", cond, latent)
    node = "comfy_extras.nodes_flux:FluxKontextMultiReferenceLatentMethod"
    return cond if method is None else call(node, cond, method)


def picture(rows, columns, seed=5):
    return torch.randn(1, 16, rows, columns, generator=torch.Generator().manual_seed(seed))


REFERENCES = {
    "of the picture's size": [picture(*SIZE)],
    "of another size": [picture(20, 28)],
    "two": [picture(*SIZE), picture(20, 28, 6)],
    "in half precision": [picture(*SIZE).half()],  # the host's --fp16-intermediates
}


@pytest.mark.parametrize("method", [None, "offset", "index"])
@pytest.mark.parametrize("pictures", REFERENCES)
def test_reference_latents(compare, small, models, pictures, method):
    """Their cells have the positions of the picture's own: where it shrinks, they do too."""
    cond, pictures = guided(small, "flux"), REFERENCES[pictures]

    def guider_at(step, size):
        return cfg_guider(models["flux"], referring(cond, pictures, size, method))

    ours = compare("flux", guider_at)
    plain = compare("flux", lambda step, size: cfg_guider(models["flux"], cond))
    assert relative(ours, plain) > 0.01, "the reference does something"


def test_references_beside_the_picture_keep_their_size(compare, small, models):
    """UNO's lie outside of the picture and mean no place in it."""
    cond = referring(guided(small, "flux"), [picture(20, 28)], method="uxo/uno")
    compare("flux", lambda step, size: cfg_guider(models["flux"], cond))


EDITING = {
    "flux": lambda small, models: (models["flux"], guided(small, "flux")),
    "flux2": lambda small, models: (small.flux2_model(), plain_text(48)),
    "qwen": lambda small, models: (small.qwen_model(), plain_text(48)),
}


def plain_text(width):
    return [[torch.randn(1, 7, width, generator=torch.Generator().manual_seed(1)), {}]]


@pytest.mark.parametrize("kind", EDITING)
def test_a_reference_has_the_picture_s_positions_at_every_size(pack, small, models, kind):
    """What the host's models work out of the sizes: rows and columns by token, beside an index."""
    import comfy.supported_models

    if kind == "flux2" and not hasattr(comfy.supported_models, "Flux2"):
        pytest.skip("FLUX.2 is newer than this host")
    model, cond = EDITING[kind](small, models)
    latent_format = model.get_model_object("latent_format")
    frame = (1,) if latent_format.latent_dimensions == 3 else ()
    size = (1, latent_format.latent_channels, *frame, *SIZE)
    latent = torch.randn(size, generator=torch.Generator().manual_seed(2))
    referring = call("comfy_extras.nodes_edit_model:ReferenceLatent", cond, {"samples": latent})
    seen = []
    net = model.model.diffusion_model
    handle = net.pe_embedder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    schedule = pack["SwDScaleSchedule"].execute(
        model=model, preset="custom", custom_sizes="0.25 0.5 0.75 1", custom_sigmas="1 0.8 0.6 0.4"
    ).args[0]  # fmt: skip
    try:
        out = pack["SwDSample"].execute(
            model=model, positive=referring, latent_image={"samples": torch.zeros(size)},
            schedule=schedule, seed=1, cfg=1.0, upscale_method="bicubic",
        ).args[0]["samples"]  # fmt: skip
    finally:
        handle.remove()
    assert out.shape == size and out.isfinite().all() and len(seen) == 4
    patch = 1 if kind == "flux2" else 2
    for ids, share in zip(seen, (0.25, 0.5, 0.75, 1), strict=True):
        count = round(SIZE[0] * share / patch) * round(SIZE[1] * share / patch)
        ours, theirs = ids[0, -2 * count :].split(count)  # after the text
        assert torch.equal(ours[:, 1:3], theirs[:, 1:3]) and (ours[:, 0] != theirs[:, 0]).all()


def test_the_picture_that_hidream_edits_has_the_size_of_the_step(pack, small):
    """The host resizes what other models edit (InstructPixToPixConditioning), but not this one."""
    model, width = small.other_model("hidream")
    seen, spied = set(), model.clone()

    def look(apply, given):
        seen.add((tuple(given["input"].shape[-2:]), tuple(given["c"]["image_cond"].shape[-2:])))
        return apply(given["input"], given["timestep"], **given["c"])

    spied.set_model_unet_function_wrapper(look)
    cond = [
        [c, {**more, "concat_latent_image": picture(16, 24)}] for c, more in hidream_text(width)
    ]
    empty = torch.zeros(1, 16, 16, 24)
    schedule, sigmas, *_ = growth(pack, spied, empty)
    out = sample(spied, sampler_of(pack, schedule), sigmas, cond, empty)
    assert bool(out.isfinite().all())
    assert seen == {((8, 12), (8, 12)), ((16, 24), (16, 24))}
