"""SwD Distill Data with the text encoder and the VAE that an artist connects: the host's own."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from chain import call
from host_training import packed, train

from swd_core.lora_files import read_lora

FAMILIES = ("zimage", "qwen-image")
LONG = "a fox beside a lake in the evening light, painted in oil, " * 100  # some 1,400 tokens
CAPTIONS = ("a fox", "two blue birds on a wire", LONG, "an old lighthouse")


@pytest.fixture(autouse=True)
def folders(loras, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))


@pytest.fixture(scope="module")
def encoders(small):
    return importlib.import_module("language_encoders")


@pytest.fixture(scope="module", params=FAMILIES)
def encoded(request, pack, encoders):
    """Family, its CLIP and VAE, four pictures, and the data of them."""
    family = request.param
    clip, vae = encoders.clip(family), encoders.vae(family)
    pictures = torch.rand(4, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    schedule = packed("swd_core.presets").presets()[f"{family}-4"].schedule
    with torch.inference_mode():
        data = pack["SwDDistillData"].execute(
            images=[pictures], clip=[clip], vae=[vae], schedule=[schedule],
            captions=["\n".join(CAPTIONS)],
        ).args[0]  # fmt: skip
    return family, clip, vae, pictures, data


def test_every_caption_is_what_the_hosts_own_node_encodes(encoded):
    """In as many tokens as it has: no length is cut, and none is filled up."""
    _, clip, _, _, data = encoded
    with torch.inference_mode():
        for caption, found in zip((*CAPTIONS, ""), (*data.text, data.empty), strict=True):
            [[context, _]] = call("nodes:CLIPTextEncode", clip, caption.strip())
            assert torch.equal(found.context, context)
    lengths = [text.context.shape[1] for text in data.text]
    assert lengths[0] < lengths[1] < 32 and lengths[2] > 1024
    assert data.empty.context.shape[1] < lengths[0]


def test_every_size_is_what_the_hosts_own_node_encodes(encoded):
    """A picture is a video of one frame for Qwen-Image's VAE, never four frames of one."""
    _, _, vae, pictures, data = encoded
    assert list(data.latents) == list(dict.fromkeys(data.sizes)) and data.sizes[-1] == (8, 12)
    with torch.inference_mode():
        for (height, width), latents in data.latents.items():
            assert latents.shape == (4, 16, height, width)
            small = pictures.movedim(-1, 1)
            if (height, width) != (8, 12):
                small = F.interpolate(small, (8 * height, 8 * width), mode="area")
            for one, picture in zip(latents, small.movedim(1, -1), strict=True):
                wanted = call("nodes:VAEEncode", vae, picture[None])["samples"]
                wanted = wanted[0, :, 0] if wanted.ndim == 5 else wanted[0]
                torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("all_losses", [True, False])
def test_it_trains_with_prompts_of_any_length(encoded, pack, loras, all_losses):
    family, _, vae, _, data = encoded
    model = importlib.import_module("newer_models").host_model(family)
    weights = {} if all_losses else {"dmd": 0.0, "gan": 0.0}
    _, name, plot = train(pack, model, data, vae=vae, steps=2, accumulate=2, **weights).result
    layers = read_lora(loras / name).layers.values()
    assert any(layer.up.abs().max() > 0 for layer in layers)
    assert all(layer.up.isfinite().all() and layer.down.isfinite().all() for layer in layers)
    assert plot.ndim == 4
