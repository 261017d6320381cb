"""diffusers' models in the trainer: diffusers and peft themselves are the truth."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from swd_core.distill.adapters import adapter, adapter_parameters, adapter_state  # noqa: E402
from swd_core.distill.diffusers_models import SDXLModel, wrap  # noqa: E402
from swd_core.lora_files import read_lora, write_peft  # noqa: E402
from swd_core.process import FlowMatching, VarianceExploding  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "distill_models", Path(__file__).with_name("distill_models.py")
)
models = sys.modules["distill_models"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)

FAMILIES = ("sd3", "flux", "sdxl", *models.LANGUAGE)
RANK = 4


def inputs(family: str, count: int = 2):
    rng = random.Random(3)
    interval = models.steps(family)[2]
    x, _, text = models.RandomBatches(family).draw(interval, count, rng)
    sigma = torch.tensor([0.9, 0.3]) if family != "sdxl" else torch.tensor([14.6146, 0.7])
    return x, sigma[:count], text


def output_of(family: str, model, x, sigma, text):
    """The model's x0 by diffusers' own pipelines' conventions, written out."""
    if family == "sd3":
        v = model(x, text.context, text.pooled, sigma * 1000).sample
        return x - sigma.view(-1, 1, 1, 1) * v
    if family == "flux":
        from diffusers import FluxPipeline

        packed = FluxPipeline._pack_latents(x, *x.shape)
        ids = FluxPipeline._prepare_latent_image_ids(
            2, x.shape[2] // 2, x.shape[3] // 2, "cpu", x.dtype
        )
        v = model(
            packed, text.context, text.pooled, sigma, ids, torch.zeros(text.context.shape[1], 3),
            guidance=torch.full((len(x),), 4.5),
        ).sample  # fmt: skip
        v = FluxPipeline._unpack_latents(v, x.shape[2] * 8, x.shape[3] * 8, 8)
        return x - sigma.view(-1, 1, 1, 1) * v
    if family in models.LANGUAGE:
        return x - sigma.view(-1, 1, 1, 1) * velocity(family, model, x, sigma, text)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    t = torch.stack([(table - s).abs().argmin() for s in sigma]).float()
    level = sigma.view(-1, 1, 1, 1)
    ids = torch.tensor([[64.0, 128, 0, 0, 64, 128]]).repeat(len(x), 1)
    eps = model(
        x / (level**2 + 1) ** 0.5, t, text.context,
        added_cond_kwargs={"text_embeds": text.pooled, "time_ids": ids},
    ).sample  # fmt: skip
    return x - level * eps


def velocity(family: str, model, x, sigma, text):
    """One prompt after the other, so that none has a mask."""
    found = []
    for i, mask in enumerate(text.mask):
        one, t, prompt = x[i : i + 1], sigma[i : i + 1], text.context[i : i + 1, mask]
        height, width = one.shape[-2] // 2, one.shape[-1] // 2
        if family == "zimage":  # its pipeline turns the output's sign before the scheduler's step
            v = -model(list(one[:, :, None]), 1 - t, list(prompt)).sample[0][None, :, 0]
        elif family == "qwen-image":
            pipe = diffusers.QwenImagePipeline
            tokens = pipe._pack_latents(one, *one.shape)
            v = model(tokens, prompt, None, t, [[(1, height, width)]]).sample
            v = pipe._unpack_latents(v, one.shape[2] * 8, one.shape[3] * 8, 8)[:, :, 0]
        elif family == "flux2":
            pipe = diffusers.Flux2KleinPipeline
            v = model(
                pipe._pack_latents(one), prompt, t, img_ids=pipe._prepare_latent_ids(one),
                txt_ids=pipe._prepare_text_ids(prompt),
            ).sample  # fmt: skip
            v = pipe._unpack_latents_with_ids(v, pipe._prepare_latent_ids(one))
        else:
            pipe = diffusers.Krea2Pipeline
            tokens = diffusers.QwenImagePipeline._pack_latents(one, *one.shape)  # as its own
            ids = pipe.prepare_position_ids(prompt.shape[1], height, width, "cpu")
            v = model(tokens, prompt.unflatten(-1, (2, -1)), t, ids).sample
            v = diffusers.QwenImagePipeline._unpack_latents(
                v, one.shape[2] * 8, one.shape[3] * 8, 8
            )[:, :, 0]  # fmt: skip
        found.append(v)
    return torch.cat(found)


def on_table(sigma: torch.Tensor) -> torch.Tensor:
    """The table's entries nearest to the given levels, so that both sides mean the same step."""
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    return torch.stack([table[(table - s).abs().argmin()] for s in sigma])


@pytest.fixture(params=FAMILIES)
def case(request):
    family = request.param
    x, sigma, text = inputs(family)
    if family == "sdxl":
        sigma = on_table(sigma)
    bare = models.small_model(family)
    return family, bare, wrap(models.small_model(family), rank=RANK), (x, sigma, text)


def middle_tokens(family: str, model, x, run) -> torch.Tensor:
    seen, count = [], x.shape[2] * x.shape[3] // 4
    blocks = model.layers if family == "zimage" else getattr(model, "transformer_blocks", ())
    block = model.mid_block if family == "sdxl" else blocks[1]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out))
    run()
    handle.remove()
    if family == "zimage":  # the picture's tokens, then what fills them up, then the text's
        return torch.cat([tokens[:, :count] for tokens in seen])
    if family == "krea2":  # the text's, then the picture's
        return torch.cat([tokens[:, -count:] for tokens in seen])
    if family in models.LANGUAGE:
        return torch.cat([tokens for _, tokens in seen])
    return seen[0].flatten(2).transpose(1, 2) if family == "sdxl" else seen[0][1]


