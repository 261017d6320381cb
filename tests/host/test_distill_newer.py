"""Students of the families that read a language model's tokens, made inside the host.

Small random models of each in the host's and in diffusers' classes. Where ComfyUI 0.3.64 has no
class the test says so.
"""

import copy
import importlib

import pytest
import torch
from host_training import SIDE, bits, data_for, near, packed, same_bits, train
from lora_files import load, peft
from paper import empty, relative, run_node
from safetensors.torch import load_file

from swd_core.distill.adapters import switched_layers
from swd_core.distill.conditioning import Conditioning
from swd_core.distill.diffusers_models import wrap
from swd_core.families import FAMILIES as FAMILIES_OF
from swd_core.lora_files import read_lora, write_peft
from swd_core.presets import presets

FAMILIES = ("zimage", "qwen-image", "flux2-klein", "krea2")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("reproducible")


@pytest.fixture(scope="module")
def newer(small):
    return importlib.import_module("newer_models")


@pytest.fixture(autouse=True)
def folders(loras, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))


def inputs(newer, family, device=CPU, lengths=(7, 4, 7)):
    """x_t, noise levels and prompts of some lengths, where the trainer sends them."""
    kind, generator = newer.KINDS[family], torch.Generator().manual_seed(5)
    # Of an odd number of patches the host and diffusers place Qwen-Image's middle apart.
    x = torch.randn(3, kind.channels, SIDE, SIDE - 2 * kind.multiple, generator=generator)
    # FLUX.2 reads as many tokens of any prompt; the host fills shorter ones up in front.
    tokens = 512 if family == "flux2-klein" else 7
    context = torch.randn(3, tokens, kind.context, generator=generator)
    mask = None if family == "flux2-klein" else torch.arange(7) < torch.tensor(lengths)[:, None]
    size = torch.tensor([[8.0 * SIDE, 8.0 * (SIDE - 4)]]).repeat(3, 1)
    text, sigma = Conditioning(context, mask=mask, size=size), torch.tensor([0.9, 0.4, 0.7])
    return x.to(device), sigma.to(device), text.sent(device)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_features_and_gradients_are_those_of_diffusers(newer, host_model, family):
    hosts = newer.host_model(family)
    ours = host_model.HostModel(hosts, 4)
    theirs = wrap(copy.deepcopy(newer.reference(family)), rank=4)
    assert ours.width == theirs.width
    results = []
    for model, device in ((ours, hosts.load_device), (theirs, CPU)):
        x, sigma, text = inputs(newer, family, device)
        start = x.clone().requires_grad_()
        x0, tokens = model.predict_with_features(start, sigma, text)
        (x0.square().mean() + tokens.square().mean()).backward()
        leaf = x.clone().requires_grad_()
        scored, watched = model.score_with_features(leaf, sigma, text)
        watched.square().mean().backward()
        alone = model.features(x, sigma, text)
        assert not scored.requires_grad and relative(alone, watched) < 1e-6
        results.append((x0, tokens, start.grad, scored, leaf.grad))
    for one, other in zip(*results, strict=True):
        near(one, other, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_the_published_file_on_diffusers(newer, host_model, family, tmp_path):
    """Fused layers come apart into diffusers' with a common down matrix, and PEFT agrees."""
    hosts = newer.host_model(family)
    ours = host_model.HostModel(hosts, 4)
    here = inputs(newer, family, hosts.load_device)
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
    worn = peft.PeftModel.from_pretrained(copy.deepcopy(newer.reference(family)), tmp_path / "file")
    theirs = wrap(worn.merge_and_unload(), rank=1)
    with packed("swd_core.distill.adapters").adapter(ours.module, "student"):
        x0 = ours.predict(*here)
    assert relative(bare, x0) > 1e-3
    near(x0, theirs.predict(*inputs(newer, family)), 1e-4)
    near(bare, ours.predict(*here))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(newer, host_model, family):
    """The backward pass runs when another adapter is active, as in the trainer."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        hosts = newer.host_model(family)
        x, sigma, text = inputs(newer, family, hosts.load_device)
        model = host_model.HostModel(hosts, 4, checkpointing=checkpointing)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_trained_loaded_and_sampled(pack, newer, loras, family):
    """By our node, by the host's own Load LoRA, by PEFT on diffusers' model."""
    model = newer.host_model(family)
    before = bits(model)
    student, name, plot = train(pack, model, data_for(newer, family)).result
    assert same_bits(model, before) and not model.patches and plot.ndim == 4
    lora = read_lora(loras / name)
    assert lora.architecture == FAMILIES_OF[family].architecture.name
    assert any(layer.up.abs().max() > 1e-3 for layer in lora.layers.values())
    assert lora.schedule == presets()[f"{family}-4"].schedule
    worn = wrap(copy.deepcopy(newer.reference(family)), rank=1)
    assert lora.layers.keys() == switched_layers(worn.module).keys(), "as the other trainer"
    loaded, report = load(pack, model, name)
    assert report.startswith(f"{len(lora.layers)} of {len(lora.layers)} layers applied")

    cond = newer.conditioning(family)
    ours = run_node(pack, student, "auto", empty(128, 128), cond)
    assert torch.equal(ours, run_node(pack, loaded, "auto", empty(128, 128), cond))
    assert relative(run_node(pack, model, f"{family}-4", empty(128, 128), cond), ours) > 1e-4
    import nodes

    file = f"{name}/comfyui.safetensors"
    hosts = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)[0]
    assert len(hosts.patches) == len({*student.patches})
    near(run_node(pack, hosts, f"{family}-4", empty(128, 128), cond), ours, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_train_the_student_alone(pack, newer, loras, family):
    """Twenty steps of all losses; bf16 weights stay what they are."""
    model = newer.host_model(family, torch.bfloat16)
    before = bits(model)
    train(pack, model, data_for(newer, family), steps=20)
    assert same_bits(model, before)
    layers = read_lora(loras / "student").layers.values()
    assert all(layer.up.isfinite().all() for layer in layers)
    assert sum(bool(layer.up.abs().max() > 0) for layer in layers) > len(layers) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_interrupted_and_resumed_is_uninterrupted(pack, newer, loras, family, monkeypatch):
    import comfy.model_management

    trainer = packed("swd_core.distill.trainer").Trainer
    model, data, begun = newer.host_model(family), data_for(newer, family), []
    generate = trainer._generate
    options = {"steps": 3, "fake_steps": 2}
    train(pack, model, data, "whole", **options)

    def begin_and_stop(*arguments):
        begun.append(1)
        if len(begun) == 5:
            comfy.model_management.interrupt_current_processing()
        return generate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_generate", begin_and_stop)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(pack, model, data, "halted", **options)
    train(pack, model, data, "halted", resume=True, **options)
    files = [load_file(loras / name / "adapter_model.safetensors") for name in ("whole", "halted")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_is_refused(pack, newer, small, loras, family):
    model, data = newer.host_model(family), data_for(newer, family)
    with pytest.raises(ValueError, match="Block 9 does not exist"):
        train(pack, model, data, block=9)
    width = newer.KINDS[family].context
    with pytest.raises(ValueError, match=f"encoded 32 wide, this model reads {width}"):
        train(pack, model, data.mapped(lambda x: x, lambda x: x[..., :32]))
    with pytest.raises(ValueError, match="needs timesteps|this model needs|no pooled text"):
        train(pack, small.host_model("sdxl"), data)
    wanted = {"flux2-klein": "has 128 channels", "krea2": "encoded 128 wide"}
    wanted = wanted.get(family, "no pooled text, as T5 alone gives none")
    with pytest.raises(ValueError, match=wanted):
        train(pack, small.host_model("sd35-medium"), data)
    assert not (loras / "student").exists()
