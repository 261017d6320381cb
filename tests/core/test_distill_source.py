"""Pictures edited after they were prepared: told before anything is trained."""

import shutil
import tarfile
from pathlib import Path

import distill_runs as runs
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.commands import main
from swd_core.distill.data import PreparedBatches
from swd_core.distill.origin import check_source
from swd_core.distill.sources import find_samples

TRAIN = ["distill", "--config", "config.toml"]


@pytest.fixture
def place(tmp_path, random_weights, monkeypatch) -> Path:
    runs.make_place(tmp_path, random_weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(source: str) -> None:
    check_source(Path(source), PreparedBatches(Path("prepared")))


def repaint(folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "2.png")


def add(folder: Path) -> None:
    shutil.copy(folder / "0.png", folder / "new.png")
    (folder / "new.txt").write_text("a boat")


EDITS = {
    "1 has another caption (3.png)": lambda folder: (folder / "3.txt").write_text("a boat"),
    "1 is another picture (2.png)": repaint,
    "1 is new (new.png)": add,
    "2 are gone (1.png, 4.png)": lambda folder: [(folder / f"{i}.png").unlink() for i in (1, 4)],
}


def test_an_edited_folder_is_told_before_anything_is_trained(place, capsys):
    """Put back as it was, it is nobody's hindrance; neither is what the config doesn't name."""
    shutil.copytree("pictures", "before")
    for said, edit in EDITS.items():
        edit(place / "pictures")
        assert main(TRAIN) == 2
        error = capsys.readouterr().err
        assert "pictures is not what" in error and said in error and "Run prepare again" in error
        shutil.rmtree("pictures")
        shutil.copytree("before", "pictures")
    assert not (place / "run").exists()
    assert main([*TRAIN, "--steps", "1"]) == 0
    add(place / "pictures")
    assert main([*TRAIN, "--steps", "2", "--resume"]) == 2
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace('source = "pictures"', ""))
    assert main([*TRAIN, "--steps", "2", "--resume"]) == 0


def test_pictures_that_are_gone_once_they_are_prepared_are_not_missed(place):
    for path in (place / "pictures").iterdir():
        path.unlink()
    check("pictures")
    (place / "pictures" / ".DS_Store").write_bytes(b"what a file manager leaves")
    (place / "pictures" / "0.txt").write_text("a fox")
    (place / "pictures" / "._0.png").write_bytes(b"what macOS keeps beside a picture")
    (place / "pictures" / "done").mkdir()
    (place / "pictures" / "done" / "part.tar").write_bytes(b"what prepare doesn't look for")
    check("pictures")
    shutil.rmtree("pictures")
    check("pictures")


def test_a_picture_that_prepare_left_out_is_not_new(place):
    (place / "pictures" / "broken.png").write_bytes(b"none")
    (place / "pictures" / "broken.txt").write_text("a fox")
    with pytest.raises(ValueError, match="1 is new"):
        check("pictures")
    assert main(["prepare", "--config", "config.toml"]) == 0
    check("pictures")


def test_a_tar_is_looked_into(place):
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace('"pictures"', '"data.tar"'))

    def pack() -> None:
        with tarfile.open("data.tar", "w") as tar:
            for path in sorted((place / "pictures").iterdir()):
                tar.add(path, path.name)

    pack()
    assert main(["prepare", "--config", "config.toml"]) == 0
    check("data.tar")
    repaint(place / "pictures")
    pack()
    with pytest.raises(ValueError, match=r"1 is another picture \(data.tar/2.png\)"):
        check("data.tar")


def test_what_macos_leaves_beside_pictures_is_none(place):
    names = [sample.name for sample in find_samples(place / "pictures")]
    shutil.copy(place / "pictures" / "0.png", place / "pictures" / "._0.png")
    assert [sample.name for sample in find_samples(place / "pictures")] == names
    with tarfile.open("pictures.TAR", "w") as tar:
        for path in sorted((place / "pictures").iterdir()):
            tar.add(path, path.name)
    inside = [f"pictures.TAR/{name}" for name in names]
    assert [sample.name for sample in find_samples(Path("pictures.TAR"))] == inside
    Path("tars").mkdir()
    shutil.move("pictures.TAR", "tars")
    assert [sample.name for sample in find_samples(Path("tars"))] == inside


def test_what_was_prepared_before_sizes_were_noted_is_as_good(place):
    for path in (place / "prepared").glob("*x*-*.safetensors"):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            header = {k: v for k, v in file.metadata().items() if k != "bytes"}
        save_file(tensors, path, header)
    check("pictures")
    (place / "pictures" / "3.txt").write_text("a boat")
    with pytest.raises(ValueError, match="1 has another caption"):
        check("pictures")
