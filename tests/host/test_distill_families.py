"""Students of SD3.5, FLUX.1 and SDXL made inside the host, on small random models of each."""

import copy

import pytest
import torch
from host_training import FAMILIES, SIDE, near, packed
from lora_files import peft
from paper import relative

from swd_core.distill.conditioning import Conditioning
from swd_core.distill.diffusers_models import wrap
from swd_core.lora_files import write_peft

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folders(loras, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))


def inputs(small, family, device=CPU):
    """x_t, noise levels at entries of SDXL's table, and text of a batch of two, as trainers do."""
    kind, generator = small.KINDS[family], torch.Generator().manual_seed(5)
    x = torch.randn(2, kind.channels, SIDE, SIDE, generator=generator)
    sigma = torch.tensor([0.9, 0.4])
    if family == "sdxl":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = (1 - betas).cumprod(0)[[800, 400]]
        sigma = ((1 - kept) / kept).sqrt().float()
        x = x * (1 + sigma.view(-1, 1, 1, 1).square()).sqrt()
    texts = [small.conditioning(family, seed)[0] for seed in (1, 2)]
    context = torch.cat([context for context, _ in texts])
    pooled = torch.cat([extra["pooled_output"] for _, extra in texts])
    text = Conditioning(context.to(device), pooled.to(device), size=torch.full((2, 2), 8.0 * SIDE))
    return x.to(device), sigma.to(device), text


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_features_and_gradients_are_those_of_diffusers(
    small, models, host_model, family
):
    ours = host_model.HostModel(models[family], 4)
    theirs = wrap(copy.deepcopy(small.reference(family)), rank=4)
    assert ours.width == theirs.width
    results = []
    for model, device in ((ours, models[family].load_device), (theirs, CPU)):
        x, sigma, text = inputs(small, family, device)
        start = x.clone().requires_grad_()
        x0, tokens = model.predict_with_features(start, sigma, text)
        (x0.square().mean() + tokens.square().mean()).backward()
        leaf = x.clone().requires_grad_()
        scored, watched = model.score_with_features(leaf, sigma, text)
        watched.square().mean().backward()
        alone = model.features(x, sigma, text)
        assert not scored.requires_grad and torch.equal(alone, watched)
        results.append((x0, tokens, start.grad, scored, leaf.grad))
    for one, other in zip(*results, strict=True):
        near(one, other, 1e-4)
    t = torch.tensor([0.0, 0.2505, 0.999])
    near(ours.level(t), theirs.level(t))
    level = sigma.view(-1, 1, 1, 1)
    noised = ours.sampling.noise_scaling(level, torch.ones_like(x), x, False)
    near(ours.process.add_noise(x, torch.ones_like(x), level), noised)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_the_published_file_on_diffusers(
    small, models, host_model, family, tmp_path
):
    """Fused layers come apart into diffusers' with a common down matrix, and PEFT agrees."""
    ours = host_model.HostModel(models[family], 4)
    here = inputs(small, family, models[family].load_device)
    generator = torch.Generator().manual_seed(0)
    bare = ours.predict(*here)
    pairs = {}
    for name in ours.parts:
        layer = ours.module.get_submodule(name)
        with torch.no_grad():
            for part in (layer.down["student"], layer.up["student"]):
                part.copy_((torch.randn(part.shape, generator=generator) * 0.1).half())
        pairs[name] = (layer.down["student"].detach(), layer.up["student"].detach())
    write_peft(tmp_path / "file", ours.layers(pairs), rank=4, alpha=4, base_model="small")
    reference = copy.deepcopy(small.reference(family))
    worn = peft.PeftModel.from_pretrained(reference, tmp_path / "file")
    theirs = wrap(worn.merge_and_unload(), rank=1)
    with packed("swd_core.distill.adapters").adapter(ours.module, "student"):
        x0 = ours.predict(*here)
    assert relative(bare, x0) > 0.01
    near(x0, theirs.predict(*inputs(small, family)), 1e-4)
    near(bare, ours.predict(*here))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(small, models, host_model, family):
    """The backward pass runs when another adapter is active, as in the trainer."""
    x, sigma, text = inputs(small, family, models[family].load_device)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = host_model.HostModel(models[family], 4, checkpointing=checkpointing)
        for p in model.module.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.1)
        with packed("swd_core.distill.adapters").adapter(model.module, "student"):
            loss = model.predict(x, sigma, text).square().mean()
        with packed("swd_core.distill.adapters").adapter(model.module, "fake"):
            loss.backward()
        found.append({n: p.grad for n, p in model.module.named_parameters() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys() and all(name.endswith("student") for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6), name


def test_the_room_for_the_weights_is_what_the_model_says(small, host_model):
    """It counts what the host would evict for it (dynamic VRAM), which the host's own count lacks.

    The device is one that this machine doesn't have: the host can't be asked for its memory.
    """
    import comfy.model_patcher

    card, cpu = torch.device("cuda", 0), torch.device("cpu")

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def get_free_memory(self, device):
            return {card: 10_000}[device]

    base = small.host_model("sdxl").model
    model = Dynamic(base, load_device=card, offload_device=cpu)
    assert host_model.room_for(model) == (1 - host_model.RESERVE) * 10_000
    assert host_model.room_for(Dynamic(base, load_device=cpu, offload_device=cpu)) == float("inf")
