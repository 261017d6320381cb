"""A training from prompts alone: no picture is there, the student's own chain gives its inputs."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from swd_core.commands import main
from swd_core.distill import session
from swd_core.distill.config import parse_settings
from swd_core.distill.data import PreparedBatches
from swd_core.distill.draws import Draws
from swd_core.distill.teachers import EmojiEncoder
from swd_core.distill.world import World

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

PROMPTS = ["red apple", "happy dog", "rocket"]


@pytest.fixture
def place(tmp_path, random_weights, monkeypatch) -> Path:
    text = runs.CONFIG.format(weights=random_weights, device="cpu", steps=4, folder=tmp_path)
    text = text.replace('"pictures"', '"prompts.txt"').replace(
        "batch_tokens", "mmd = 0.0\ngan = 0.0\nbatch_tokens"
    )
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "", ""]))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--config", "config.toml"]) == 0
    return tmp_path


def test_prepared_are_the_prompts_in_their_order_and_nothing_else(place, random_weights):
    (shard,) = (place / "prepared").glob("64x64-*.safetensors")
    tensors, text = load_file(shard), EmojiEncoder(random_weights).text(PROMPTS)
    assert tensors.keys() == {"context", "pooled"}
    assert torch.equal(tensors["context"], text.context.half())
    assert torch.equal(tensors["pooled"], text.pooled.half())
    assert PreparedBatches(place / "prepared").first(2).captions == ("red apple", "happy dog")


def test_what_the_student_sees_is_what_it_made_itself(place):
    """Noise at first; then x0 of the step before, enlarged and noised again: as it is sampled."""
    trainer = session.build_trainer(runs.settings_of(place), World())
    steps = trainer.batches.steps(Draws(0).rng)
    seen, predict = [], trainer.model.predict

    def watched(x, sigma, text):
        x0 = predict(x, sigma, text)
        seen.append((x.detach(), float(sigma[0]), x0.detach()))
        return x0

    trainer.model.predict = watched
    trainer._generate(steps, Draws(3))
    assert [sigma for _, sigma, _ in seen] == pytest.approx([s.sigma for s in steps])
    first = seen[0][0]
    assert abs(float(first.mean())) < 0.1 and float(first.std()) == pytest.approx(1, abs=0.1)
    for (_, _, before), (x, sigma, _) in zip(seen, seen[1:], strict=False):
        if before.shape != x.shape:
            before = F.interpolate(before, size=x.shape[-2:], mode="bicubic")
        noise = (x - (1 - sigma) * before) / sigma
        assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.1)


def test_it_trains_shows_samples_and_goes_on_as_if_uninterrupted(place):
    assert main(["distill", "--config", "config.toml"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--steps", "2"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--resume"]) == 0
    whole, halved = (
        load_file(place / run / "swd_lora" / "adapter_model.safetensors")
        for run in ("run", "halved")
    )
    assert all(torch.equal(value, halved[key]) for key, value in whole.items())
    assert any(value.abs().max() > 0 for key, value in whole.items() if "lora_B" in key)
    assert (place / "run" / "samples" / "step_000004.png").is_file()
    names = {name for line in runs.losses(place / "run") for name in line}
    assert {"dmd", "fake"} <= names and not {"mmd", "gan"} & names


@pytest.mark.parametrize("name", ["mmd", "gan", "regression"])
def test_losses_that_compare_with_pictures_are_refused(name):
    data = {
        "model": {"family": "emoji"}, "data": {"source": "prompts.txt"},
        "train": {"mmd": 0.0, "gan": 0.0, name: 0.5},
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"prompts alone, and .train. {name} compare"):
        parse_settings(data)


def test_there_are_no_pictures_to_make(place, capsys):
    assert main(["sample-teacher", "--config", "config.toml"]) == 2
    assert "prompts alone, so there are no pictures to make" in capsys.readouterr().err


def test_no_prompts_are_refused(place, capsys):
    (place / "prompts.txt").write_text("\n\n")
    assert main(["prepare", "--config", "config.toml"]) == 2
    assert "holds no prompts" in capsys.readouterr().err
