"""SwDLatentUpscale in the host: the size it makes, and how a sampler goes on from its noise."""

import pytest
import torch

from swd_core.noise import draw_noise

CLEAN = torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def loaded(pack):
    return pack["SwDSceneStudent"].execute(strength=1.0).result


def enlarge(pack, latent, **widgets) -> dict:
    given = {"upscale_method": "bicubic", "scale_by": 1.5, "width": 0, "height": 0}
    given |= {"noise_sigma": 0.0, "seed": 7, **widgets}
    return pack["SwDLatentUpscale"].execute(samples=latent, **given).result[0]


def test_sizes_by_factor_and_by_pixels(pack):
    latent = {"samples": CLEAN, "batch_index": [3, 5]}
    by_factor = enlarge(pack, latent)
    expected = torch.nn.functional.interpolate(CLEAN, size=(24, 36), mode="bicubic")
    assert torch.equal(by_factor["samples"], expected) and by_factor["batch_index"] == [3, 5]
    assert enlarge(pack, latent, width=320, height=256)["samples"].shape[-2:] == (32, 40)
    assert enlarge(pack, latent, width=320)["samples"].shape[-2:] == (24, 40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [CLEAN.shape, (1, 16, 3, 16, 24)], ids=["picture", "video"])
def test_half_precision_shrinks_too(pack, dtype, shape):
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small, half = (
        enlarge(pack, {"samples": x}, scale_by=0.5)["samples"] for x in (clean, clean.to(dtype))
    )
    assert half.dtype == dtype and half.shape[-2:] == (8, 12)
    torch.testing.assert_close(half.float(), small, rtol=0, atol=2e-2)


def test_a_sampler_without_noise_goes_on_as_image_to_image(pack, loaded):
    """Noise here and none there is the host's own image-to-image with that noise."""
    import comfy.samplers

    model, clip = loaded[0], loaded[1]
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("rocket"))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    sigmas = torch.tensor([0.6022, 0.0])

    def sample(noise, latent):
        return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=0)

    clean = enlarge(pack, {"samples": CLEAN}, model=model)["samples"]
    prepared = enlarge(pack, {"samples": CLEAN}, model=model, noise_sigma=0.6022)["samples"]
    expected = sample(draw_noise(7, (0, 1), 0, clean.shape[1:]), clean)
    error = sample(torch.zeros_like(clean), prepared) - expected
    assert error.abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("widgets", "with_model", "says"),
    [
        ({"noise_sigma": 0.6}, False, "no model is connected"),
        ({"noise_sigma": 1.0}, True, "pure noise"),
    ],
)
def test_noise_that_can_not_be_added_is_refused(pack, loaded, widgets, with_model, says):
    with pytest.raises(ValueError, match=says):
        enlarge(pack, {"samples": CLEAN}, model=loaded[0] if with_model else None, **widgets)
