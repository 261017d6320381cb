"""Several processes of `accelerate launch`, and a training killed at random moments."""

import importlib.util
import multiprocessing
import random
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from swd_core.distill import session

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_weights) -> Path:
    return runs.make_place(tmp_path_factory.mktemp("distill"), random_weights)


def in_a_process(place: Path, run: str, resume: bool = False) -> BaseProcess:
    """Trains in a process forked from a clean one.

    Not from this one: OpenMP's threads, which earlier tests have started, do not survive a fork,
    and the child would wait for them for ever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["swd_core.distill.session"])
    process = context.Process(
        target=session.train, args=(runs.settings_of(place, run),), kwargs={"resume": resume}
    )
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """The exit code of a training that should end by itself; None where it hangs."""
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def test_killed_at_ten_random_moments(place):
    """kill -9 leaves no damaged file, and the losses in the end are those of a straight run."""
    assert ended(in_a_process(place, "straight")) == 0
    rng, killed = random.Random(0), 0
    checkpoint = place / "killed" / "checkpoint.pt"
    while killed < 10:
        process = in_a_process(place, "killed", checkpoint.is_file())
        process.join(timeout=rng.uniform(0.05, 1.2))
        if process.exitcode is not None:
            assert process.exitcode == 0, "a resumed run must not fail"
            break
        process.kill()
        process.join()
        killed += 1
    assert killed > 0
    assert ended(in_a_process(place, "killed", checkpoint.is_file())) == 0
    runs.assert_same(place / "killed", place / "straight")


def test_two_processes_are_one_with_the_doubled_batch(place):
    """144 patches make whole numbers of pictures at every size of the schedule."""
    pytest.importorskip("accelerate")
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace("batch_tokens = 16", "batch_tokens = 144"))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # gloo: no GPU
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    arguments = runs.command("--run", "pair", "--steps", "3")[2:]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", *arguments],
        cwd=place, env=runs.ENVIRONMENT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pair = runs.losses(place / "pair")
    single = runs.losses(runs.train(place, "one", steps=3, batch_tokens=288))
    assert len(pair) == len(single) == 3
    for a, b in zip(pair, single, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-5)
