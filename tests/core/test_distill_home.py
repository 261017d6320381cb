"""A name is one training, of the same data and the same settings; nothing else is written over."""

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from swd_core.commands import main
from swd_core.distill import session
from swd_core.distill.checkpoint import load_checkpoint
from swd_core.distill.conditioning import Conditioning
from swd_core.distill.memory import MemoryData
from swd_core.distill.prepare import prepare
from swd_core.distill.sample_teacher import sample_teacher
from swd_core.distill.teachers import SceneEncoder
from swd_core.distill.trainer import Trainer
from swd_core.distill.world import World
from swd_core.schedule import ScaleSchedule

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_weights) -> Path:
    return runs.make_place(tmp_path_factory.mktemp("distill"), random_weights)


def begun(place: Path, run: str) -> Path:
    return runs.train(place, run, steps=1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 2e-3}, "lr was 0.001, is 0.002"),
        ({"mmd": 2.0, "seed": 3}, "mmd was 1.0, is 2.0; seed was 0, is 3"),
        ({"mmd_sigma": [0.0, 0.5]}, r"mmd_sigma was \[0.0, 0.6022\], is \[0.0, 0.5\]"),
    ],
)
def test_other_settings_are_named_and_nothing_is_trained(place, change, says):
    run = begun(place, f"settings-{len(says)}")
    before = content(run)
    with pytest.raises(ValueError, match=f"another training: {says}. Give another .* --changed"):
        runs.train(place, run.name, resume=True, steps=2, **change)
    assert content(run) == before
    session.train(runs.settings_of(place, run.name, steps=2, **change), resume=True, changed=True)
    assert [line["step"] for line in runs.losses(run)] == [1, 2]
    runs.train(place, run.name, resume=True, steps=3, **change)  # they are its settings now


@pytest.mark.parametrize("name", ["samples", "Samples", "checkpoint.pt", "losses.jsonl"])
def test_a_name_that_the_run_has_for_itself_is_refused_before_a_step(place, name):
    """The first save of a student called samples failed, after all the steps before it."""
    settings = runs.changed(runs.settings_of(place, "named", steps=1), "output", name=name)
    with pytest.raises(ValueError, match=rf"name is '{name}', .* Choose another name"):
        session.train(settings)
    assert not (place / "named").exists()


def test_a_run_without_a_folder_is_refused(place, tmp_path, monkeypatch, capsys):
    """An empty name was where the command was given, in the pack's own folder."""
    monkeypatch.chdir(tmp_path)
    text = (place / "config.toml").read_text().replace(f'run = "{place}/run"', 'run = ""')
    (tmp_path / "config.toml").write_text(text)
    assert main(["distill", "--config", "config.toml", "--steps", "1"]) == 2
    assert "[output] run is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_short_training_has_its_last_losses(place):
    settings = runs.changed(runs.settings_of(place, "short", steps=3), "output", log_every=2)
    session.train(settings)
    assert [line["step"] for line in runs.losses(place / "short")] == [2, 3]


def test_changed_alone_is_refused(place, capsys):
    config = str(place / "config.toml")
    assert main(["distill", "--config", config, "--changed"]) == 2
    assert "give --resume, too" in capsys.readouterr().err


def test_another_rank_is_refused_either_way(place):
    run = begun(place, "rank")
    other = runs.changed(runs.settings_of(place, "rank", steps=2), "model", rank=3)
    with pytest.raises(ValueError, match="rank was 2, is 3"):
        session.train(other, resume=True)
    with pytest.raises(ValueError, match="another model or rank"):
        session.train(other, resume=True, changed=True)
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 1


def test_other_pictures_are_refused_even_if_there_are_as_many(place, tmp_path, random_weights):
    begun(place, "data")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a fox by a lake")
    settings = runs.settings_of(place, "data", steps=2)
    schedule = settings.scale_schedule()
    prepare(pictures, tmp_path / "prepared", SceneEncoder(random_weights), schedule, 64)
    other = runs.changed(settings, "data", prepared=str(tmp_path / "prepared"))
    for changed in (False, True):
        with pytest.raises(ValueError, match="another training: other prepared pictures"):
            session.train(other, resume=True, changed=changed)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (place / "prepared").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    same = runs.changed(settings, "data", prepared=str(moved))
    assert session.train(same, resume=True)[1] == 2, "the same ones elsewhere are the same"


