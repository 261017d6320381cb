"""The laboratory's comparisons: ablation by steps and by the clock, shares of predicted noise."""

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scene_shards import random_teacher, shards

from swd_core.distill.trainer import Trainer
from swd_core.lab import ablation, evaluate, ways
from swd_core.lab.classifier import SceneClassifier
from swd_core.lab.latents import LatentShards
from swd_core.lab.train_student import train
from swd_core.lora_files import read_lora
from swd_core.scenes.student import SceneStudent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return shards(tmp_path, monkeypatch)


@pytest.fixture
def run(tmp_path):
    return random_teacher(tmp_path / "run")


@pytest.fixture
def measured(monkeypatch, run):
    """Small tests on random real pictures by an untrained classifier."""
    torch.manual_seed(0)
    monkeypatch.setattr(evaluate, "VARIED", 1)
    monkeypatch.setattr(evaluate, "EACH", 2)
    monkeypatch.setattr(evaluate, "ROUNDS", 2)
    for module in (evaluate, ablation):
        monkeypatch.setattr(module, "load_classifier", lambda *_: SceneClassifier().eval())

    def painter(assets, side, workers=1):
        def paint(scenes, seed):
            generator = torch.Generator().manual_seed(seed)
            small = torch.randint(0, 256, (len(scenes), 3, side // 8, side // 8),
                                  generator=generator, dtype=torch.uint8)  # fmt: skip
            return small.repeat_interleave(8, 2).repeat_interleave(8, 3)

        return paint

    for module in (evaluate, ablation):
        monkeypatch.setattr(module, "real_painter", painter)


@pytest.fixture
def begun(monkeypatch):
    """A batch each that was begun; the second one is stopped, as by SIGTERM from outside."""
    found, generate = [], Trainer._generate

    def begin_and_stop(*arguments):
        found.append(1)
        if len(found) == 2:
            signal.raise_signal(signal.SIGTERM)
        return generate(*arguments)

    monkeypatch.setattr(Trainer, "_generate", begin_and_stop)
    return found


def test_an_ablation_stopped_in_a_training_measures_nothing_and_goes_on(
    folder, run, measured, begun
):
    options = argparse.Namespace(
        assets=folder, scenes=folder, run=run, out=folder / "table.json", steps=3, train_seeds=2,
        variants=["mmd", "jump4"], count=7, new=2, batch_tokens=64, pictures=None, jobs=1,
        device="cpu", batch=4, workers=1, minutes=None,
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"then a jump, seed 0: stopped at step [12]\. The same"):
        ablation.run_ablation(options)
    assert not options.out.exists()
    rows = ablation.run_ablation(options)
    assert [(r["variant"], r["seed"], r["steps"]) for r in rows] == [
        ("jump4", 0, 3), ("mmd", 0, 3), ("mmd", 1, 3),
    ]  # fmt: skip
    before = len(begun)
    assert ablation.run_ablation(options) == rows == json.loads(options.out.read_text())
    assert len(begun) == before
    text = ablation.table(rows)
    assert text.count("\n") == 3 and "MMD alone | 2 |" in text
    values = [r["everything"][0] for r in rows[1:]]
    assert f"{sum(values) / 2:.4g} ({min(values):.4g} to {max(values):.4g})" in text


def test_by_the_clock_each_student_has_as_long_and_goes_on_where_it_was_stopped(
    folder, run, measured, begun
):
    options = argparse.Namespace(
        assets=folder, scenes=folder, run=run, out=None, steps=500, train_seeds=1, minutes=0.05,
        variants=["mmd", "prompts"], count=7, new=0, batch_tokens=64, pictures=None, jobs=1,
        device="cpu", batch=4, workers=1,
    )  # fmt: skip
    with pytest.raises(SystemExit, match="MMD alone, seed 0: stopped at step 2. The same command"):
        ablation.run_ablation(options)
    rows = ablation.run_ablation(options)
    assert [(r["variant"], r["minutes"]) for r in rows] == [("mmd", 0.05), ("prompts", 0.05)]
    assert rows[0]["steps"] > 2 and rows[1]["steps"] > 2
    before = len(begun)
    assert ablation.run_ablation(options) == rows and len(begun) == before
    assert json.loads((run / "0.05min_ablation.json").read_text()) == rows


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM ends a process at once there")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_an_ablation_in_several_processes_leaves_none_when_it_is_stopped(sign):
    """SIGTERM comes to the first process alone, Ctrl-C to all; what waits isn't begun any more."""
    script = Path(__file__).with_name("stopped_ablation.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    begun = [process.stdout.readline() for _ in range(2)]
    try:
        (process.send_signal if sign == signal.SIGTERM else partial(os.killpg, process.pid))(sign)
        more, error = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0 and len({*begun}) == 2 and not more, error
    if sign == signal.SIGTERM:
        assert "is stopped. The same command goes on from there." in error
        assert "Traceback" not in error
    for worker in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker), 0)


