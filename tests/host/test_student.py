"""The embedded student's files in the host's own classes."""

import sys

import pytest
import torch
from chain import call
from conftest import ON_CPU
from paper import HALF, TOLERANCE, relative

from swd_core.scenes.model import MMDiT
from swd_core.scenes.student import SceneStudent

# The references run on the CPU. On a card the host merges the student's LoRA in float16.
MERGED = max(1e-4, HALF)
SAME = 0.0 if ON_CPU else TOLERANCE


@pytest.fixture(scope="module")
def loaded(pack):
    return pack["SwDSceneStudent"].execute(strength=1.0).result


@pytest.fixture(scope="module")
def own():
    return SceneStudent.load()


@pytest.mark.parametrize("size", [(16, 16), (20, 20), (32, 32), (24, 48), (64, 18)])
def test_our_mmdit_is_the_hosts_sd3(loaded, own, size):
    import comfy.model_management

    patcher = loaded[0]
    comfy.model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, *size, generator=generator)
    sigma = torch.tensor([0.9, 0.4])
    text = own.encode(["a fox", "happy dog"])
    given = (part.to(patcher.load_device) for part in (x, sigma * 1000, text.context, text.pooled))
    with torch.inference_mode():
        theirs = patcher.model.diffusion_model(*given)
        ours = own.model(x, sigma, text.context, text.pooled)
    assert isinstance(own.model, MMDiT) and type(patcher.model).__name__ == "SD3"
    assert relative(theirs, ours) < MERGED


def test_strength_zero_is_the_teacher(pack, own):
    teacher = pack["SwDSceneStudent"].execute(strength=0.0).result[0]
    assert not teacher.patches
    weights = teacher.model.diffusion_model.state_dict()
    expected = SceneStudent.load(lora=None).model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in expected.items())


@pytest.mark.parametrize("prompt", ["a fox", "", "(happy:1.3) dog", "Äpfel 林檎", "rocket " * 5000])
def test_clip_text_encode_gives_our_conditioning(loaded, own, prompt):
    clip = loaded[1]
    [[context, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    text = own.encode([prompt.replace("(happy:1.3)", "happy")])
    for found, wanted in ((context, text.context), (extra["pooled_output"], text.pooled)):
        assert found.shape == wanted.shape and relative(found, wanted) <= SAME


def test_encoded_text_is_where_the_host_keeps_what_nodes_hand_on(loaded, monkeypatch):
    """Not on a graphics card: the host's own text encoders leave nothing there."""
    import comfy.model_management

    clip, meta = loaded[1], torch.device("meta")
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: meta)
    [[context, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize("a fox"))
    assert context.device == meta and extra["pooled_output"].device == meta


def test_vae_is_ours(loaded, own):
    latents = torch.randn(1, 16, 20, 32, generator=torch.Generator().manual_seed(1))
    vae = loaded[2]
    stored = loaded[0].model.process_latent_out(latents)
    ours = own.decode(latents)
    assert (vae.decode(stored) - ours).abs().mean() < 2 / 255
    back = loaded[0].model.process_latent_in(vae.encode(ours))
    assert (back - own.vae.encode(ours.permute(0, 3, 1, 2))).abs().mean() < 0.02


def test_euler_sampling_by_the_hosts_own_sampler(loaded, own):
    """The MODEL is a plain flow model to the host: one Euler step from pure noise is x - v."""
    import comfy.samplers

    model, clip = loaded[0], loaded[1]
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("rocket"))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    noise = torch.randn(1, 16, 24, 24, generator=torch.Generator().manual_seed(2))
    sampler = comfy.samplers.sampler_object("euler")
    out = guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor([1.0, 0.0]), seed=0)
    x0 = own.denoiser(own.encode(["rocket"]))(noise, 1.0)
    assert relative(model.model.process_latent_in(out.cpu()), x0) < MERGED


ONE_TEXT_ENCODER = {
    "CLIPTextEncodeSD3": ("comfy_extras.nodes_sd3", ("l", "g", "t5", "none")),
    "CLIPTextEncodeFlux": ("comfy_extras.nodes_flux", ("l", "t5", 4.5)),
    "CLIPTextEncodeSDXL": ("comfy_extras.nodes_clip_sdxl", (64, 64, 0, 0, 64, 64, "g", "l")),
    "CLIPTextEncodeHunyuanDiT": ("comfy_extras.nodes_hunyuan", ("bert", "mt5xl")),
    "CLIPTextEncodeHiDream": ("comfy_extras.nodes_hidream", ("l", "g", "t5", "llama")),
}


