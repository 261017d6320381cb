"""Published LoRAs on the host's models: PEFT around diffusers is the truth for what they do."""

import copy

import pytest
import torch
from lora_files import ADDED, ATTENTION, MLP, SHORT, TARGETS, load, peft, publish
from paper import HALF, empty, guided, reference_latent, relative, run_node
from safetensors.torch import load_file, save_file

CONFIGS = {
    "alpha is rank": {"r": 4, "lora_alpha": 4},
    "alpha is not rank": {"r": 4, "lora_alpha": 10},
    "rank_pattern": {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_q": 8, r".*\.1\..*to_v": 2}},
    "alpha_pattern": {"r": 4, "lora_alpha": 6, "alpha_pattern": {"to_v": 3, r".*\.1\..*to_k": 1}},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"to_k": 9}},
}
PRESET = {"sd35-medium": "sd35-medium-4", "sd35-large": "sd35-large-4", "flux": "flux-4",
          "sdxl": "sdxl-4"}  # fmt: skip


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("config", CONFIGS)
def test_student_on_the_host_is_peft_on_diffusers(pack, small, models, loras, family, config):
    wrapped = publish(small, family, loras / "student", TARGETS[family], **CONFIGS[config])
    model, report = load(pack, models[family], "student")
    count = len(load_file(loras / "student" / "adapter_model.safetensors")) // 2
    assert report.startswith(f"{count} of {count} layers applied\n")
    assert "alpha from adapter_config.json" in report
    cond, preset = guided(small, family), PRESET[family]
    ours = run_node(pack, model, preset, empty(128, 96), cond)
    theirs = reference_latent(small, preset, 128, 96, cond, net=wrapped.base_model.model)
    bare = reference_latent(small, preset, 128, 96, cond)
    assert relative(bare, theirs) > 0.01, "the student does something"
    assert relative(ours, theirs) <= HALF


def patched(model) -> dict[str, torch.Tensor]:
    """The weights that a LoRA changes, as the host works them out."""
    import comfy.lora
    import comfy.utils

    weights = {key: comfy.utils.get_attr(model.model, key).clone() for key in model.patches}
    return {k: comfy.lora.calculate_weight(model.patches[k], w, k) for k, w in weights.items()}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-6) for key in ours
    )


def layouts(family: str, peft_file, config) -> dict[str, dict[str, torch.Tensor]]:
    """A PEFT file's layers as other tools write them; those need alpha as a tensor."""
    written: dict[str, dict[str, torch.Tensor]] = {}
    prefix = "unet" if family == "sdxl" else "transformer"
    flat = "lora_unet" if family == "sdxl" else "lora_transformer"
    for key, value in load_file(peft_file).items():
        module, part, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
        down, rank = part == "lora_A", value.shape[0 if part == "lora_A" else 1]
        alpha = torch.tensor(float(config["lora_alpha"]) / config["r"] * rank)
        way = "down" if down else "up"
        dotted, underscored = f"{prefix}.{module}", f"{flat}_{module.replace('.', '_')}"
        for name, tensors in {
            "diffusers": {f"{dotted}.{part}.weight": value, f"{dotted}.alpha": alpha},
            "older diffusers": {f"{dotted}.lora.{way}.weight": value, f"{dotted}.alpha": alpha},
            "kohya": {f"{underscored}.lora_{way}.weight": value, f"{underscored}.alpha": alpha},
            "renamed adapter": {f"base_model.model.{module}.{part}.swd.weight": value},
            "compiled": {f"_orig_mod.base_model.model.{module}.{part}.weight": value},
            "bare": {f"diffusion_model.{module}.{part}": value, f"{dotted}.alpha": alpha},
        }.items():
            written.setdefault(name, {}).update(tensors)
    return written


@pytest.mark.parametrize("family", TARGETS)
def test_other_tools_layouts_do_the_same(pack, small, models, loras, family):
    config = {"r": 4, "lora_alpha": 6}
    publish(small, family, loras / "student", TARGETS[family], **config)
    file = loras / "student" / "adapter_model.safetensors"
    expected = patched(load(pack, models[family], "student")[0])
    for name, tensors in layouts(family, file, config).items():
        folder = loras / "student" if name in ("renamed adapter", "compiled") else loras
        save_file(tensors, folder / f"{name}.safetensors")
        model, report = load(
            pack, models[family], f"{folder.relative_to(loras)}/{name}.safetensors"
        )
        assert same(patched(model), expected), name
        assert "layers applied" in report


