"""Everything wrong on the command line is one clear line, and nothing is written."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swd_core import commands
from swd_core.scenes.student import LORA_FOLDER, MODEL_FILE, TEXT_FILE, VAE_FILE


def read_only_folder(tmp_path: Path) -> Path:
    """A folder this process can't write to; root may write to almost any."""
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        return tmp_path / "locked"
    if Path("/sys").is_dir():
        return Path("/sys")
    pytest.skip("no folder is known that this user can't write to")


def assert_refused(done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err


BAD_ARGUMENTS = [
    (["--count", "0"], ["count 0", "1 to 64"]),
    (["--count", "65"], ["count 65", "1 to 64"]),
    (["--count", "many"], ["many"]),
    (["--size", "100"], ["Size 100", "128 to 512", "multiple of 16", "128x128"]),
    (["--size", "10000"], ["Size 10000", "512x512"]),
    (["--size", "250x300"], ["Size 250x300", "256x304"]),
    (["--size", "big"], ["'big'", "WIDTHxHEIGHT"]),
    (["--size", "256x"], ["'256x'"]),
    (["--seed", "-1"], ["seed -1"]),
    (["--seed", str(2**64)], ["seed 18446744073709551616"]),
    (["--seed", "x"], ["'x'"]),
    (["--out", "fox.jpg"], [".png"]),
    (["--out", "nowhere/fox.png"], ["nowhere", "does not exist"]),
    (["--out", f"{'a' * 300}.png"], ["too long"]),
    (["--schedule", "sd99"], ["'sd99'", "scenes-4"]),
    (["--schedule", "gone.json"], ["There is no schedule file gone.json. Name", "scenes-4"]),
    (["--schedule", "sdxl-4"], ["timesteps"]),
    (["--colour", "red"], ["--colour"]),
]


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """As `run_cli`, in this process, which has torch already, and in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = commands.main([*arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS, ids=lambda x: " ".join(x)[:30])
def test_bad_arguments(run_here, tmp_path, arguments, words):
    assert_refused(run_here("generate", "cat", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"scales": "half", "sigmas": [1]}', ["scales must be a list of numbers, not str"]),
        ('{"scales": [0.5, 1], "sigmas": [1, "low"]}', ["sigmas, step 2"]),
        ('{"scales": [0.5, 1], "sigmas": [1, null]}', ["sigmas, step 2"]),
        ('{"scales": [0.5, 1], "sigmas": [1, NaN]}', ["sigmas, step 2"]),
        ('{"scales": [0.5, 1], "sigmas": [0.5, 0.6]}', ["Step 2", "sigmas must fall"]),
        ('{"scales": [], "sigmas": []}', ["0 values"]),
        ("[1, 2]", ["not list"]),
        ("{", ["sched.json"]),
        ("", ["sched.json"]),
        ("[" * 100_000, ["sched.json"]),
    ],
)
def test_bad_schedule_files(monkeypatch, capsys, tmp_path, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sched.json").write_text(text)
    for command in (
        ["generate", "cat", "--schedule", "sched.json"],
        ["schedule", "--preset", "sched.json"],
    ):
        assert_refused((commands.main(command), *capsys.readouterr()), "sched.json", *words)


def test_read_only_output_folder_is_refused_before_the_weights_are_read(run_cli, tmp_path):
    folder = read_only_folder(tmp_path)
    done = run_cli(
        "generate", "cat", "--out", str(folder / "a.png"), "--weights", "nowhere", cwd=tmp_path
    )
    assert_refused(done, "can't be written to")


def damage_missing(folder: Path) -> str:
    (folder / VAE_FILE).unlink()
    return VAE_FILE


def damage_truncated(folder: Path) -> str:
    file = folder / MODEL_FILE
    file.write_bytes(file.read_bytes()[:-1000])
    return MODEL_FILE


def damage_empty(folder: Path) -> str:
    (folder / TEXT_FILE).write_bytes(b"")
    return TEXT_FILE


def damage_lora(folder: Path) -> str:
    file = folder / LORA_FOLDER / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return file.name


def damage_swapped(folder: Path) -> str:
    shutil.copy(folder / VAE_FILE, folder / MODEL_FILE)
    return "does not fit the base"


def damage_vocabulary(folder: Path) -> str:
    save_file({"other": torch.zeros(2)}, folder / TEXT_FILE, {"vocabulary": '["", "cat"]'})
    return TEXT_FILE


def damage_vocabulary_type(folder: Path) -> str:
    save_file({"words.weight": torch.zeros(2, 4)}, folder / TEXT_FILE, {"vocabulary": "3"})
    return TEXT_FILE


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing, damage_truncated, damage_empty, damage_lora,
        damage_swapped, damage_vocabulary, damage_vocabulary_type,
    ],
)  # fmt: skip
def test_bad_weights(run_here, tmp_path, random_weights, damage):
    folder = tmp_path / "weights"
    shutil.copytree(random_weights, folder)
    named = damage(folder)
    done = run_here("generate", "cat", "--weights", str(folder), "--out", "cat.png")
    assert_refused(done, named)
    assert not (tmp_path / "cat.png").exists()


def test_no_weights_folder(run_here):
    done = run_here("generate", "cat", "--weights", "gone")
    assert_refused(done, "gone", "missing", f"A folder of weights has {MODEL_FILE}")


def test_bad_input_has_no_traceback_and_exit_code_2(run_cli, tmp_path):
    assert_refused(run_cli("generate", "cat", "--count", "0", cwd=tmp_path), "count 0")
    assert_refused(run_cli("generate", cwd=tmp_path), "prompt")
    assert_refused(run_cli(cwd=tmp_path), "COMMAND")
