"""Students of SD3.5, FLUX.1 and SDXL made in the graph: trained, interrupted, refused."""

import copy
import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ON_CPU
from host_training import FAMILIES, PRESET, bits, data_for, near, packed, same_bits, train
from lora_files import SHORT, load, peft, publish
from paper import empty, guided, reference_latent, relative, run_node
from safetensors.torch import load_file

from swd_core.distill.adapters import switched_layers
from swd_core.distill.diffusers_models import wrap
from swd_core.lora_files import read_lora
from swd_core.presets import presets

pytestmark = pytest.mark.usefixtures("reproducible")


@pytest.fixture(autouse=True)
def folders(loras, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_trained_loaded_and_sampled(pack, small, loras, family):
    model = small.host_model(family)
    before = bits(model)
    student, name, plot = train(pack, model, data_for(small, family)).result
    assert same_bits(model, before) and not model.patches and plot.ndim == 4
    lora = read_lora(loras / name)
    assert any(layer.up.abs().max() > 1e-3 for layer in lora.layers.values())
    loaded, report = load(pack, model, name)
    assert report.startswith(f"{len(lora.layers)} of {len(lora.layers)} layers applied")
    cond = guided(small, family)
    ours = run_node(pack, student, "auto", empty(128, 128), cond)
    assert torch.equal(ours, run_node(pack, loaded, "auto", empty(128, 128), cond))
    worn = peft.PeftModel.from_pretrained(copy.deepcopy(small.reference(family)), loras / name)
    theirs = reference_latent(small, PRESET[family], 128, 128, cond, net=worn.base_model.model)
    bare = reference_latent(small, PRESET[family], 128, 128, cond)
    assert relative(bare, theirs) > 1e-3
    near(ours, theirs, 1e-4 if ON_CPU else 5e-4)
    assert lora.schedule == presets()[PRESET[family]].schedule
    theirs = wrap(copy.deepcopy(small.reference(family)), rank=1)
    assert lora.layers.keys() == switched_layers(theirs.module).keys(), "as the other trainer"


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ({"lr": 5e-4, "lr_fake": 1e-3}, "lr 0.0005 and lr_fake 0.001 is much"),
        ({"lr": 4e-6, "lr_fake": 1e-3}, "lr_fake 0.001 is much"),
        ({"lr": 4e-6, "lr_fake": 1e-3, "dmd": 0.0, "gan": 0.0}, ""),  # the page's short recipe
        ({"lr": 4e-6, "lr_fake": 4e-6}, ""),
    ],
)
def test_rates_of_a_small_model_are_said_of_a_large_one(pack, small, monkeypatch, rates, says):
    """The widgets' are by default; a teacher that counts as large here stands in for 6 billion."""
    run, said = packed("nodes.distill_run"), []
    monkeypatch.setattr(run, "LARGE", 1000)
    monkeypatch.setattr(run._host, "say", said.append)
    train(pack, small.host_model("flux"), data_for(small, "flux"), steps=1, **rates)
    assert bool(said) == bool(says) and "".join(said).startswith(says)