def downloaded(folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors", {"author": "somebody"})
    (folder / "README.md").write_text("downloaded")
    return content(folder)


def test_a_downloaded_student_of_this_name_is_kept(place):
    before = downloaded(place / "taken" / "swd_lora")
    with pytest.raises(ValueError, match=r"taken/swd_lora is there already.*nothing.*overwritten"):
        runs.train(place, "taken", steps=1)
    assert content(place / "taken") == {f"swd_lora/{name}": b for name, b in before.items()}


@pytest.mark.parametrize("name", ["swd_lora.tmp", "swd_lora.part", "checkpoint.tmp"])
def test_students_of_other_names_are_kept(place, name):
    before = downloaded(place / f"beside-{name}" / name)
    run = begun(place, f"beside-{name}")
    assert content(run / name) == before


def test_a_student_that_came_meanwhile_is_kept(place, monkeypatch):
    folder, before = place / "meanwhile" / "swd_lora", {}
    plain = Trainer.train_step

    def train_step(trainer, factor):
        plain(trainer, factor)
        if trainer.step == 1:
            before.update(downloaded(folder))

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(ValueError, match="nothing of it is overwritten"):
        runs.train(place, "meanwhile", steps=2)
    assert content(folder) == before
    assert load_checkpoint(place / "meanwhile" / "checkpoint.pt")["step"] == 2, "nothing is lost"


def test_what_killed_writers_left_in_the_folder_does_not_matter(place):
    folder = place / "left" / "swd_lora"
    folder.mkdir(parents=True)
    (folder / f".swd-{'0' * 32}.part").write_bytes(b"half a student")
    begun(place, "left")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip


def test_a_place_that_can_t_be_written_to_is_said_before_the_model_is_loaded(place, monkeypatch):
    (place / "file").write_text("no folder")
    monkeypatch.setattr(session, "load_model", None)
    with pytest.raises(OSError, match=r"file/run/?.* can't be written to"):
        runs.train(place, "file/run", steps=1)


@pytest.mark.parametrize("name", ["../x", "a/b", "con", "x.", "", "a:b", "x" * 300])
def test_names_that_are_none_are_refused_in_the_config(place, name):
    data = {"model": {"family": "scenes"}, "output": {"name": name}}
    with pytest.raises(ValueError, match=r"^\[output\] name .*can't name"):
        runs.parse_settings(data)


def test_damaged_checkpoints_are_one_error_or_whole(place):
    """Bytes changed, cut off and put in at seeded places."""
    run = begun(place, "damaged")
    path = run / "checkpoint.pt"
    whole, rng = path.read_bytes(), random.Random(0)
    trainer = session.build_trainer(runs.settings_of(place, "damaged"), World())
    refused = 0
    for _ in range(60):
        data, at = bytearray(whole), rng.randrange(len(whole))
        kind = rng.randrange(3)
        if kind == 0:
            data[at : at + 4] = rng.randbytes(4)
        elif kind == 1:
            del data[at:]
        else:
            start = whole.index(b"data.pkl")  # the part that says what is where
            at = start + rng.randrange(2000)
            data[at : at + 2] = rng.randbytes(2)
        path.write_bytes(bytes(data))
        try:
            session.restore(trainer, path)
        except ValueError as error:
            assert "damaged/checkpoint.pt" in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("state", [[1], {"step": 1}, {"training": 7}, {"training": {"mark": "x"}}])
def test_checkpoints_of_something_else_are_refused(place, state):
    folder = place / f"else-{len(str(state))}"
    folder.mkdir()
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        runs.train(place, folder.name, resume=True)


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("gone")])
def test_what_is_no_file_is_no_checkpoint(tmp_path, make):
    """A link to a disk that isn't there would begin the training anew."""
    make(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*can't be read"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("theirs", ["000001.png", "000001.jpg"])
def test_the_teacher_writes_over_no_picture_or_caption_of_the_users(
    tmp_path, random_weights, theirs
):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / theirs)
    (folder / "000001.txt").write_text("my holiday")
    before = content(folder)
    (tmp_path / "prompts.txt").write_text("a fox\nhappy dog\n")
    settings = runs.parse_settings(
        {
            "model": {"family": "scenes", "base": str(random_weights), "device": "cpu"},
            "data": {"source": str(folder), "size": 64},
            "teacher": {"prompts": str(tmp_path / "prompts.txt"), "steps": 1},
        }
    )
    with pytest.raises(ValueError, match=r"000001\.\w+ is not of this teacher.*another folder"):
        sample_teacher(settings, lambda *_: None)
    assert content(folder) == before
    for path in folder.iterdir():
        path.unlink()
    assert sample_teacher(settings, lambda *_: None) == 2
    (tmp_path / "prompts.txt").write_text("a fox\nrocket\n")
    assert sample_teacher(settings, lambda *_: None) == 1, "its own may be made anew"
    assert (folder / "000001.txt").read_text() == "rocket"


def memory(latents: torch.Tensor, caption: str = "a", width: int = 8) -> MemoryData:
    text = Conditioning(torch.ones(1, 5, width), torch.ones(1, 3))
    return MemoryData(
        ScaleSchedule((0.5, 1.0), (1.0, 0.6)), ((4, 4), (8, 8)),
        {(4, 4): latents, (8, 8): torch.zeros(len(latents), 4, 8, 8)}, (text,) * len(latents), text,
        (caption,) * len(latents), (64, 64),
    )  # fmt: skip


def test_data_encoded_again_is_the_same_and_other_data_is_not():
    """Graphics cards and VAEs in tiles don't give the same bits twice."""
    from swd_core.distill.home import differences

    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def other(data: MemoryData) -> list[str]:
        a, b = ({"settings": {}, "content": d.identity()} for d in (memory(latents), data))
        return differences(a, b)[1]

    assert other(memory(latents)) == []
    assert other(memory(latents + 1e-3 * torch.randn(3, 4, 4, 4))) == []
    assert other(memory(latents[:2])) == ["other captions or sizes", "other encoded captions",
                                          "other pictures"]  # fmt: skip
    changed = latents.clone()
    changed[2] = -changed[2]
    assert other(memory(changed)) == ["other pictures"]
    assert other(memory(latents, caption="b")) == ["other captions or sizes"]


def test_the_lora_carries_the_mark_of_its_checkpoint(place):
    run = begun(place, "mark")
    mark = load_checkpoint(run / "checkpoint.pt")["training"]["mark"]
    path = run / "swd_lora" / "adapter_model.safetensors"
    assert mark.encode() in path.read_bytes()[:4096] and load_file(path)