FUSED = {
    "sd35-medium": (
        "joint_blocks.0.x_block.attn2.qkv",
        {f"transformer_blocks.0.attn2.to_{part}": 128 for part in "qkv"},
    ),
    "flux": (
        "single_blocks.1.linear1",
        {
            **{f"single_transformer_blocks.1.attn.to_{part}": 256 for part in "qkv"},
            "single_transformer_blocks.1.proj_mlp": 1024,
        },
    ),
}


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("layout", ["kohya", "dotted"])
def test_host_named_fused_layers_do_the_same(pack, models, loras, family, layout):
    """kohya's own SD3 and FLUX files adapt the fused layer that PEFT sees as three or four."""
    layer, parts = FUSED[family]
    down, up = torch.randn(4, next(iter(parts.values()))), torch.randn(sum(parts.values()), 4)
    separate = {}
    for name, rows in zip(parts, up.split(list(parts.values())), strict=True):
        separate[f"base_model.model.{name}.lora_A.weight"] = down.clone()
        separate[f"base_model.model.{name}.lora_B.weight"] = rows.clone()
    kohya = layout == "kohya"
    stem = f"lora_unet_{layer.replace('.', '_')}" if kohya else f"diffusion_model.{layer}"
    ways = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    fused = {f"{stem}.{way}.weight": w for way, w in zip(ways, (down, up), strict=True)}
    save_file(separate, loras / "separate.safetensors")
    save_file(fused, loras / "fused.safetensors")
    theirs, report = load(pack, models[family], "separate.safetensors")
    count = len(parts)
    assert report.startswith(f"{count} of {count}") and "alpha = rank" in report
    ours, report = load(pack, models[family], "fused.safetensors")
    assert report.startswith("1 of 1") and same(patched(ours), patched(theirs))


def test_host_named_sdxl_layers_do_the_same(pack, small, models, loras):
    """kohya's SDXL files use the original UNet's names."""
    import comfy.utils

    publish(small, "sdxl", loras / "student", TARGETS["sdxl"], r=4, lora_alpha=4)
    names, tensors = comfy.utils.unet_to_diffusers(small.SDXL_CONFIG), {}
    for key, value in load_file(loras / "student" / "adapter_model.safetensors").items():
        module, part, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
        flat = names[f"{module}.weight"].removesuffix(".weight").replace(".", "_")
        way = "lora_down" if part == "lora_A" else "lora_up"
        tensors[f"lora_unet_{flat}.{way}.weight"] = value
    save_file(tensors, loras / "kohya.safetensors")
    ours, _ = load(pack, models["sdxl"], "kohya.safetensors")
    assert same(patched(ours), patched(load(pack, models["sdxl"], "student")[0]))


