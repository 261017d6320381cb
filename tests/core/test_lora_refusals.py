"""LoRA files that are damaged, or no LoRA, are one clear error."""

import pytest
import torch
from safetensors.torch import save_file

from swd_core.lora import read_lora, sd3_target

STEM = "base_model.model.transformer_blocks.0.attn.to_q"
GOOD = {f"{STEM}.lora_A.weight": torch.zeros(4, 8), f"{STEM}.lora_B.weight": torch.zeros(8, 4)}
NAN = torch.full((4, 8), float("nan"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
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
