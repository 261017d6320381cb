"""LoRA files that are damaged, or no LoRA, are one clear error."""

import os

import pytest
import torch
from safetensors.torch import save_file

from swd_core.lora_files import read_lora
from swd_core.lora_sd3 import sd3_target

STEM = "base_model.model.transformer_blocks.0.attn.to_q"
GOOD = {f"{STEM}.lora_A.weight": torch.zeros(4, 8), f"{STEM}.lora_B.weight": torch.zeros(8, 4)}
NAN = torch.full((4, 8), float("nan"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no LoRA layers"),
        ({"weight": torch.zeros(2)}, "no LoRA layers"),
        ({f"{STEM}.lora_A.weight": torch.zeros(4, 8)}, "no matching pair"),
        ({**GOOD, f"{STEM}.lora_B.weight": torch.zeros(8, 5)}, "no matching pair"),
        ({**GOOD, f"{STEM}.lora_A.weight": NAN}, "NaN"),
        ({**GOOD, f"{STEM}.lora_A.weight": torch.zeros(4, 8, dtype=torch.int64)}, "int64"),
        ({k.replace("transformer_blocks", "layers"): v for k, v in GOOD.items()}, "none of"),
    ],
)
def test_bad_tensors_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{STEM}.lora_magnitude_vector", "DoRA"),
        (f"{STEM}.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w2", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        (f"{STEM}.lora_B.bias", "bias"),
        ("lora_unet_x.lora_mid.weight", "LoCon"),
        ("lora_unet_x.diff_b", "weight of its own"),
        (f"{STEM}.base_layer.weight", "weight of its own"),
        ("base_model.model.proj_out.modules_to_save.weight", "weight of its own"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "neither a LoRA matrix nor an alpha"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_other_kinds_of_adapters_are_named(tmp_path, key, what, alone):
    save_file({key: torch.ones(4)} | ({} if alone else GOOD), tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as error:
        read_lora(tmp_path / "x.safetensors")
    said = str(error.value)
    assert key in said and what in said and "Load LoRA" in said


def test_two_adapters_in_one_file_are_named(tmp_path):
    both = {
        f"transformer_blocks.{block}.attn.to_q.lora_{part}.{name}.weight": GOOD[
            f"{STEM}.lora_{part}.weight"
        ].clone()
        for block, name in enumerate(("student", "fake"))
        for part in "AB"
    }
    save_file(both, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"two adapters \(fake, student\)"):
        read_lora(tmp_path / "x.safetensors")
    save_file(
        {**GOOD, f"_orig_mod.{STEM}.lora_A.weight": torch.ones(4, 8)}, tmp_path / "y.safetensors"
    )
    with pytest.raises(ValueError, match="to_q twice"):
        read_lora(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        "{", "[]", '{"lora_alpha": "high"}', '{"lora_alpha": null}', '{"lora_alpha": NaN}',
        '{"alpha_pattern": {"(": 3}}', '{"alpha_pattern": 3}', '{"alpha_pattern": {"to_q": "x"}}',
    ],
)  # fmt: skip
def test_bad_config_is_refused(tmp_path, config):
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match="adapter_config"):
        read_lora(tmp_path)


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        read_lora(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        read_lora(tmp_path)
    save_file(GOOD, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_lora(tmp_path / "x.safetensors")


def test_unknown_module_is_named():
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn\.to_z"):
        sd3_target("transformer_blocks.0.attn.to_z")


def unreadable(path, kind):
    """A pipe, a folder, or a link to what is gone, as a cleared cache leaves it."""
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: p.symlink_to("gone")}[kind](path)


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_config_that_is_there_is_not_taken_for_none(tmp_path, kind):
    """Without it alpha would be taken as the rank, perhaps a quarter of the strength."""
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    unreadable(tmp_path / "adapter_config.json", kind)
    with pytest.raises(ValueError, match=r"adapter_config\.json beside adapter_model"):
        read_lora(tmp_path)
