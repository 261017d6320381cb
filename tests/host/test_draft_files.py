"""SwDSaveDrafts: names that every system takes, and files that are never another process's."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swd_core.draft_files import SUFFIX


@pytest.fixture
def output(pack, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def save(pack, output):
    """Saves one draft whose latent is full of `value` and gives the file's path."""
    drafts = importlib.import_module("swd_pack.swd_core.drafts")
    schedule = importlib.import_module("swd_pack.swd_core.schedule")
    drafting = importlib.import_module("swd_pack.nodes.drafting")

    def run(prefix: str, value: float = 1.0) -> Path:
        x0 = torch.full((1, 4, 4, 4), value)
        ladder = schedule.ScaleSchedule((0.5, 1.0), (1.0, 0.5))
        image = drafts.Draft(1, 0)
        latent = drafting.to_latent(
            drafts.Drafts(ladder, "scenes", (8, 8), (image,), (x0,), x0.clone())
        )
        done = pack["SwDSaveDrafts"].execute(drafts=latent, filename_prefix=prefix)
        [file] = done.ui["swd_files"]
        return output / file["subfolder"] / file["filename"]

    return run


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("x" * 300, "300 bytes"),
        ("drafts/" + "苹" * 100, "300 bytes"),
        ("/".join(["deep"] * 1000), "more than 800 bytes"),
        ("a\0b", r"'\x00'"),
        ("drafts/\ud800", r"'\ud800'"),
        ("CON", "device"),
        ("drafts/nul.txt", "device"),
        ("aux/x", "device"),
        ("a.", "dot or a space"),
        ("drafts /x", "dot or a space"),
        ("a:b", "':'"),
        ("what?", "'?'"),
        ("", "empty"),
        ("  ", "empty"),
        ("..", "a path"),
        ("../x", "a path"),
        ("..\\x", "a path"),
        ("/tmp/x", "below the output folder"),
        ("\\\\server\\x", "below the output folder"),
        ("C:\\x", "':'"),
    ],
    ids=lambda x: ascii(x)[:20],
)
def test_prefixes_that_are_no_name_everywhere_are_one_error(save, output, prefix, says):
    with pytest.raises(ValueError, match="^filename_prefix ") as error:
        save(prefix)
    assert says in str(error.value) and len(str(error.value)) < 250
    assert not os.listdir(output), "nothing was made"


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("drafts/swd", "drafts/swd"),
        ("drafts\\swd", "drafts/swd"),
        ("a/b//c/", "a/b/c"),
        ("ж 苹果", "ж 苹果"),
        ("v1.5 a-b", "v1.5 a-b"),
        ("x" * 200, "x" * 200),
        ("w%width%", "w0"),
    ],
)
def test_prefixes_make_the_same_name_on_every_system(save, output, prefix, name):
    path = save(prefix)
    assert path == output / f"{name}_00001_{SUFFIX}" and path.is_file()


def test_nothing_is_overwritten_even_if_another_process_is_quicker(save, output, monkeypatch):
    """Both see the same free number; a link that leads nowhere is no free name either."""
    files = importlib.import_module("swd_pack.nodes.draft_files")
    first, second = (output / f"x_{n:05}_{SUFFIX}" for n in (1, 2))
    plain, done = files.save_drafts, []

    def late(drafts, path):
        if not done:
            done.append(path)
            first.write_text("another's")
            second.symlink_to(output / "nowhere")
        plain(drafts, path)

    monkeypatch.setattr(files, "save_drafts", late)
    path = save("x", 2.0)
    assert done == [first] and path.name == f"x_00003_{SUFFIX}"
    assert first.read_text() == "another's" and second.is_symlink()
    assert (load_file(path)["samples"] == 2.0).all()


def test_a_full_disk_is_said_in_a_sentence(save, output, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="drafts can't be saved in .*No space left.*Make room"):
        save("x")
    assert not os.listdir(output)
