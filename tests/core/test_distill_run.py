"""A training that is stopped, resumed or fails: nothing is lost, one clear error."""

import json
import math
import os
import signal
import subprocess
from pathlib import Path

import distill_runs as runs
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.distill import loop, session
from swd_core.distill.checkpoint import load_checkpoint
from swd_core.distill.data import PreparedBatches
from swd_core.distill.teachers import SceneEncoder
from swd_core.distill.trainer import Trainer
from swd_core.distill.world import World
from swd_core.lora_files import read_lora


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
    assert lora.architecture == "sd3" and lora.ranks == "rank 2"
    assert json.loads(lora.metadata["swd_scales"]) == [0.5, 0.625, 0.75, 1.0]
    assert json.loads(lora.metadata["swd_sigmas"]) == [1.0, 0.8959, 0.7371, 0.6022]
    assert lora.metadata["swd_preset"] == "scenes-4"
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


def stopped_at(batch: int, place: Path, run: str, monkeypatch, **settings) -> dict:
    """The checkpoint of a training that is stopped within its batch of that number."""
    begun, generate = [], Trainer._generate

    def begin_and_stop(*arguments):
        begun.append(1)
        if len(begun) == batch:
            signal.raise_signal(signal.SIGINT)
        return generate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_generate", begin_and_stop)
        runs.train(place, run, **settings)
    assert len(begun) == batch, "no other batch is begun"
    return load_checkpoint(place / run / "checkpoint.pt")


@pytest.mark.parametrize("last", [5, 8, 9, 10])
def test_stopped_within_a_step_then_resumed_is_the_straight_run(place, monkeypatch, last):
    """A step has 9 batches here: 3 for each of two steps of the fake score, 3 for the student."""
    settings = {"accumulate": 3, "fake_steps": 2, "steps": 3}
    if not (place / "long").exists():
        runs.train(place, "long", **settings)
    run = f"halted{last}"
    saved = stopped_at(last, place, run, monkeypatch, **settings)
    done = 3 * saved["step"] + saved["fake_done"]
    assert done == last // 3, "what was done is kept"
    runs.train(place, run, resume=True, **settings)
    runs.assert_same(place / run, place / "long")


@pytest.mark.parametrize("change", [{"fake_steps": 2}, {"dmd": 0.0, "gan": 0.0}])
def test_fewer_steps_of_the_fake_score_than_are_done(place, monkeypatch, change):
    """As who stops a training to go on with the cheaper recipe meets it; to the last step."""
    run = f"fewer{len(change)}"
    saved = stopped_at(3, place, run, monkeypatch, steps=3, fake_steps=5)
    assert (saved["step"], saved["fake_done"]) == (0, 3)
    settings = runs.settings_of(place, run, **{"steps": 3, "fake_steps": 5, **change})
    session.train(settings, resume=True, changed=True)
    assert load_checkpoint(place / run / "checkpoint.pt")["step"] == 3


def test_a_changed_rate_of_the_fake_score_is_the_one_it_goes_on_with(place):
    """By how far one step moves it, which Adam's first steps do by about the rate."""
    moved = {}
    for rate in (1e-3, 1e-6):
        run = f"rate{rate}"
        runs.train(place, run, steps=1, lr_fake=1e-3)
        before = load_checkpoint(place / run / "checkpoint.pt")["fake"]
        settings = runs.settings_of(place, run, steps=2, lr_fake=rate)
        session.train(settings, resume=True, changed=True)
        after = load_checkpoint(place / run / "checkpoint.pt")["fake"]
        moved[rate] = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert moved[1e-6] < 0.01 * moved[1e-3]


def test_a_poisoned_step_is_not_saved_by_a_stop(place, monkeypatch):
    """Losses are read at a step's end; a stop within it must look at them too."""
    before = (runs.train(place, "sick", steps=1, fake_steps=3) / "checkpoint.pt").read_bytes()
    begun, generate = [], Trainer._generate

    def sick(trainer, batch, draws):
        begun.append(1)
        if len(begun) == 1:
            batch = batch._replace(real=batch.real * math.nan)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return generate(trainer, batch, draws)

    monkeypatch.setattr(Trainer, "_generate", sick)
    with pytest.raises(FloatingPointError, match="not finite"):
        runs.train(place, "sick", resume=True, steps=9, fake_steps=3)
    assert (place / "sick" / "checkpoint.pt").read_bytes() == before


def test_what_exists_is_not_overwritten(place, straight):
    with pytest.raises(ValueError, match="exists already. Give --resume"):
        runs.train(place, "straight")
    with pytest.raises(ValueError, match="no .*none/checkpoint.pt to resume"):
        runs.train(place, "none", resume=True)


