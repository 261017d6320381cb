"""A training that is stopped, resumed or fails: nothing is lost, one clear error."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.distill import session
from swd_core.lora import read_lora

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_weights) -> Path:
    return runs.make_place(tmp_path_factory.mktemp("distill"), random_weights)


@pytest.fixture(scope="module")
def straight(place) -> Path:
    """The run that nothing happens to."""
    return runs.train(place, "straight")


def test_the_run_leaves_a_student_that_the_pack_reads(straight):
    assert [line["step"] for line in runs.losses(straight)] == list(range(1, runs.STEPS + 1))
    lora = read_lora(straight / "swd_lora")
    assert lora.family == "sd3" and lora.ranks == "rank 2"
    assert json.loads(lora.metadata["swd_scales"]) == [0.5, 0.625, 0.75, 1.0]
    assert json.loads(lora.metadata["swd_sigmas"]) == [1.0, 0.8959, 0.7371, 0.6022]
    assert lora.metadata["swd_preset"] == "emoji-4"
    assert any(layer.up.abs().max() > 0 for layer in lora.layers.values())


def test_terminated_then_resumed_is_the_straight_run(place, straight):
    """SIGTERM ends the step, saves, and says how to go on."""
    process = subprocess.Popen(
        runs.command("--run", "stopped"), cwd=place, env=runs.ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen = ""
    while f" 1/{runs.STEPS}" not in seen and process.poll() is None:
        seen = (seen + process.stderr.read(1))[-40:]
    process.terminate()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "--resume goes on" in out, err
    assert 0 < runs.losses(place / "stopped")[-1]["step"] < runs.STEPS
    runs.assert_same(runs.train(place, "stopped", resume=True), straight)


def test_what_exists_is_not_overwritten(place, straight):
    with pytest.raises(ValueError, match="exists already. Give --resume"):
        runs.train(place, "straight")
    with pytest.raises(ValueError, match="no .*none/checkpoint.pt to resume"):
        runs.train(place, "none", resume=True)


def test_another_rank_and_a_damaged_checkpoint_are_refused(place, straight):
    other = runs.changed(runs.settings_of(place, "straight"), "model", rank=3)
    with pytest.raises(ValueError, match="another model or rank"):
        session.train(other, resume=True)
    (place / "bad").mkdir()
    whole = (straight / "checkpoint.pt").read_bytes()
    (place / "bad" / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="can't be read"):
        runs.train(place, "bad", resume=True)


def test_data_of_another_schedule_is_refused(place):
    settings = runs.settings_of(place, "other")
    schedule = {"scales": [0.5, 1.0], "sigmas": [1.0, 0.7]}
    with pytest.raises(ValueError, match=r"prepared for the scales \[0.5, 0.625.*prepare again"):
        session.train(runs.changed(settings, "schedule", **schedule))
    with pytest.raises(FileNotFoundError, match="Nothing is prepared"):
        session.train(runs.changed(settings, "data", prepared=str(place / "nowhere")))
    assert not (place / "other").exists()


def test_a_full_disk_keeps_the_checkpoint_before(place):
    """A limit on the size of files stands in for the full disk; the command says it in a line."""
    runs.train(place, "full", steps=2)
    before = (place / "full" / "checkpoint.pt").read_bytes()
    limit = f"trap '' XFSZ; ulimit -f {len(before) // 2048}; exec \"$@\""
    again = ["bash", "-c", limit, "bash", *runs.command("--run", "full", "--resume")]
    done = subprocess.run(
        again, cwd=place, env=runs.ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ")
    assert "can't be saved" in last and "--resume" in last
    assert (place / "full" / "checkpoint.pt").read_bytes() == before
    assert not (place / "full" / "checkpoint.tmp").exists()


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(place):
    before = (runs.train(place, "nan", steps=4) / "checkpoint.pt").read_bytes()
    poisoned = place / "poisoned"
    poisoned.mkdir()
    for file in (place / "prepared").iterdir():
        (poisoned / file.name).write_bytes(file.read_bytes())
    for shard in poisoned.glob("*x*-*.safetensors"):
        with safe_open(shard, "pt") as opened:
            header = opened.metadata()
        tensors = {k: torch.full_like(v, torch.nan) for k, v in load_file(shard).items()}
        save_file(tensors, shard, header)
    settings = runs.changed(runs.settings_of(place, "nan"), "data", prepared=str(poisoned))
    with pytest.raises(FloatingPointError, match="not finite at step 4 .*resume"):
        session.train(settings, resume=True)
    assert (place / "nan" / "checkpoint.pt").read_bytes() == before


def test_accumulated_batches_and_bfloat16_train(place):
    run = runs.train(place, "accumulated", steps=2, accumulate=3, autocast=True)
    assert all(np.isfinite(list(line.values())).all() for line in runs.losses(run))


def test_randomness_of_a_step_depends_on_the_step_alone(place):
    config = runs.settings_of(place).train
    draws = [session.seeded(config, step).random() for step in range(50)]
    assert draws == [session.seeded(config, step).random() for step in range(50)]
    assert len(set(draws)) == 50
