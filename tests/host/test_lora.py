"""Published LoRAs on the host's models: PEFT around diffusers is the truth for what they do."""

import copy
import json
import struct

import pytest
import torch
from paper import TOLERANCE, empty, guided, reference_latent, relative, run_node
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ADDED = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLP = ["net.0.proj", "net.2"]
TIME = ["timestep_embedder.linear_1", "timestep_embedder.linear_2", "text_embedder.linear_1"]
NORMS = ["norm1.linear", "norm1_context.linear", "norm_out.linear"]
# Every kind of layer that the students' trainer can adapt, and all others that a LoRA may.
TARGETS = {
    "sd35-medium": [*ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "proj_out", "context_embedder"],
    "sd35-large": [*ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "proj_out", "context_embedder"],
    "flux": [
        *ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "norm.linear", "proj_mlp", "proj_out",
        "x_embedder", "context_embedder", "guidance_embedder.linear_1",
    ],
    "sdxl": [
        *ATTENTION, *MLP, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
        "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out",
        "time_embedding.linear_1", "add_embedding.linear_2",
    ],
}  # fmt: skip
SHORT = [*ATTENTION, *MLP]
CONFIGS = {
    "alpha is rank": {"r": 4, "lora_alpha": 4},
    "alpha is not rank": {"r": 4, "lora_alpha": 10},
    "rank_pattern": {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_q": 8, r".*\.1\..*to_v": 2}},
    "alpha_pattern": {"r": 4, "lora_alpha": 6, "alpha_pattern": {"to_v": 3, r".*\.1\..*to_k": 1}},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"to_k": 9}},
}
PRESET = {"sd35-medium": "sd35-medium-4", "sd35-large": "sd35-large-4", "flux": "flux-4",
          "sdxl": "sdxl-4"}  # fmt: skip


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in small.KINDS}


@pytest.fixture
def loras(pack, tmp_path, monkeypatch):
    """A models/loras folder of the host's."""
    import folder_paths

    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def publish(small, family, folder, targets, **options):
    """A random student of `family` as PEFT saves it, and the diffusers model that wears it."""
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(copy.deepcopy(small.reference(family)), config)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@torch.inference_mode()
def load(pack, model, name, strength=1.0):
    out = pack["SwDLoraLoader"].execute(model=model, lora_name=name, strength=strength)
    return out.args


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
    assert relative(ours, theirs) <= TOLERANCE


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
            "renamed adapter": {f"base_model.model.{module}.{part}.default.weight": value},
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
        folder = loras if name != "renamed adapter" else loras / "student"
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


@pytest.mark.parametrize(
    ("made_for", "loaded", "message"),
    [
        ("flux", "sd35-medium", r"made for FLUX\.1; the loaded model is SD3\.5 Medium"),
        ("flux", "sdxl", r"made for FLUX\.1; the loaded model is SDXL"),
        ("sdxl", "flux", r"made for SDXL; the loaded model is FLUX\.1"),
        ("sdxl", "sd35-large", r"made for SDXL; the loaded model is an SD3 type"),
        ("sd35-large", "flux", r"made for an SD3 type 128 wide; the loaded model is FLUX\.1"),
        ("sd35-medium", "sdxl", r"made for an SD3 type 128 wide; the loaded model is SDXL"),
        ("sd35-medium", "sd35-large", r"Only 14 of 18 layers .* no place for .*attn2"),
    ],
)
def test_another_base_is_refused_by_name(pack, small, models, loras, made_for, loaded, message):
    publish(small, made_for, loras / "student", SHORT, r=2)
    with pytest.raises(ValueError, match=message):
        load(pack, models[loaded], "student")
    assert not models[loaded].patches


@pytest.mark.parametrize(
    ("key", "width", "named"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, "SD 1"),
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_k", 320, "SD 1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 1024, "SD 1"),
        ("diffusion_model.blocks.0.self_attn.q", 1536, "Wan"),
        ("transformer.transformer_blocks.0.img_mlp.net.0.proj", 3072, "Qwen"),
        ("base_model.model.transformer_blocks.0.attn1.to_q", 1152, "PixArt"),
        ("base_model.model.encoder.layers.0.to_q", 64, "none of SD3.5, FLUX.1, SDXL"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, "text encoder"),
    ],
)
def test_loras_of_other_models_are_refused(pack, models, loras, key, width, named):
    tensors = {
        f"{key}.lora_A.weight": torch.ones(2, width),
        f"{key}.lora_B.weight": torch.ones(8, 2),
    }
    save_file(tensors, loras / "x.safetensors")
    with pytest.raises(ValueError, match=named):
        load(pack, models["sdxl"], "x.safetensors")