@pytest.mark.skipif(os.name != "posix", reason="Windows locks no folders")
def test_two_trainings_at_once_in_one_folder_are_one(place):
    """The second is refused before it writes anything; when the first is gone, it is not."""
    first = subprocess.Popen(
        runs.command("--run", "shared", "--steps", "100000"), cwd=place, env=runs.ENVIRONMENT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen = ""
    while " 3/100000" not in seen and first.poll() is None:
        seen = (seen + first.stderr.read(1))[-40:]
    try:
        with pytest.raises(ValueError, match="Another process trains in .*shared"):
            runs.train(place, "shared", resume=True)
    finally:
        first.kill()
        first.communicate()
    done = load_checkpoint(place / "shared" / "checkpoint.pt")["step"]
    runs.train(place, "shared", resume=True, steps=done + 1)


def test_another_rank_and_a_damaged_checkpoint_are_refused(place, straight):
    other = runs.changed(runs.settings_of(place, "straight"), "model", rank=3)
    with pytest.raises(ValueError, match="rank was 2, is 3"):
        session.train(other, resume=True)
    (place / "bad").mkdir()
    whole = (straight / "checkpoint.pt").read_bytes()
    (place / "bad" / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="can't be read"):
        runs.train(place, "bad", resume=True)


def test_time_that_nobody_counted_is_not_told(place, caplog):
    """Hours of training were resumed as 0.0 min of it."""
    runs.train(place, "timed", steps=1)
    with caplog.at_level("INFO"):
        runs.train(place, "timed", resume=True, steps=2)
    assert "resumed at step 1" in caplog.messages


def test_data_of_another_schedule_is_refused(place):
    settings = runs.settings_of(place, "other")
    schedule = {"scales": [0.5, 1.0], "sigmas": [1.0, 0.7]}
    with pytest.raises(ValueError, match=r"prepared for the scales \[0.5, 0.625.*prepare again"):
        session.train(runs.changed(settings, "schedule", **schedule))
    with pytest.raises(FileNotFoundError, match="Nothing is prepared"):
        session.train(runs.changed(settings, "data", prepared=str(place / "nowhere")))
    assert not (place / "other").exists()


def test_data_of_another_size_is_refused(place):
    """An edited size was taken no notice of: the training went on with what was prepared."""
    settings = runs.changed(runs.settings_of(place, "sized"), "data", size=48)
    with pytest.raises(ValueError, match=r"with \[data\] size 64, and it is 48 now\. Run prepare"):
        session.train(settings)
    assert not (place / "sized").exists()


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


def test_a_disk_that_is_full_from_the_beginning_has_nothing_to_resume(place):
    """What the error says to do is what goes on."""
    limit = "trap '' XFSZ; ulimit -f 1; exec \"$@\""
    again = runs.command("--run", "none yet", "--steps", "2")
    done = subprocess.run(
        ["bash", "-c", limit, "bash", *again], cwd=place, env=runs.ENVIRONMENT,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "can't be saved" in last
    assert last.endswith("make room and run again.")
    done = subprocess.run(again, cwd=place, env=runs.ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    trainer, other = (session.build_trainer(runs.settings_of(place), World()) for _ in range(2))
    seen, alone = batches_of(trainer), batches_of(other)
    for _ in range(3):
        trainer.train_step()
    other.step = 2
    other.train_step()
    each = trainer.fake_steps + 1
    third, first = seen[2 * each : 3 * each], seen[:each]
    assert all(torch.equal(a, b) for a, b in zip(third, alone[:each], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(third, first, strict=True))


def batches_of(trainer: Trainer) -> list[torch.Tensor]:
    """What a trainer draws from now on: the latents of its batches."""
    draw, seen = trainer.batches.draw, []

    def watched(*arguments):
        drawn = draw(*arguments)
        seen.append(drawn[0])
        return drawn

    trainer.batches.draw = watched
    return seen


def test_the_losses_look_at_the_block_that_the_config_names(place):
    """Of the embedded teacher as of every other: its own output, seen by a hook of the test's."""
    for block, wanted in ((-1, 0), (0, 0), (1, 1)):
        settings = runs.changed(runs.settings_of(place), "model", block=block)
        trainer = session.build_trainer(settings, World())
        model, device = trainer.model, trainer.device
        x, sigma = torch.randn(2, 16, 8, 8, device=device), torch.full((2,), 0.5, device=device)
        text = SceneEncoder(Path(settings.model.base)).text(["a", "b"]).sent(device)
        left: list[torch.Tensor] = []

        def keep(block, given, output, left=left):
            left.append(output[1])  # (text, picture)

        model.module.joint_blocks[wanted].register_forward_hook(keep)
        tokens = model.features(x, sigma, text)
        assert torch.equal(tokens, left[0])
    for block in (2, 99):
        with pytest.raises(ValueError, match=f"Block {block} does not exist: .* 0 to 1"):
            session.build_trainer(runs.changed(settings, "model", block=block), World())


def test_no_batch_is_drawn_that_nothing_is_trained_with(place, monkeypatch):
    drawn, draw = [], PreparedBatches.draw

    def watched(batches, *arguments):
        drawn.append(arguments)
        return draw(batches, *arguments)

    monkeypatch.setattr(PreparedBatches, "draw", watched)
    runs.train(place, "exact", steps=3, accumulate=2, fake_steps=2)
    assert len(drawn) == 3 * 2 * (2 + 1)


def test_the_loop_alone_leaves_signals_to_others(place):
    """Inside ComfyUI they are the host's."""
    settings = runs.settings_of(place, steps=2)
    trainer, before = session.build_trainer(settings, World()), signal.getsignal(signal.SIGINT)
    done = []

    def each(step):
        assert signal.getsignal(signal.SIGINT) is before
        done.append((step, trainer.step, trainer.optimiser.param_groups[0]["lr"]))

    loop.train(
        trainer,
        lambda: trainer.step / 2,
        settings.train.decay,
        each=each,
        due=lambda step: step == 1,
        save=lambda: done.append("saved"),
        between=lambda: None,
    )
    assert done == [(1, 1, 0.5e-3), "saved", (2, 2, 1e-3), "saved"]


def test_resuming_fills_the_trainers_own_tensors(place, straight):
    """The average too: a checkpoint knows nothing of this process's graphics card."""
    trainer = session.build_trainer(runs.settings_of(place), World())
    tensors = [*trainer.student, *trainer.fake, *trainer.average]
    places = [t.data_ptr() for t in tensors]
    session.restore(trainer, straight / "checkpoint.pt")
    assert [t.data_ptr() for t in (*trainer.student, *trainer.fake, *trainer.average)] == places
    saved = load_checkpoint(straight / "checkpoint.pt")["average"]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(trainer.average, saved, strict=True))
