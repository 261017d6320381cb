"""Several processes of `accelerate launch`, and a training killed at random moments."""

import contextlib
import importlib.util
import multiprocessing
import random
import re
import shutil
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swd_core.commands import main
from swd_core.distill import session
from swd_core.distill.config import read_settings
from swd_core.distill.prepare import prepare
from swd_core.distill.teachers import load_encoder

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)


_models = importlib.util.spec_from_file_location(
    "distill_pipelines", Path(__file__).with_name("distill_pipelines.py")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_weights) -> Path:
    return runs.make_place(tmp_path_factory.mktemp("distill"), random_weights, "cpu")


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
    launched(place, "--multi_gpu")  # gloo: no GPU
    compare(place / "pair", runs.train(place, "one", steps=3, batch_tokens=288))


def test_two_processes_are_one_where_the_teacher_makes_the_pictures_meanwhile(
    tmp_path, random_weights
):
    pytest.importorskip("accelerate")
    text = runs.CONFIG.format(weights=random_weights, device="cpu", steps=3, folder=tmp_path)
    text = text.replace('"pictures"', '"prompts.txt"').replace("tokens = 16", "tokens = 144")
    teacher = "[teacher]\npool = 20\npool_steps = 2\npool_renewed = 18\n"
    (tmp_path / "config.toml").write_text(text + teacher)
    (tmp_path / "prompts.txt").write_text("red apple\nhappy dog\nrocket\n")
    with contextlib.chdir(tmp_path):
        assert main(["prepare", "--config", "config.toml"]) == 0
    launched(tmp_path, "--multi_gpu")
    compare(tmp_path / "pair", runs.train(tmp_path, "one", steps=3, batch_tokens=288))


def alone_with_the_doubled_batch(name: str, folder: Path) -> Path:
    """A prepared training of a small diffusers model from the disk, already run in one process."""
    for package in ("accelerate", "diffusers", "transformers"):
        pytest.importorskip(package)
    small = importlib.util.module_from_spec(_models)
    _models.loader.exec_module(small)
    place = small.make_place(name, folder, "cpu")
    text = (place / "config.toml").read_text().replace("batch_tokens = 16", "batch_tokens = 144")
    (place / "config.toml").write_text(text)
    (place / "pictures").mkdir()
    for i, prompt in enumerate(small.PROMPTS):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{i}.png")
        (place / "pictures" / f"{i}.txt").write_text(prompt)
    with contextlib.chdir(place):
        settings = read_settings(Path("config.toml"))
        encoder = load_encoder(settings, torch.device("cpu"))
        prepare(Path("pictures"), Path("prepared"), encoder, settings.scale_schedule(), 64)
        alone = runs.changed(settings, "train", batch_tokens=288)
        session.train(runs.changed(alone, "output", run="one"))
    return place


def test_two_processes_are_one_for_a_model_that_reads_a_language_models_tokens(tmp_path):
    """Of its prompts each has as many tokens as it has: a process's own rows may be shorter."""
    place = alone_with_the_doubled_batch("zimage", tmp_path)
    launched(place, "--multi_gpu")
    compare(place / "pair", place / "one")


def test_two_processes_that_share_the_weights_are_one_with_the_doubled_batch(tmp_path):
    """FSDP, with checkpointing."""
    place = alone_with_the_doubled_batch("sd3", tmp_path)
    written = launched(place, "--use_fsdp", "--fsdp_version", "2")
    spread, processes, each = map(int, re.search(SPREAD, written).groups())
    assert processes == 2 and spread > each
    compare(place / "pair", place / "one")


def shared(place: Path, *arguments: str) -> None:
    """A command in two processes of `accelerate launch`."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "swd_core", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        cwd=place, env=runs.ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


MAKING = """
[model]
family = "scenes"
base = '{weights}'
device = "cpu"
[teacher]
prompts = "{folder}/prompts.txt"
steps = 2
guidance = 3.0
batch = 3
[data]
source = "{folder}/pictures"
prepared = "{folder}/prepared"
size = 64
shard_size = 2
"""


def killed_on_its_way(command: str, config: Path, made: Path, moments: list[int]) -> None:
    """Runs a command again and again, killed when so many files of `made` are there, then whole."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["swd_core.distill.session"])
    there: dict[Path, int] = {}
    for files in [*moments, None]:
        process = context.Process(target=main, args=([command, "--config", str(config)],))
        process.start()
        while files is not None and process.exitcode is None:
            process.join(timeout=0.01)
            if made.is_dir() and len(list(made.glob("[0-9]*"))) >= files:
                process.kill()
        assert ended(process) == (0 if files is None else -signal.SIGKILL)
        pairs = {p: p.stat().st_mtime_ns for p in made.glob("[0-9]*") if whole(p)}
        assert there.items() <= pairs.items(), "what was whole is not made again"
        there = pairs