@torch.no_grad()
def test_predicts_what_diffusers_predicts(case):
    family, bare, wrapped, data = case
    expected = output_of(family, bare, *data)
    for name in (None, "student"):
        with adapter(wrapped.module, name):
            torch.testing.assert_close(wrapped.predict(*data), expected, rtol=1e-4, atol=1e-4)
    kind = VarianceExploding if family == "sdxl" else FlowMatching
    assert isinstance(wrapped.process, kind)


@torch.no_grad()
def test_features_are_the_middle_blocks_tokens(case):
    family, bare, wrapped, data = case
    expected = middle_tokens(family, bare, data[0], lambda: output_of(family, bare, *data))
    whole = {name for name, _ in wrapped.module.named_modules()}
    features = wrapped.features(*data)
    assert features.shape[-1] == wrapped.width
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    x0, again = wrapped.predict_with_features(*data)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x0, wrapped.predict(*data))
    assert {name for name, _ in wrapped.module.named_modules()} == whole


def shaken(wrapped, name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter_parameters(wrapped.module, name):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)


def test_one_pass_gives_score_and_features_with_the_features_gradient(case):
    family, _, wrapped, (x, sigma, text) = case
    shaken(wrapped, "fake")
    module = wrapped.module
    x = x.requires_grad_()
    with adapter(module, "fake"):
        with torch.no_grad():
            expected = wrapped.predict(x, sigma, text)
        tokens = wrapped.features(x, sigma, text)
        (wanted,) = torch.autograd.grad(tokens.square().sum(), x)
        x0, tokens = wrapped.score_with_features(x, sigma, text)
    assert torch.is_grad_enabled() and not x0.requires_grad
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)  # attention in two ways
    (gradient,) = torch.autograd.grad(tokens.square().sum(), x)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients(family):
    """The backward pass runs after the adapter was switched off, so it must be put back."""
    gradients = []
    for checkpointing in (False, True):
        wrapped = wrap(models.small_model(family), rank=RANK, checkpointing=checkpointing)
        shaken(wrapped, "student")
        wrapped.module.train()
        with adapter(wrapped.module, "student"):
            x0, tokens = wrapped.predict_with_features(*inputs(family))
            loss = x0.square().mean() + tokens.square().mean()
        with adapter(wrapped.module, "fake"):
            loss.backward()
        gradients.append([p.grad for p in adapter_parameters(wrapped.module, "student")])
        assert all(p.grad is None for p in adapter_parameters(wrapped.module, "fake"))
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_published_file_gives_the_same_output_in_peft_and_diffusers(family, tmp_path):
    wrapped = wrap(models.small_model(family), rank=RANK)
    shaken(wrapped, "student")
    layers = wrapped.layers(adapter_state(wrapped.module, "student"))
    write_peft(tmp_path, layers, rank=RANK, alpha=RANK, base_model="small")
    data = inputs(family)
    with adapter(wrapped.module, "student"):
        expected = wrapped.predict(*data)
        teacher_differs = (expected - output_of(family, models.small_model(family), *data)).abs()
    assert teacher_differs.max() > 0.05

    loaded = peft.PeftModel.from_pretrained(models.small_model(family), tmp_path)
    got = output_of(family, loaded.base_model.model, *data)
    close = 1e-3 * float(expected.abs().max())  # the file is in half precision
    torch.testing.assert_close(got, expected, rtol=0, atol=close)

    direct = models.small_model(family)
    direct.load_lora_adapter(tmp_path / "adapter_model.safetensors", prefix="base_model.model")
    torch.testing.assert_close(output_of(family, direct, *data), expected, rtol=0, atol=close)
    lora = read_lora(tmp_path)
    assert lora.architecture == family and len(lora.layers) == len(layers)


def test_sdxl_s_levels_follow_a_model_that_is_moved_once():
    """As FSDP moves it: brought there anew, the table would wait for the device in every pass."""
    model, times = wrap(models.small_model("sdxl"), rank=1), torch.empty(2, device="meta")
    model.level(times), model.timestep(times)
    assert model.table.device == times.device


def test_sdxl_levels_are_the_schedulers():
    model = SDXLModel(models.small_model("sdxl"), rank=RANK)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    kept = scheduler.alphas_cumprod
    for t in (0, 400, 600, 800, 999):
        wanted = ((1 - kept[t]) / kept[t]) ** 0.5
        level = model.level(torch.tensor([t / 1000]))
        torch.testing.assert_close(level[0], wanted.float(), rtol=1e-4, atol=1e-5)
        assert float(model.timestep(level)[0]) == pytest.approx(t, abs=0.01)
    assert torch.equal(model.level(torch.tensor([1.0])), model.level(torch.tensor([0.999])))


def test_what_can_not_be_distilled_is_refused():
    with pytest.raises(ValueError, match="Linear"):
        wrap(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Block 9.*0 to 3"):
        wrap(models.small_model("sd3"), block=9)
    with pytest.raises(ValueError, match="middle"):
        wrap(models.small_model("sdxl"), block=1)
