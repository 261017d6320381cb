"""Pixels are those of the finished picture, whatever a latent cell of the model holds of them."""

import pytest
import torch

# Pixels along a side of a cell, by the host's latent formats; written by hand.
PIXELS = {
    "SD15": 8, "SDXL": 8, "SD3": 8, "Flux": 8, "Wan21": 8, "SC_B": 4, "SC_Prior": 42, "Mochi": 8,
    "LTXV": 32, "Wan22": 16, "HunyuanImage21": 32, "ChromaRadiance": 1, "Flux2": 16,
    "HunyuanVideo15": 16,
}  # fmt: skip


@pytest.fixture(params=PIXELS)
def other(request, models):
    """A model with another latent format, and the pixels of its cells."""
    import comfy.latent_formats

    made = getattr(comfy.latent_formats, request.param, None)
    if made is None:
        pytest.skip(f"{request.param} is newer than this host")
    model = models["flux"].clone()
    model.add_object_patch("latent_format", made())
    return model, PIXELS[request.param]


def latent_for(model, rows: int, columns: int) -> dict:
    latent_format = model.get_model_object("latent_format")
    video = (2,) if latent_format.latent_dimensions == 3 else ()
    return {"samples": torch.ones(1, latent_format.latent_channels, *video, rows, columns)}


def enlarge(pack, latent, **widgets):
    given = {"upscale_method": "bicubic", "scale_by": 1.5, "width": 0, "height": 0}
    given |= {"noise_sigma": 0.0, "seed": 7, **widgets}
    out = pack["SwDLatentUpscale"].execute(samples=latent, **given).args[0]
    return tuple(out["samples"].shape[-2:])


def schedule(pack, model, **widgets):
    given = {"preset": "custom", "custom_sizes": "0.5 1", "custom_sigmas": "1 0.6", **widgets}
    return pack["SwDScaleSchedule"].execute(model=model, **given).args


def shown_size(table: str, step: int) -> tuple[int, int]:
    width, _, height = table.splitlines()[1 + step].split()[1:4]
    return int(width), int(height)


def test_the_upscaler_makes_the_pixels_that_are_asked_for(pack, other):
    model, pixels = other
    size = enlarge(
        pack, latent_for(model, 8, 8), model=model, width=96 * pixels, height=64 * pixels
    )
    assert size == (64, 96)


def test_the_schedule_shows_pixels(pack, other):
    model, pixels = other
    table = schedule(pack, model, latent_image=latent_for(model, 32, 64))[2]
    assert shown_size(table, 1) == (32 * pixels, 16 * pixels)
    assert shown_size(table, 2) == (64 * pixels, 32 * pixels)
    width, height = shown_size(schedule(pack, model)[2], 2)
    assert width == height and 0 <= 1024 - width < 2 * pixels


def test_extending_begins_beyond_the_trained_pixels(pack, other):
    model, pixels = other
    cells = 1024 // pixels // 2 * 2
    if cells > 256 or latent_for(model, 2, 2)["samples"].ndim == 5:
        pytest.skip("a picture of too many cells, or a video, which can't be extended")
    steps = [
        schedule(pack, model, latent_image=latent_for(model, side, side), large_targets="extend")
        for side in (cells, 2 * cells)
    ]
    assert steps[0][0].steps == 2 < steps[1][0].steps


def test_pixels_without_a_model_are_only_taken_where_they_are_known(pack):
    for channels in (4, 16):
        assert enlarge(pack, {"samples": torch.ones(1, channels, 8, 8)}, width=256) == (12, 32)
    with pytest.raises(ValueError, match=r"128 channels.*Connect the model"):
        enlarge(pack, {"samples": torch.ones(1, 128, 8, 8)}, width=256)
    assert enlarge(pack, {"samples": torch.ones(1, 128, 8, 8)}) == (12, 12)
    # Newer hosts mark their empty latents.
    marked = {"samples": torch.ones(1, 128, 8, 8), "downscale_ratio_spacial": 16}
    assert enlarge(pack, marked, width=256) == (12, 16)


def test_a_model_s_patch_is_its_own(pack, models):
    """FLUX.2's, PixArt's and Cosmos' configurations name it each in another place."""
    from swd_pack.nodes._host_model import patch_multiple

    class Net:
        pass

    def multiple(config, **attributes):
        model = models["flux"].clone()
        net = Net()
        vars(net).update(attributes)
        stand_in = type("Base", (), {})()
        stand_in.model_config = type("Config", (), {"unet_config": config})()
        stand_in.diffusion_model = net
        model.model = stand_in
        return patch_multiple(model)

    assert multiple({"patch_size": 1}) == 1
    assert multiple({"patch_size": (1, 2, 2)}) == 2
    assert multiple({"patch_spatial": 2}) == 2
    assert multiple({}, patch_size=16) == 16
    assert multiple({}, patch_size=(1, 4, 4)) == 4
    assert multiple({"channel_mult": [1, 2, 4, 4]}) == 8
    assert multiple({}) == 2


def test_flux2_runs_at_the_sizes_of_its_table(pack, small):
    """The host's own FLUX.2 class and empty latent: 16 pixels a cell, patches of one."""
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "Flux2"):
        pytest.skip("FLUX.2 is newer than this host")
    import comfy_extras.nodes_flux

    model = small.flux2_model()
    latent = comfy_extras.nodes_flux.EmptyFlux2LatentImage.execute(208, 272).args[0]
    ladder, _, table, _ = schedule(pack, model, latent_image=latent)
    assert [shown_size(table, step) for step in (1, 2)] == [(112, 144), (208, 272)]
    seen = []

    def watch(apply_model, call):
        seen.append(tuple(call["input"].shape))
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(watch)
    cond = [[torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(8)), {"guidance": 4.0}]]
    with torch.inference_mode():
        out = pack["SwDSample"].execute(
            model=model, positive=cond, latent_image=latent, schedule=ladder, seed=1, cfg=1.0,
            upscale_method="bicubic",
        ).args[0]["samples"]  # fmt: skip
    assert seen == [(1, 128, 9, 7), (1, 128, 17, 13)]
    assert out.shape == (1, 128, 17, 13) and out.isfinite().all()
