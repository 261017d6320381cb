"""SwDDistillTrain's lora_name: one training of one data; what else is there is kept."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.files import held

VALUES = {
    "steps": 1, "rank": 2, "lr": 1e-3, "batch_tokens": 16, "mmd": 1.0, "dmd": 0.0, "gan": 0.0,
    "guidance": 1.0, "fake_steps": 1, "seed": 0, "resume": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(pack):
    return pack["SwDSceneStudent"].execute(strength=0.0).result


@pytest.fixture
def train(pack, parts, loras, tmp_path_factory, monkeypatch):
    """Runs the node on one picture of a seed; gives the LoRA's folder."""
    import folder_paths

    output = tmp_path_factory.mktemp("output")
    monkeypatch.setattr(folder_paths, "output_directory", str(output))
    model, clip, vae, schedule = parts

    def run(name: str, picture: int = 0, caption: str = "a fox", **values) -> Path:
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(picture))
        data = pack["SwDDistillData"].execute(
            [image], [clip], [vae], [schedule], [caption]
        ).result[0]  # fmt: skip
        pack["SwDDistillTrain"].execute(model, data, name, **VALUES | values)
        return loras / name

    run.output = output
    return run


def step_of(folder: Path) -> int:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return int(file.metadata()["swd_step"])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"picture": 1}, "other pictures"),
        ({"caption": "two penguins, snow"}, "other captions or sizes; other encoded captions"),
        ({"lr": 2e-3, "seed": 4}, "lr was 0.001, is 0.002; seed was 0, is 4"),
        ({"rank": 4}, "rank was 2, is 4"),
    ],
    ids=lambda x: str(x)[:12],
)
@pytest.mark.parametrize("resume", [True, False])
def test_another_training_of_this_name_is_refused_and_says_what_is_different(
    train, change, says, resume
):
    """The old LoRA came back unchanged, without a word; without resume it was lost."""
    folder = train("mine")
    before = content(folder), content(train.output)
    with pytest.raises(ValueError, match=f"another training: {says}. Choose another lora_name"):
        train("mine", steps=2, resume=resume, **change)
    assert (content(folder), content(train.output)) == before


def test_another_teacher_is_refused(train, parts, monkeypatch):
    folder = train("mine")
    before = content(folder)
    layer = parts[0].model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    kept = layer.weight.data
    try:
        layer.weight.data = kept * 1.01
        with pytest.raises(ValueError, match="another training: other teacher"):
            train("mine", steps=2)
    finally:
        layer.weight.data = kept
    assert content(folder) == before


def test_a_teacher_is_the_same_in_another_process(parts, monkeypatch):
    """The host keeps its layers' names in sets, whose order changes from start to start."""
    module = importlib.import_module("swd_pack.nodes.trainable")
    before, plain = module.weights_mark(parts[0]), module.adapted_layers
    monkeypatch.setattr(
        module, "adapted_layers", lambda model: dict(reversed(list(plain(model).items())))
    )
    assert module.weights_mark(parts[0]) == before


def test_the_same_training_goes_on_or_begins_anew(train):
    folder = train("mine")
    assert step_of(train("mine", steps=3)) == 3
    gone_on = load_file(folder / "adapter_model.safetensors")
    assert step_of(train("mine", steps=3, resume=False)) == 3
    anew = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(gone_on[k], anew[k]) for k in anew), "as if uninterrupted"


def test_two_at_once_in_one_place_are_not_begun(train, loras):
    """The later one wrote its checkpoint over the other's, and only then was it refused."""
    train.output.joinpath("swd_distill", "mine").mkdir(parents=True)
    with held(train.output / "swd_distill" / "mine"):
        with pytest.raises(ValueError, match="Another ComfyUI trains mine now"):
            train("mine")
        train("other")
    assert not (loras / "mine").exists() and (loras / "other").exists()
    train("mine")