@pytest.mark.parametrize("family", ["sd35-medium", "flux"])
def test_file_of_diffusers_own_pipeline_keeps_its_alpha(pack, small, models, loras, family):
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata

    pipeline = {"sd35-medium": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[family]
    torch.manual_seed(2)
    module = copy.deepcopy(small.reference(family))
    module.add_adapter(
        peft.LoraConfig(target_modules=SHORT, init_lora_weights=False, r=4, lora_alpha=10)
    )
    getattr(diffusers, pipeline).save_lora_weights(
        loras, peft.get_peft_model_state_dict(module), weight_name="theirs.safetensors",
        **_collate_lora_metadata({"transformer": module}),
    )  # fmt: skip
    ours, report = load(pack, models[family], "theirs.safetensors")
    assert "alpha from the file" in report
    publish(small, family, loras / "student", SHORT, r=4, lora_alpha=10)
    assert same(patched(ours), patched(load(pack, models[family], "student")[0]))


def test_strength_scales_and_zero_bypasses(pack, small, models, loras):
    publish(small, "flux", loras / "student", SHORT, r=4, lora_alpha=8)
    base = models["flux"]
    full, half = (patched(load(pack, base, "student", s)[0]) for s in (1.0, 0.5))
    assert not base.patches, "the loaded model itself stays as it is"
    for key, value in full.items():
        weight = base.model.state_dict()[key]
        torch.testing.assert_close(half[key], (weight + value) / 2)
    (loras / "broken.safetensors").write_bytes(b"nothing")
    model, report = load(pack, base, "broken.safetensors", 0.0)
    assert model is base and "ypass" in report


def test_a_neighbours_config_is_not_taken_for_ones_own(pack, small, models, loras):
    """All published students are called alike, so people put renamed ones side by side."""
    publish(small, "flux", loras, SHORT, r=8, lora_alpha=4)
    publish(small, "sd35-medium", loras / "other", SHORT, r=4, lora_alpha=4)
    (loras / "other" / "adapter_model.safetensors").rename(loras / "medium.safetensors")
    _, report = load(pack, models["sd35-medium"], "medium.safetensors")
    assert "alpha = rank" in report
    _, report = load(pack, models["flux"], "adapter_model.safetensors")
    assert "alpha from adapter_config.json" in report
    (loras / "medium.safetensors").rename(loras / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_config\.json .* other ranks"):
        load(pack, models["sd35-medium"], "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["sd35-medium", "flux"])
def test_student_on_fp8_weights(pack, small, loras, family):
    """The host rounds patched fp8 weights; what comes out is as near as the fp8 base itself is."""
    publish(small, family, loras / "student", SHORT, r=4, lora_alpha=4)
    cond = guided(small, family)

    def run(dtype, lora):
        model = small.host_model(family, dtype)
        model = load(pack, model, "student")[0] if lora else model
        return run_node(pack, model, PRESET[family], empty(128, 96), cond)

    error = [relative(run(torch.float8_e4m3fn, lora), run(torch.float32, lora)) for lora in (0, 1)]
    assert error[1] <= 2 * error[0] < 1


TRAINER = {  # what the authors' trainer adapts, for each base
    "sd35-medium": [*ATTENTION, *ADDED, *MLP],
    "sd35-large": [*ATTENTION, *ADDED, *MLP],
    "flux": [*ATTENTION, *ADDED, *MLP, "proj_mlp", "proj_out", "norm.linear", "norm1.linear"],
    "sdxl": [*ATTENTION, *MLP, "conv1", "conv2", "proj_in", "proj_out", "time_emb_proj"],
}
TITLES = {
    "sd35-medium": "SD3.5 Medium",
    "sd35-large": "SD3.5 Large",
    "flux": "FLUX.1",
    "sdxl": "SDXL",
}


def published_shapes(module, targets) -> dict[str, torch.Tensor]:
    """A rank-1 PEFT file for the full-size base: real names and shapes, few bytes."""
    tensors = {}
    for name, layer in module.named_modules():
        if any(name == t or name.endswith(f".{t}") for t in targets) and hasattr(layer, "weight"):
            rows, *rest = layer.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(1, *rest).half()
            up = torch.ones(rows, 1, *(1 for _ in rest[1:])).half()
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
    return tensors


@pytest.mark.parametrize("family", TITLES)
def test_full_size_students_fit_their_base_and_no_other(pack, small, loras, family):
    module, base = small.full_size(family)
    tensors = published_shapes(module, TRAINER[family])
    save_file(tensors, loras / "student.safetensors")
    model, report = load(pack, base, "student.safetensors")
    count = len(tensors) // 2
    assert report.startswith(
        f"{count} of {count} layers applied\nMade for {TITLES[family]}, rank 1"
    )
    assert sum(len(patches) for patches in model.patches.values()) == count > 150
    for other in set(TITLES) - {family}:
        message = f"made for {TITLES[family]}; the loaded model is {TITLES[other]}".replace(
            ".", r"\."
        )
        with pytest.raises(ValueError, match=message):
            load(pack, small.full_size(other)[1], "student.safetensors")


def test_packed_weights_are_measured_by_their_real_shape(pack, small, loras):
    """Quantised layers (GGUF, 4 bit) put their packed storage, of other shape, into state dicts."""
    publish(small, "flux", loras / "student", SHORT, r=2)
    model = small.host_model("flux")
    layer = model.model.diffusion_model.double_blocks[0].img_mlp[0]

    def pack_weight(module, state, prefix, _):
        state[f"{prefix}weight"] = state[f"{prefix}weight"][:, ::2].to(torch.uint8)

    layer._register_state_dict_hook(pack_weight)
    _, report = load(pack, model, "student")
    assert report.startswith("22 of 22")