STEM = "base_model.model.single_transformer_blocks.1.attn.to_k"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("name", r"Only 21 of 22 .*no place for single_transformer_blocks\.9\.attn\.to_k\."),
        ("shape", r"Only 21 of 22 .*no place for single_transformer_blocks\.1\.attn\.to_k\."),
        ("other half", r"single_transformer_blocks\.1\.attn\.to_k has no matching pair"),
        ("magnitude", "neither a LoRA matrix nor an alpha"),
        ("same place", r"Only 22 of 23 .*no place for lora_unet_double_blocks_0_img_attn_proj\."),
        ("same name", r"holds the layer single_transformer_blocks\.1\.attn\.to_k twice"),
    ],
)
def test_partly_matching_file_is_refused_as_a_whole(pack, small, models, loras, damage, message):
    publish(small, "flux", loras / "student", SHORT, r=2)
    tensors = load_file(loras / "student" / "adapter_model.safetensors")
    down, up = (tensors[f"{STEM}.lora_{part}.weight"] for part in "AB")
    other = "lora_unet_double_blocks_0_img_attn_proj"
    if damage == "name":
        for part in "AB":
            moved = tensors.pop(f"{STEM}.lora_{part}.weight")
            tensors[f"{STEM.replace('.1.', '.9.')}.lora_{part}.weight"] = moved
    elif damage == "shape":
        tensors[f"{STEM}.lora_B.weight"] = up.repeat(2, 1)
    elif damage == "other half":
        del tensors[f"{STEM}.lora_A.weight"]
    elif damage == "magnitude":
        tensors[f"{STEM}.lora_magnitude_vector"] = torch.ones(4)
    elif damage == "same place":
        tensors |= {
            f"{other}.lora_down.weight": down.clone(),
            f"{other}.lora_up.weight": up.clone(),
        }
    else:
        tensors[f"{STEM}.lora_down.weight"] = down.clone()
    save_file(tensors, loras / "partly.safetensors")
    with pytest.raises(ValueError, match=message):
        load(pack, models["flux"], "partly.safetensors")
    assert not models["flux"].patches