def test_nothing_to_train_is_said(train, monkeypatch):
    said = []
    host = importlib.import_module("swd_pack.nodes._host")
    monkeypatch.setattr(host, "say", said.append)
    train("mine", steps=2)
    assert not any("nothing to train" in text for text in said)
    train("mine", steps=2)
    assert any("mine has 2 steps already" in text and "More steps" in text for text in said)


def test_a_downloaded_student_is_kept_also_one_in_another_loras_folder(
    train, loras, tmp_path_factory, monkeypatch
):
    import folder_paths

    student = loras / "swd-medium"
    student.mkdir()
    save_file({"a": torch.ones(1)}, student / "adapter_model.safetensors")
    before = content(student)
    for resume in (True, False):
        with pytest.raises(ValueError, match="swd-medium is there already.*another lora_name"):
            train("swd-medium", resume=resume)
    assert content(student) == before and not list(train.output.rglob("*.pt"))
    more = tmp_path_factory.mktemp("more")
    (more / "elsewhere").mkdir()
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    paths = ([str(loras), str(more)], extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", paths)
    with pytest.raises(ValueError, match="a LoRA elsewhere in .*another lora_name"):
        train("elsewhere")


def test_training_x_leaves_the_student_x_tmp_alone(train, loras):
    for name in ("x.tmp", "x.part"):
        (loras / name).mkdir()
        save_file({"a": torch.ones(1)}, loras / name / "adapter_model.safetensors")
    before = content(loras)
    train("x")
    after = content(loras)
    assert {name: after[name] for name in before} == before
    assert sorted(p.name for p in (loras / "x").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip


def test_what_a_kill_in_the_lora_s_write_left_does_not_matter(train, loras):
    """NAME.tmp/… of the kill made every later save of that name fail."""
    (loras / "y.tmp").mkdir()
    (loras / "y.tmp" / "half").write_text("a kill's")
    (loras / "y").mkdir()
    (loras / "y" / f".swd-{'0' * 32}.part").write_text("a kill's")
    assert step_of(train("y")) == 1
    assert not any(p.name.startswith(".") for p in (loras / "y").iterdir())


@pytest.mark.parametrize("name", ["con", "NUL.txt", "com1", "a.", "x" * 65, "a\0b", "a\ud800", ""])
def test_names_that_are_none_everywhere(train, loras, name):
    with pytest.raises(ValueError, match="^lora_name (.*can't name|holds half a character)"):
        train(name)
    assert not list(loras.iterdir()) and not list(train.output.iterdir())


def test_a_name_that_is_none_is_said_as_the_run_is_asked_for(pack):
    """Before pictures are encoded; a linked one isn't known by then."""
    node = pack["SwDDistillTrain"]
    assert node.validate_inputs("my_student") is True and node.validate_inputs(None) is True
    assert "lora_name 'a/b' can't name a folder" in node.validate_inputs("a/b")


def test_nothing_to_learn_from_is_told_by_the_widgets_names(train, loras):
    with pytest.raises(ValueError, match="^mmd, dmd and gan are all 0.*Give one of them a weight"):
        train("idle", mmd=0.0)
    assert not list(loras.iterdir())


@pytest.mark.parametrize("where", ["checkpoint", "lora"])
def test_a_full_disk_is_said_in_a_sentence_and_loses_nothing(train, monkeypatch, where):
    """A file system that takes nothing more stands in for it."""
    folder = train("full", steps=1)
    before = content(folder), content(train.output)
    files, plain = importlib.import_module("swd_pack.swd_core.files"), os.fsync
    left = [0 if where == "checkpoint" else 1]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="Step 2 can't be saved .*No space left.*resume") as error:
        train("full", steps=2)
    assert "is whole" in str(error.value)
    monkeypatch.undo()
    assert content(folder) == before[0]
    assert not [p for p in train.output.rglob("*") if p.name.startswith(".")]
    if where == "checkpoint":
        assert content(train.output) == before[1]


def test_torch_s_own_words_for_a_full_disk_are_not_shown_raw(train, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos\nC++ trace")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="Step 1 can't be saved .*make room and run again"):
        train("raw")
