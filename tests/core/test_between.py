"""Averages of two students: what their layers are, read by the pack itself."""

import sys

import pytest
import torch

from swd_core.lab import between
from swd_core.lora import LoraLayer
from swd_core.lora_files import read_lora, write_peft


def student(folder, seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(s, generator=generator) for s in ((rank, 6), (8, rank)))
    layers = {"transformer_blocks.0.attn.to_q": LoraLayer(down, up, 1.0)}
    header = {"swd_preset": "scenes-4", "swd_step": str(seed)}
    write_peft(folder, layers, rank=rank, alpha=rank, base_model="x", metadata=header)
    return read_lora(folder)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_average_lies_between_the_two(tmp_path, monkeypatch, share):
    one, other = student(tmp_path / "one", 1), student(tmp_path / "other", 2)
    monkeypatch.setattr(sys, "argv", [
        "between", str(tmp_path / "one"), str(tmp_path / "other"),
        "--share", str(share), "--out", str(tmp_path / "new"),
    ])  # fmt: skip
    between.main()
    new = read_lora(tmp_path / "new")
    assert new.metadata["swd_average"].endswith(f"{share:g} of the one described here")
    for name, layer in new.layers.items():
        for part in ("down", "up"):
            a, b = (getattr(s.layers[name], part).float() for s in (one, other))
            wanted = a + share * (b - a)
            assert torch.allclose(getattr(layer, part).float(), wanted, atol=2e-3)
    assert (tmp_path / "new" / "adapter_config.json").read_bytes() == (
        tmp_path / "other" / "adapter_config.json"
    ).read_bytes()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(tmp_path, share):
    for name, seed in (("one", 1), ("other", 2)):
        student(tmp_path / name, seed)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        between.average(tmp_path / "one", tmp_path / "other", share, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_students_of_other_ranks_are_refused(tmp_path):
    student(tmp_path / "one", 1, rank=2)
    student(tmp_path / "other", 2, rank=3)
    with pytest.raises(ValueError, match="have other tensors"):
        between.average(tmp_path / "one", tmp_path / "other", 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()
