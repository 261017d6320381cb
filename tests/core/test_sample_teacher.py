"""The teacher's pictures on the disk: made once and with one config, whatever goes wrong."""

import errno
import os
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import distill_pipelines as small  # noqa: E402
from distill_pipelines import run  # noqa: E402
from distill_runs import changed  # noqa: E402

from swd_core import files  # noqa: E402
from swd_core.distill import teachers  # noqa: E402
from swd_core.distill.config import read_settings  # noqa: E402
from swd_core.distill.sample_teacher import sample_teacher  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a config and the three pictures that it names."""
    place = small.make_place("flux", tmp_path_factory.mktemp("flux"))
    code, written = run(place, "sample-teacher", "--config", "config.toml")
    assert code == 0, written
    return place


def test_what_is_made_is_not_made_again(made, monkeypatch):
    """Nothing is loaded for it either."""
    monkeypatch.setattr(teachers, "pretrained", None)
    code, written = run(made, "sample-teacher", "--config", "config.toml")
    assert code == 0 and written.splitlines()[-1] == "0 pictures made in pictures"


def test_pictures_of_other_settings_are_not_taken_for_these(made):
    text = (made / "config.toml").read_text()
    assert "guidance = 3.0" in text and "seed = 5" in text
    other = text.replace("guidance = 3.0", "guidance = 2.0").replace("seed = 5", "seed = 6")
    (made / "other.toml").write_text(other)
    before = (made / "pictures" / "000001.png").read_bytes()
    code, written = run(made, "sample-teacher", "--config", "other.toml")
    assert code == 2
    assert written.splitlines()[-1].startswith(
        "error: 3 pictures in pictures were made with other settings ([teacher] guidance 3.0, now "
        "2.0; [teacher] seed 5, now 6)."
    )
    assert (made / "pictures" / "000001.png").read_bytes() == before


def test_prompts_that_no_config_names_are_asked_for(made):
    lines = (made / "config.toml").read_text().splitlines()
    rest = [line for line in lines if not line.startswith("prompts =")]
    assert len(rest) == len(lines) - 1
    (made / "none.toml").write_text("\n".join(rest))
    code, written = run(made, "sample-teacher", "--config", "none.toml")
    assert code == 2
    assert written.splitlines()[-1].startswith("error: [teacher] prompts is missing in the config")


def test_a_full_disk_is_said_in_a_sentence(made, monkeypatch):
    """A file system that takes nothing more stands in for it."""
    text = (made / "config.toml").read_text().replace('"pictures"', '"full"')
    (made / "full.toml").write_text(text)
    left, plain = [3], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        code, written = run(made, "sample-teacher", "--config", "full.toml")
    assert code == 2
    error = written.partition("error: ")[2]
    assert error.startswith("full/000001.txt can't be written ([Errno 28] No space left")
    assert "stays: make room and start the same command again." in error
    assert sorted(p.name for p in (made / "full").glob("*.txt")) == ["000000.txt"]
    code, written = run(made, "sample-teacher", "--config", "full.toml")
    assert code == 0 and "2 pictures made" in written
    for name in ("000000.png", "000001.png", "000002.png"):
        whole, again = (made / folder / name for folder in ("pictures", "full"))
        assert whole.read_bytes() == again.read_bytes()


def test_a_size_that_cannot_be_prepared_is_refused_before_a_picture_is_made(made):
    text = (made / "config.toml").read_text().replace("size = 64", "size = 72")
    (made / "odd.toml").write_text(text.replace('"pictures"', '"odd"'))
    for command in (["sample-teacher"], ["prepare"], ["distill", "--estimate"]):
        code, written = run(made, *command, "--config", "odd.toml")
        assert code == 2 and "size 72 is not a multiple of 16 px" in written
    assert not (made / "odd").exists()


def test_every_process_computes_on_its_own_card(made, monkeypatch):
    """What diffusers is told: by itself it takes the first one. No card is needed."""
    told = []

    class Offloaded(Exception):
        pass

    def offload(pipe, device=None):
        told.append(torch.device(device))
        raise Offloaded

    monkeypatch.setattr(diffusers.DiffusionPipeline, "enable_model_cpu_offload", offload)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.chdir(made)
    settings = changed(read_settings(Path("config.toml")), "model", device="auto")
    settings = changed(settings, "data", source="elsewhere")
    with pytest.raises(Offloaded):
        sample_teacher(settings, lambda done, count: None)
    assert told == [torch.device("cuda", 1)]


@pytest.mark.parametrize("seed", [-1, 2**62])
def test_any_seed_that_a_config_takes_makes_pictures(made, seed):
    text = (made / "config.toml").read_text()
    text = text.replace("seed = 5", f"seed = {seed}").replace('"pictures"', f'"seed{seed}"')
    (made / "seeded.toml").write_text(text)
    code, written = run(made, "sample-teacher", "--config", "seeded.toml")
    assert code == 0, written
    assert len(list((made / f"seed{seed}").glob("*.png"))) == 3
