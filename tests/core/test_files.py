"""Files: whole or not there whatever happens to the writer, and read within bounds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from swd_core import commands
from swd_core.distill.checkpoint import save_checkpoint
from swd_core.distill.config import read_settings
from swd_core.distill.sample_teacher import read_prompts
from swd_core.files import (
    check_name,
    clear_left_over,
    read_json,
    read_text,
    read_toml,
    write_text,
    written_whole,
)
from swd_core.lora import LoraLayer
from swd_core.lora_files import read_lora, write_peft
from swd_core.presets import read_presets
from swd_core.tensor_files import open_tensors, save_tensors

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and fork are POSIX's")


def script(name: str, folder: Path) -> list[list[str]]:
    """The words of every line that a script beside this file prints."""
    command = [sys.executable, str(Path(__file__).with_name(name)), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@posix
def test_a_writer_killed_at_any_line_leaves_the_old_or_the_new_and_no_litter(tmp_path):
    found = {kind: (int(old), int(new)) for kind, old, new in script("killed_writers.py", tmp_path)}
    assert found.keys() == {"lora", "drafts", "checkpoint"}
    assert all(old > 20 and new > 0 for old, new in found.values()), found


@posix
def test_processes_that_save_at_once_never_get_each_others_drafts(tmp_path):
    saved = {name: int(seed) for seed, name in script("saving_at_once.py", tmp_path)}
    assert len(saved) == 100, "every name was had by one of them"
    assert {p.name for p in tmp_path.iterdir()} == set(saved)
    for name, seed in saved.items():
        tensors = load_file(tmp_path / name)
        assert all((value == seed).all() for value in tensors.values())


def test_only_what_killed_writers_left_is_cleared(tmp_path):
    left = tmp_path / f".swd-{'0123456789abcdef' * 2}.part"
    keep = ["x.tmp", "a.part", ".swd-notes.part", ".swd-12.part", f"{left.name}.txt"]
    for name in keep:
        (tmp_path / name).write_text("mine")
    with written_whole(tmp_path / "now.txt") as file:
        [living] = set(os.listdir(tmp_path)) - set(keep)
        left.write_text("half")
        clear_left_over(tmp_path)
        assert set(os.listdir(tmp_path)) == {living, *keep}
        file.write(b"whole")
    assert set(os.listdir(tmp_path)) == {"now.txt", *keep}
    assert (tmp_path / "now.txt").read_bytes() == b"whole"


def test_where_there_are_no_locks_a_part_is_left_over_after_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr("swd_core.files.fcntl", None)
    old, young = (tmp_path / f".swd-{digit * 32}.part" for digit in "ab")
    for part in (old, young):
        part.write_text("half")
    os.utime(old, (os.stat(young).st_mtime - 4000,) * 2)
    write_text(tmp_path / "a.txt", "whole")
    assert set(os.listdir(tmp_path)) == {young.name, "a.txt"}


def test_an_error_in_the_middle_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_another_wrote_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    path = tmp_path / "a.txt"
    with written_whole(path, overwrite=False) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError, match="a.txt exists by now; nothing was overwritten"):
        with written_whole(path, overwrite=False) as file:
            file.write(b"second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


@posix
def test_files_are_as_readable_as_the_users_others(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_the_tensors_are_those_of_the_library(tmp_path):
    made = torch.randn(3, 5)
    tensors = {
        "b": made.half(), "a": made, "turned": made.t(), "one": torch.tensor(3), "ж": made.double(),
        "none": torch.zeros(0, 2), "brain": made.bfloat16(), "mask": made > 0,
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, {"text": 'ж "苹果"\n'})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    with open_tensors(path) as file:
        assert file.metadata() == {"text": 'ж "苹果"\n'}
    del tensors["brain"]  # the library's order among numbers of one size is not by name
    save_tensors(path, tensors, {"k": "v"})
    plain = {name: value.contiguous() for name, value in tensors.items()}
    assert path.read_bytes() == save(plain, {"k": "v"})


BOMS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("encoding", BOMS)
def test_presets_schedules_and_configs_as_windows_editors_write_them(
    tmp_path, capsys, monkeypatch, encoding
):
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    ladder = {"scales": [0.5, 1.0], "sigmas": [1.0, 0.6]}
    mine = {**ladder, "family": "flux", "title": "my ladder ж", "provenance": "me"}
    found, problems = read_presets(write("presets.json", json.dumps({"mine": mine})))
    assert problems == [] and found["mine"].schedule.scales == (0.5, 1.0)
    write("mine.json", json.dumps(ladder))
    monkeypatch.chdir(tmp_path)
    assert commands.main(["schedule", "--preset", "mine.json"]) == 0
    assert "512x512" in capsys.readouterr().out
    toml = write("a.toml", '# ж\n[model]\nfamily = "scenes"\n[train]\nlr = 2e-4\n')
    same = write("a.json", json.dumps({"model": {"family": "scenes"}, "train": {"lr": 2e-4}}))
    assert read_settings(toml) == read_settings(same) and read_settings(toml).train.lr == 2e-4
    assert read_prompts(write("prompts.txt", "a red ж\nan apple\n")) == ["a red ж", "an apple"]


@pytest.mark.parametrize("encoding", BOMS)
def test_a_loras_config_as_windows_editors_write_it(tmp_path, encoding):
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 4.0)
    module = "transformer_blocks.0.attn.to_q"
    write_peft(tmp_path, {module: layer}, rank=2, alpha=8, base_model="test")
    config = tmp_path / "adapter_config.json"
    config.write_bytes(config.read_text().encode(encoding))
    lora = read_lora(tmp_path)
    assert lora.layers[module].scale == 4.0 and lora.scaling == "alpha from adapter_config.json"


@posix
@pytest.mark.parametrize("read", [read_text, read_json, read_toml, open_tensors, read_settings])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, read, kind):
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="a.json"):
        read(path)
    found, [problem] = read_presets(path)
    assert found == {} and "a.json" in problem


@pytest.mark.parametrize("name", ["a.json", "a.toml"])
@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"a = " + b"[" * 100_000, b"\xff", b"", b"[1, 2]", b"model = 3"],
    ids=len,
)
def test_what_is_no_config_is_one_error_that_names_the_file(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_settings(tmp_path / name)


def test_a_text_without_end_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: a terabyte of nothing
    with pytest.raises(ValueError, match="a.json has more than 16 MB"):
        read_json(path)


@pytest.mark.parametrize("size", [0, 1 << 30, 1 << 63])
def test_a_header_is_not_believed_to_be_of_any_size(tmp_path, size):
    path = tmp_path / "a.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="a.safetensors is not a whole safetensors file"):
        open_tensors(path)
    save_file({"a": torch.ones(1)}, path)
    assert open_tensors(path).keys()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "empty"), ("  ", "empty"), (".", "a path"), ("..", "a path"), ("a/b", "'/'"),
        ("a\\b", r"'\\\\'"), ("a\0b", r"'\\x00'"), ("a\nb", r"'\\n'"), ("a\ud800", r"'\\ud800'"),
        ("a:b", "':'"), ("a*", r"'\*'"), ("a?", r"'\?'"), ("a.", "dot"), ("a ", "space"),
        ("CON", "device"), ("nul.txt", "device"), ("Com1.tar.gz", "device"), ("lpt²", "device"),
        ("aux .x", "device"), ("x" * 201, "201 bytes"), ("ж" * 101, "202 bytes"),
    ],
)  # fmt: skip
def test_names_that_are_none_everywhere(name, fault):
    with pytest.raises(ValueError, match=f"^lora_name .* can't name .*{fault}") as error:
        check_name(name, "lora_name")
    str(error.value).encode("utf-8")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "name", ["a", "console", "nul_x", "com10", "x" * 200, "ж 苹果", ".a", "a.b-c_1"]
)
def test_names_that_are_names_everywhere(tmp_path, name):
    check_name(name, "lora_name")
    (tmp_path / name).mkdir()


@posix
def test_a_full_disk_is_said_by_its_own_name_for_a_checkpoint_too(tmp_path, monkeypatch):
    """torch says "unexpected pos" when the file takes no more."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"a": torch.ones(3)})
    resource = pytest.importorskip("resource")
    before, plain = path.read_bytes(), Path.open

    def small(self, *arguments, **options):
        file = plain(self, *arguments, **options)
        if self.suffix == ".part":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        return file

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(Path, "open", small)
    try:
        with pytest.raises(OSError, match=r"checkpoint\.pt can't be written: .*File too large"):
            save_checkpoint(path, {"a": torch.ones(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
