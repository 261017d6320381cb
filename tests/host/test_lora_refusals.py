"""LoRA files that must not be applied: another base, half a student, damaged or hostile bytes."""

import json
import struct

import pytest
import torch
from lora_files import SHORT, load, publish
from safetensors.torch import load_file, save_file


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
        ("magnitude", "a DoRA's scale"),
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
        '{"alpha_pattern": {"' + "(.|.)" * 30 + '": 3}}',
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