def test_the_variant_of_prompts_alone_sees_nothing_of_any_picture(folder, run):
    """With other pictures of the same prompts it becomes the same student, bit for bit."""
    variant = next(v for v in ablation.VARIANTS if v.name == "prompts")
    options = argparse.Namespace(batch_tokens=64)
    data, found = LatentShards(folder), []
    for name in ("a", "b"):
        config = ablation.config_of(options, variant, seed=3)
        train(data, run, variant.student, config, name, steps=6)
        found.append(read_lora(run / name).layers)
        for rows in data.latents.values():
            rows.normal_()
    a, b = found
    assert any(layer.up.abs().max() > 0 for layer in a.values())
    assert all(torch.equal(a[k].up, b[k].up) and torch.equal(a[k].down, b[k].down) for k in a)


def test_predicted_noise_is_mixed_in_where_the_size_stays(run):
    """Anew: x = (1 - s) x0 + s (eta e + sqrt(1 - eta^2) n), and e = (x - (1 - s) x0) / s."""
    (way,) = [w for w in evaluate.mixed_ways([0.6]) if w.lora == "scalewise4"]
    assert way.sides == (16, 16, 20, 20, 24, 32) and way.eta == 0.6
    model = SceneStudent.load(run, lora=None)
    text = model.encode(["a fox"])
    found = ways.generate(model, way, text, 4, range(1))
    draw, denoise, x0, e = ways.SeededNoise(4, (0,)), model.denoiser(text), None, None
    with torch.inference_mode():
        for step, (side, s) in enumerate(zip(way.sides, way.sigmas, strict=True)):
            n = draw(step, (1, 16, side, side))
            if x0 is None:
                x0 = torch.zeros_like(n)
            elif x0.shape[-1] == side:
                n = 0.6 * e + 0.8 * n
            else:
                x0 = F.interpolate(x0, (side, side), mode="bicubic")
            x = (1 - s) * x0 + s * n
            x0 = denoise(x, s)
            e = (x - (1 - s) * x0) / s
    torch.testing.assert_close(found, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "wrong"),
    [(evaluate, "--eta nan"), (evaluate, "--eta 0 1.5"), (ablation, "--minutes -1"),
     (ablation, "--minutes nan"), (ablation, "--minutes 0")],
)  # fmt: skip
def test_no_share_and_no_time_is_refused_at_once(module, wrong, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["it", str(tmp_path), *wrong.split()])
    with pytest.raises(SystemExit):
        module.main()
    assert "shares of the predicted" in (said := capsys.readouterr().err) or "no time" in said


def test_shares_of_predicted_noise_are_measured_side_by_side(folder, run, measured, monkeypatch):
    """Of the students that there are; a table that exists is gone on with."""
    out = folder / "eta.json"
    out.write_text(json.dumps({"student of 4 scale-wise steps in 6, eta 0": {"calls": 1}}))
    monkeypatch.setattr(sys, "argv", [
        "evaluate", str(folder), "--scenes", str(folder), "--run", str(run), "--count", "7",
        "--new", "0", "--eta", "0", "0.5", "--out", str(out),
    ])  # fmt: skip
    train(LatentShards(folder), run, "scalewise4", ablation.DistillConfig(batch_tokens=64),
          "scalewise4", steps=1)  # fmt: skip
    evaluate.main()
    rows = json.loads(out.read_text())
    assert list(rows) == [f"student of 4 scale-wise steps in 6, eta {eta}" for eta in (0, 0.5)]
    six = 2 * (16**2 + 20**2) + 24**2 + 32**2
    assert rows[list(rows)[0]] == {"calls": 1}
    assert rows[list(rows)[1]]["calls"] == pytest.approx(six / 32**2)