@pytest.mark.parametrize("family", ["sd35-medium", "flux", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_other_number_formats(pack, small, loras, family, dtype):
    """The base is read in its own format, made in inference mode as the host's loaders do."""
    with torch.inference_mode():
        model = small.host_model(family, dtype)
    before = bits(model)
    train(pack, model, data_for(small, family), steps=1)
    assert same_bits(model, before)
    layers = read_lora(loras / "student").layers
    assert all(layer.up.isfinite().all() for layer in layers.values())


def test_a_lora_merged_into_shared_weights_is_not_trained_on(pack, small, loras):
    """Clones of a MODEL share weights, and the last one that ran has left its LoRA in them."""
    import comfy.model_management

    publish(small, "flux", loras / "other", SHORT, r=4, lora_alpha=4)
    model, data = small.host_model("flux"), data_for(small, "flux")
    before = bits(model)
    train(pack, model, data, "alone")
    changed, _ = load(pack, model, "other")
    comfy.model_management.load_models_gpu([changed])
    assert not same_bits(model, before), "the LoRA is merged now"
    train(pack, model, data, "after")
    assert same_bits(model, before)
    files = [load_file(loras / name / "adapter_model.safetensors") for name in ("alone", "after")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def interrupting(after: int):
    """A VAE that shows three samples a step to a user who presses stop at number `after`."""
    import comfy.model_management

    shown = []

    def decode(latents):
        shown.append(latents)
        if len(shown) == after:
            comfy.model_management.interrupt_current_processing()
        return latents[:, :3].movedim(1, -1).sigmoid()

    return SimpleNamespace(decode=decode)


@pytest.mark.parametrize("family", ["sd35-medium", "flux", "sdxl"])
def test_interrupted_and_resumed_is_uninterrupted(pack, small, loras, family):
    import comfy.model_management

    model, data = small.host_model(family), data_for(small, family)
    before = bits(model)
    train(pack, model, data, "whole", steps=4, vae=interrupting(0))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(pack, model, data, "halved", steps=4, vae=interrupting(4))
    assert read_lora(loras / "halved").metadata["swd_step"] == "2"
    assert same_bits(model, before) and not getattr(comfy.model_management, "in_training", False)
    train(pack, model, data, "halved", steps=4, resume=True, vae=interrupting(0))
    files = [load_file(loras / name / "adapter_model.safetensors") for name in ("whole", "halved")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


@pytest.mark.parametrize("last", [2, 6, 8])
@pytest.mark.parametrize("family", ["sd35-medium", "flux", "sdxl"])
def test_an_interrupt_is_seen_between_two_batches(pack, small, loras, family, last, monkeypatch):
    """A step has 6 here, 4 of them the fake score's. What is done is kept, resumed as if whole.

    ComfyUI 0.33 raises the interrupt inside the model's layers, where a batch would be lost.
    """
    import comfy.model_management

    trainer = packed("swd_core.distill.trainer").Trainer
    model, data, begun = small.host_model(family), data_for(small, family), []
    generate = trainer._generate
    options = {"steps": 2, "accumulate": 2, "fake_steps": 2}
    train(pack, model, data, "whole", **options)

    def begin_and_stop(*arguments):
        begun.append(1)
        if len(begun) == last:
            comfy.model_management.interrupt_current_processing()
        return generate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_generate", begin_and_stop)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(pack, model, data, "halted", **options)
    assert len(begun) == last, "no other batch is begun"
    assert read_lora(loras / "halted").metadata["swd_step"] == str(last // 6)
    train(pack, model, data, "halted", resume=True, **options)
    files = [load_file(loras / name / "adapter_model.safetensors") for name in ("whole", "halted")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_an_interrupt_before_the_first_batch_writes_nothing(pack, small, loras):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(pack, small.host_model("sdxl"), data_for(small, "sdxl"))
    assert not (loras / "student").exists()


def test_the_plots_cost_does_not_grow_with_the_steps():
    """A hundred thousand steps are as many points as some hundred, and the same line."""
    module = packed("nodes.distill_run")
    curve, values = module.Curve(), [1 / (1 + i / 5000) for i in range(100_001)]
    most = 0
    for value in values:
        curve.add(value)
        most = max(most, len(curve.points) + len(curve.waiting))
    assert most < 2000 and curve.last == values[-1]
    for i, point in enumerate(curve.points):
        part = values[i * curve.stride : (i + 1) * curve.stride]
        assert point == pytest.approx(sum(part) / len(part))
    picture = module.losses_plot({"mmd": curve}, 100_001, 100_001)
    line = (np.asarray(picture)[:, :600] == (0x5A, 0xB0, 0xFF)).all(-1)
    heights = [int(rows.argmax()) for rows in line.T if rows.any()]
    assert len(heights) > 550 and heights[0] < 60 and heights[-1] > 280
    assert heights == sorted(heights), "falls all the way across"


def test_an_error_restores_everything(pack, small, loras):
    import comfy.model_management

    model, data = small.host_model("sdxl"), data_for(small, "sdxl")
    before, state = bits(model), torch.get_rng_state()
    data.latents[data.sizes[-1]].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        train(pack, model, data, steps=40)
    assert same_bits(model, before) and torch.equal(state, torch.get_rng_state())
    assert not getattr(comfy.model_management, "in_training", False)


def refused(pack, small, model, family, message, **values):
    data = values.pop("data", None) or data_for(small, family)
    with pytest.raises(ValueError, match=message):
        train(pack, model, data, **values)


def test_models_that_cannot_be_trained(pack, small, models, loras):
    import comfy.supported_models

    flux, data = small.host_model("flux"), data_for(small, "flux")
    layer = flux.model.diffusion_model.double_blocks[0].img_mlp[0]

    class PackedTensor(torch.Tensor):
        """Stands for GGUF's: a tensor class of its own around packed bytes."""

    plain = layer.weight
    layer.weight = torch.nn.Parameter(plain.detach().as_subclass(PackedTensor), False)
    refused(pack, small, flux, "flux", r"quantised \(double_blocks.0.img_mlp.0 holds PackedTensor")
    layer.weight = plain
    layer.scale_weight = torch.ones(1)
    refused(pack, small, flux, "flux", "holds scaled fp8")
    config = comfy.supported_models.SD15({**small.SDXL_CONFIG, "adm_in_channels": None,
                                          "num_classes": None})  # fmt: skip
    unknown = small.patcher(config, {}, torch.float32, torch.device("meta"))
    refused(pack, small, unknown, "flux", "A BaseModel model can't be distilled")
    publish(small, "flux", loras / "other", SHORT, r=4, lora_alpha=4)
    refused(pack, small, load(pack, models["flux"], "other")[0], "flux", "has a LoRA on it")
    changed = models["flux"].clone()
    changed.set_model_attn1_patch(lambda *args, **kwargs: args)
    refused(pack, small, changed, "flux", "Another node changes how this model runs .patches")
    refused(pack, small, models["sdxl"], "flux", "needs timesteps", data=data)
    refused(pack, small, models["sd35-medium"], "flux", "Block 9 does not exist", block=9,
            data=data_for(small, "sd35-medium"))  # fmt: skip
    config = comfy.supported_models.SDXL({**small.SDXL_CONFIG, "in_channels": 9})
    inpaint = small.patcher(config, {}, torch.float32, torch.device("meta"))
    refused(pack, small, inpaint, "sdxl", "reads 9 channels, 4 of them a latent: an inpainting")
    other = data.mapped(lambda x: x, lambda x: x[..., :32])
    refused(pack, small, models["flux"], "flux", "encoded 32 wide, this model reads 64", data=other)
    assert not (loras / "student").exists(), "nothing was begun"


def test_a_batch_has_captions_of_all_lengths_each_as_it_is_by_itself(pack, small):
    """Z-Image's and others' captions have a length each: alike ones alone would be one picture."""
    model, data = small.host_model("flux"), data_for(small, "flux")
    batches = packed("swd_core.distill.memory").MemoryBatches(data, data.schedule.sigmas)
    interval, rng = batches.steps(random.Random(0))[0], random.Random(1)
    drawn = [batches.draw(interval, 4, rng)[0] for _ in range(50)]
    kept = data.latents[interval.size]
    which = [[next(i for i in range(3) if torch.equal(x, kept[i])) for x in b] for b in drawn]
    found = [sum(batch.count(i) for batch in which) for i in range(3)]
    assert min(found) > 200 / 3 - 30, "as often each"
    assert sum(len(set(batch)) > 1 and 1 in batch for batch in which) > 25, "the long one beside"
    shown = batches.first(8)
    assert shown.captions == data.captions and len(shown.real) == 3
    assert shown.text.size.tolist() == [[128.0, 128.0]] * 3
    teacher = packed("nodes.host_model").HostModel(model, rank=2)
    x, sigma = shown.real, torch.full((3,), 0.7)
    with torch.no_grad():
        both = teacher.predict(x, sigma, shown.text)
        for i, text in enumerate(data.text):
            alone = teacher.predict(x[i : i + 1], sigma[:1], dataclasses.replace(
                text, size=shown.text.size[:1]
            ))  # fmt: skip
            near(both[i : i + 1], alone)