def header(entries: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DOWN, UP = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"
ONES = struct.pack("<16f", *[1.0] * 16)
UP_F32 = entry("F32", [4, 2], 32, 64)
HOSTILE = {
    "empty": b"",
    "not safetensors": b"PK\x03\x04" + b"\0" * 100,
    "huge header": header({}, length=1 << 62),
    "header longer than the file": header({}, length=90_000_000),
    "header not JSON": struct.pack("<Q", 4) + b"{{{{",
    "overlapping": header(
        {DOWN: entry("F32", [2, 4], 0, 32), UP: entry("F32", [4, 2], 16, 48)}, ONES[:48]
    ),
    "beyond the end": header({DOWN: entry("F32", [1 << 40, 4], 0, 1 << 44)}, ONES),
    "overflowing shape": header({DOWN: entry("F32", [1 << 40, 1 << 40], 0, 32)}, ONES),
    "unknown dtype": header({DOWN: entry("F13", [2, 4], 0, 32)}, ONES[:32]),
    "4 bit": header({DOWN: entry("F4", [2, 4], 0, 4), UP: entry("F4", [4, 2], 4, 8)}, ONES[:8]),
    "6 bit": header({DOWN: entry("F6_E2M3", [2, 4], 0, 6)}, ONES[:6]),
    "integers": header({DOWN: entry("I32", [2, 4], 0, 32), UP: UP_F32}, ONES),
    "no rank": header({DOWN: entry("F32", [0, 4], 0, 0), UP: entry("F32", [4, 0], 0, 0)}),
    "numbers for matrices": header(
        {DOWN: entry("F32", [], 0, 4), UP: entry("F32", [], 4, 8)}, ONES[:8]
    ),
    "not a number": header(
        {DOWN: entry("F32", [2, 4], 0, 32), UP: UP_F32},
        ONES[:60] + struct.pack("<f", float("nan")),
    ),
    "infinite alpha": header(
        {
            DOWN: entry("F32", [1, 4], 0, 16),
            UP: entry("F32", [4, 1], 16, 32),
            f"{STEM}.alpha": entry("F32", [], 32, 36),
        },
        ONES[:32] + struct.pack("<f", float("inf")),
    ),
    "no LoRA": header({"weight": entry("F32", [4], 0, 16)}, ONES[:16]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_files_get_one_error(pack, models, loras, name):
    (loras / "bad.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        load(pack, models["flux"], "bad.safetensors")
    assert not models["flux"].patches


def test_truncated_student_gets_one_error(pack, small, models, loras):
    publish(small, "flux", loras / "student", SHORT, r=2)
    file = loras / "student" / "adapter_model.safetensors"
    whole = file.read_bytes()
    for kept in (4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="Download it again"):
            load(pack, models["flux"], "student")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[" * 100_000,
        '{"lora_alpha": 1e999}',
        '{"lora_alpha": true}',
        '{"r": "four"}',
        '{"alpha_pattern": {"(a+)+b": 3}}',
        '{"alpha_pattern": {".*.*.*.*.*": 3}}',
        '{"rank_pattern": {"(": 3}}',
        '{"rank_pattern": [1]}',
        '{"peft_type": "LOHA"}',
        '{"use_dora": true}',
    ],
    ids=lambda text: text[:20],
)
def test_unusable_config_gets_one_error(pack, small, models, loras, config):
    publish(small, "flux", loras / "student", SHORT, r=2)
    (loras / "student" / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"adapter_config\.json beside"):
        load(pack, models["flux"], "student")


def test_menu_lists_safetensors_and_peft_folders_only(pack, loras):
    for name in (
        "student/adapter_model.safetensors",
        "a.safetensors",
        "b.pt",
        "deep/in/c.safetensors",
    ):
        (loras / name).parent.mkdir(parents=True, exist_ok=True)
        (loras / name).write_bytes(b"")
    options = pack["SwDLoraLoader"].INPUT_TYPES()["required"]["lora_name"][1]["options"]
    expected = {
        "a.safetensors",
        "student/adapter_model.safetensors",
        "student",
        "deep/in/c.safetensors",
    }
    assert set(options) == expected


@pytest.mark.parametrize(
    "name", ["gone.safetensors", "../x.safetensors", "b.pt", "", "/etc/passwd"]
)
def test_only_files_under_models_loras_are_read(pack, models, loras, name):
    (loras.parent / "x.safetensors").write_bytes(b"")
    (loras / "b.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="models/loras"):
        load(pack, models["flux"], name)


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


def graph(lora: str) -> dict:
    base = {"unet_name": "swd_small.safetensors", "weight_dtype": "default"}
    student = {"model": ["1", 0], "lora_name": lora, "strength": 1.0}
    return {
        "1": {"class_type": "UNETLoader", "inputs": base},
        "2": {"class_type": "SwDLoraLoader", "inputs": student},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


def test_bad_files_end_the_graph_not_the_server(small, server):
    models = server.base / "models"
    for folder in ("diffusion_models", "loras"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    state = {k: v.clone() for k, v in small.reference("sd35-medium").state_dict().items()}
    save_file(state, models / "diffusion_models" / "swd_small.safetensors")
    publish(small, "sd35-medium", models / "loras" / "student", SHORT, r=2)
    for name in ("huge header", "overlapping", "integers", "not a number"):
        (models / "loras" / "bad.safetensors").write_bytes(HOSTILE[name])
        run = server.run(graph("bad.safetensors"))
        errors = [data for kind, data in run["status"]["messages"] if kind == "execution_error"]
        assert [e["node_type"] for e in errors] == ["SwDLoraLoader"], name
        assert "bad.safetensors" in errors[0]["exception_message"]
    run = server.run(graph("student"))
    assert run["outputs"]["3"]["text"][0].startswith("18 of 18 layers applied")
    # ComfyUI 0.3.64 leaves it to the node to check its menus.
    refused = json.dumps(server.run(graph("../../secret.safetensors")))
    assert "not in list" in refused or "There is no SwD LoRA" in refused