@pytest.mark.parametrize("node", ONE_TEXT_ENCODER)
def test_nodes_for_several_text_encoders_say_which_one_to_take(loaded, node):
    module, texts = ONE_TEXT_ENCODER[node]
    with pytest.raises(ValueError, match=r"one text encoder.*CLIP Text Encode"):
        call(f"{module}:{node}", loaded[1], *texts)


def again(patcher) -> list:
    """Copies with weights of their own, as the host makes them for hooks and other devices."""
    if not hasattr(patcher, "cached_patcher_init"):
        pytest.skip("ComfyUI 0.3.64 makes no copies from a loader")
    copies = [patcher.clone(force_deepcopy=True)]
    copies.append(patcher.deepclone_multigpu(new_load_device=torch.device("cpu")))
    return copies


def test_the_host_can_load_the_model_again(loaded, pack):
    import comfy.model_management

    model, own = loaded[0], SceneStudent.load()
    text = own.encode(["a fox"])
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

    def answer(patcher):
        comfy.model_management.load_models_gpu([patcher])
        with torch.inference_mode():
            given = (x, torch.tensor([900.0]), text.context, text.pooled)
            given = (part.to(patcher.load_device) for part in given)
            return patcher.model.diffusion_model(*given).cpu()

    expected = answer(model)
    teacher = answer(pack["SwDSceneStudent"].execute(strength=0.0).result[0])
    assert not torch.equal(expected, teacher)
    for copy in again(model):
        assert copy.model is not model.model and copy.patches.keys() == model.patches.keys()
        same = 0 if copy.load_device == model.load_device else HALF
        assert relative(answer(copy), expected) <= same, "with the student's LoRA on top"
        assert copy.get_attachment("swd_schedule") == model.get_attachment("swd_schedule")


def test_the_host_can_load_the_text_encoder_and_the_vae_again(loaded, own):
    ids = loaded[1].tokenize("a fox")
    expected = own.encode(["a fox"])
    for copy in again(loaded[1].patcher):
        assert copy.model is not loaded[1].patcher.model
        context, pooled = copy.model.encode_token_weights(ids)
        assert relative(context, expected.context) <= SAME
        assert relative(pooled, expected.pooled) <= SAME
    weights = loaded[2].patcher.model.state_dict()
    for copy in again(loaded[2].patcher):
        theirs = copy.model.state_dict()
        assert copy.model is not loaded[2].patcher.model
        assert all(torch.equal(theirs[name].cpu(), value.cpu()) for name, value in weights.items())


def test_previews_are_in_the_pictures_colours(loaded):
    """The host's previewer shows each latent cell as the VAE does its pixels, on average."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    vae = loaded[2]
    pixels = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    picture = torch.nn.functional.interpolate(pixels, size=(96, 96), mode="bicubic").clamp(0, 1)
    latent = vae.encode(picture.movedim(1, -1))
    form = loaded[0].model.latent_format
    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), form)
    finally:
        args.preview_method = before
    image = previewer.decode_latent_to_preview(form.process_in(latent))
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(12, 12, 3) / 255
    wanted = vae.decode(latent)[0].view(12, 8, 12, 8, 3).mean((1, 3))
    assert (shown - wanted).abs().mean() < 0.06


@pytest.mark.parametrize("gone", ["model", "text", "vae", "lora"])
def test_missing_weights_are_said_in_words_of_a_graph(pack, tmp_path, monkeypatch, gone):
    """The node has no options of a command line."""
    node, core = (
        sys.modules[f"swd_pack.{m}"] for m in ("nodes.student", "swd_core.scenes.student")
    )
    names = {"model": core.MODEL_FILE, "text": core.TEXT_FILE, "vae": core.VAE_FILE,
             "lora": core.LORA_FOLDER}  # fmt: skip
    for name in names.values():
        if name != names[gone]:
            (tmp_path / name).symlink_to(core.WEIGHTS / name)
    for module in (node, core):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="Install the pack again") as error:
        pack["SwDSceneStudent"].execute(strength=1.0)
    assert names[gone] in str(error.value) and "--" not in str(error.value)