def whole(path: Path) -> bool:
    """A shard, or a picture or caption with the other."""
    pair = all(path.with_suffix(suffix).is_file() for suffix in (".png", ".txt"))
    return pair or path.suffix == ".safetensors"


def test_killed_while_making_pictures_and_encoding_them(tmp_path, random_weights):
    """kill -9 at any moment leaves one folder, as a run that nobody stopped leaves it."""
    files = {}
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        config = folder / "config.toml"
        config.write_text(MAKING.format(weights=random_weights, folder=folder))
        (folder / "prompts.txt").write_text("red apple\nhappy dog\nrocket\nheart\ncat\n" * 3)
        stops = name == "killed"
        killed_on_its_way("sample-teacher", config, folder / "pictures", [1, 2, 5, 14] * stops)
        killed_on_its_way("prepare", config, folder / "prepared", [1, 2, 5] * stops)
        found = [p for part in ("pictures", "prepared") for p in (folder / part).iterdir()]
        files[name] = {p.relative_to(folder): p.read_bytes() for p in found}
    assert len(files["straight"]) == 15 * 2 + 8 + 3
    assert files["killed"] == files["straight"]


def test_two_processes_make_the_same_pictures_and_shards_as_one(tmp_path):
    """Byte for byte, none twice, also where one of them had been stopped before."""
    pytest.importorskip("accelerate")
    config = """
    [model]
    family = "scenes"
    device = "cpu"
    [teacher]
    prompts = "prompts.txt"
    steps = 1
    guidance = 1.0
    batch = 2
    [data]
    source = "pictures"
    prepared = "prepared"
    size = 64
    shard_size = 2
    """
    places = {}
    for name in ("one", "two"):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "prompts.txt").write_text("a fox\nhappy dog\nrocket\nowl\ncat\n")
        (places[name] / "config.toml").write_text(config)
    for name in ("sample-teacher", "prepare"):
        with contextlib.chdir(places["one"]):
            assert main([name, "--config", "config.toml"]) == 0
    (places["two"] / "pictures").mkdir()
    for kept in ("000003.png", "000003.txt"):  # of a process that was stopped
        shutil.copy(places["one"] / "pictures" / kept, places["two"] / "pictures")
    before = (places["two"] / "pictures" / "000003.png").stat().st_mtime_ns
    for name in ("sample-teacher", "prepare"):
        shared(places["two"], name, "--config", "config.toml")
    assert (places["two"] / "pictures" / "000003.png").stat().st_mtime_ns == before
    files = {
        name: {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()}
        for name, place in places.items()
    }
    assert len(files["one"]) == 2 + 5 * 2 + 3 + 3, (
        "pictures, captions, shards, and three of prepare"
    )
    assert files["one"] == files["two"]


SPREAD = r"(\d+) weights spread over (\d+) processes, (\d+) in each"


def launched(place: Path, *options: str) -> str:
    """Three steps of two processes of `accelerate launch`, into PLACE/pair: what they wrote."""
    launch = ["accelerate.commands.launch", *options, "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = runs.command("--run", "pair", "--steps", "3")[2:]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", *arguments],
        cwd=place, env=runs.ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def compare(pair: Path, single: Path) -> None:
    """The same losses and measures, but for the order of sums."""
    assert len(runs.losses(pair)) == len(runs.losses(single)) == 3
    for a, b in zip(runs.losses(pair), runs.losses(single), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-5)
    ours, theirs = runs.evaluations(pair), runs.evaluations(single)
    assert ours.keys() == theirs.keys() == {2, 3}
    for step, values in ours.items():
        assert values == pytest.approx(theirs[step], rel=5e-3, abs=2e-4)
