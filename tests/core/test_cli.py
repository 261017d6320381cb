"""The command line as a user runs it: files, metadata, and one clear line for everything wrong."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from swd_core import cli
from swd_core.emoji.student import (
    LORA_FOLDER,
    MODEL_FILE,
    TEXT_FILE,
    VAE_FILE,
    WEIGHTS,
    EmojiStudent,
)
from swd_core.noise import SeededNoise
from swd_core.sampling import ScaleState, sample_scalewise


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def main(monkeypatch, capsys, tmp_path, random_weights):
    """Runs the command line in this process, which is faster: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*arguments, "--weights", str(random_weights)])
        return code, *capsys.readouterr()

    return run


def test_picture_is_the_sampler_s_with_the_named_seed(main, tmp_path, random_weights):
    assert (
        main("generate", "red apple", "--seed", "7", "--size", "160x128", "--out", "apple.png")[0]
        == 0
    )
    student = EmojiStudent.load(random_weights)
    like = torch.zeros(1, 16, 16, 20)
    state = sample_scalewise(
        student.denoiser(student.encode(["red apple"])),
        student.schedule.sigmas,
        student.schedule.sizes(16, 20),
        ScaleState(),
        SeededNoise(7, (0,)),
        process=student.process,
        like=like,
    )
    expected = (student.decode(state.x0)[0] * 255).round().byte().numpy()
    assert Image.open(tmp_path / "apple.png").size == (160, 128)
    np.testing.assert_array_equal(pixels(tmp_path / "apple.png"), expected)


def test_picture_does_not_depend_on_the_count(main, tmp_path):
    assert (
        main("generate", "cat", "--seed", "3", "--size", "128", "--count", "3", "--out", "cat.png")[
            0
        ]
        == 0
    )
    assert main("generate", "cat", "--seed", "3", "--size", "128", "--out", "one.png")[0] == 0
    names = sorted(p.name for p in tmp_path.glob("*.png"))
    assert names == ["cat_1.png", "cat_2.png", "cat_3.png", "one.png"]
    np.testing.assert_array_equal(pixels(tmp_path / "cat_1.png"), pixels(tmp_path / "one.png"))
    assert not np.array_equal(pixels(tmp_path / "cat_1.png"), pixels(tmp_path / "cat_2.png"))


def test_animation_shows_every_scale_at_its_size_and_ends_with_the_picture(main, tmp_path):
    status, out, _ = main(
        "generate", "cat", "--seed", "3", "--size", "256x128", "--out", "cat.png", "--animation"
    )
    assert status == 0 and out.splitlines()[-2:] == ["cat.png", "cat_growing.webp"]
    animation = Image.open(tmp_path / "cat_growing.webp")
    assert animation.n_frames == 4 and animation.size == (256, 128)
    grey = (224, 224, 224)
    for frame, (width, height) in enumerate([(128, 64), (160, 80), (192, 96)]):
        animation.seek(frame)
        shown = np.asarray(animation.convert("RGB"))
        inside = np.zeros((128, 256), bool)
        top, left = (128 - height) // 2, (256 - width) // 2
        inside[top : top + height, left : left + width] = True
        assert (shown[~inside] == grey).all()
        assert (shown[inside] != grey).any(-1).mean() > 0.5
    animation.seek(3)
    last = np.asarray(animation.convert("RGB"))
    np.testing.assert_array_equal(last, pixels(tmp_path / "cat.png"))


def test_strip_holds_every_scale_at_its_size(main, tmp_path):
    code, out, _ = main(
        "generate", "cat", "--seed", "3", "--size", "256x128", "--out", "cat.png", "--strip"
    )
    assert code == 0
    assert out.splitlines()[-2:] == ["cat.png", "cat_strip.png"]
    strip, picture = pixels(tmp_path / "cat_strip.png"), pixels(tmp_path / "cat.png")
    # Widths 128, 160, 192, 256 with gaps of 8; the last one is the picture itself.
    assert strip.shape == (128 + 16, 128 + 160 + 192 + 256 + 5 * 8, 3)
    np.testing.assert_array_equal(strip[8:136, -264:-8], picture)


def test_metadata_reproduces_the_picture(main, tmp_path):
    assert main("generate", "сat кот", "--size", "128", "--count", "2", "--out", "a.png")[0] == 0
    text = Image.open(tmp_path / "a_2.png").text
    assert text["prompt"] == "сat кот" and text["picture"] == "2"
    (tmp_path / "again.json").write_text(text["schedule"])
    again = ("generate", text["prompt"], "--seed", text["seed"], "--size", "128", "--count", "2")
    assert main(*again, "--schedule", "again.json", "--out", "b.png")[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "a_2.png"), pixels(tmp_path / "b_2.png"))


def test_seed_is_printed_and_the_name_is_made_of_prompt_and_seed(main, tmp_path):
    code, out, _ = main("generate", "Red, apple!", "--size", "128")
    seed = out.split()[1].rstrip(",")
    assert code == 0 and (tmp_path / f"red-apple-{seed}.png").is_file()


def test_out_may_be_a_folder(main, tmp_path):
    (tmp_path / "here").mkdir()
    assert main("generate", "cat", "--seed", "1", "--size", "128", "--out", "here")[0] == 0
    assert (tmp_path / "here" / "cat-1.png").is_file()


def test_empty_prompt_is_the_unconditional_one(main, tmp_path):
    code, _, err = main("generate", "", "--seed", "1", "--size", "128")
    assert code == 0 and "note" not in err
    assert main("generate", " ", "--seed", "1", "--size", "128", "--out", "space.png")[0] == 0
    np.testing.assert_array_equal(
        pixels(tmp_path / "unconditional-1.png"), pixels(tmp_path / "space.png")
    )


@pytest.mark.parametrize(
    "prompt", ["x" * 10_000, "a1 ж1 " * 1667, "красное яблоко", "🦄 苹果", "\udcff"]
)
def test_strange_prompts_give_notes_and_a_picture(main, tmp_path, prompt):
    code, _, err = main("generate", prompt, "--seed", "1", "--size", "128", "--out", "x.png")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and (tmp_path / "x.png").is_file()
    assert len(notes) <= 9
    assert notes or prompt == "\udcff"


def test_schedule_file_sets_the_steps(main, tmp_path):
    (tmp_path / "two.json").write_text('{"scales": [0.5, 1], "sigmas": [1, 0.6]}')
    command = ("generate", "cat", "--seed", "1", "--size", "128", "--schedule", "two.json")
    assert main(*command, "--strip", "--out", "x.png")[0] == 0
    assert Image.open(tmp_path / "x_strip.png").size == (64 + 128 + 3 * 8, 128 + 2 * 8)


def test_existing_file_is_kept_unless_told(main, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    command = ("generate", "cat", "--seed", "1", "--size", "128", "--out", "a.png")
    code, _, err = main(*command)
    assert code == 2 and "a.png exists already" in err
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert main(*command, "--overwrite")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (128, 128)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_existing_file_of_a_later_picture_or_strip_is_noticed_at_once(main, tmp_path):
    (tmp_path / "a_3.png").write_bytes(b"mine")
    assert main("generate", "cat", "--count", "4", "--size", "128", "--out", "a.png")[0] == 2
    (tmp_path / "b_strip.png").write_bytes(b"mine")
    assert main("generate", "cat", "--strip", "--size", "128", "--out", "b.png")[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_3.png", "b_strip.png"]


def read_only_folder(tmp_path: Path) -> Path:
    """A folder this process can't write to; root may write to almost any."""
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        return tmp_path / "locked"
    if Path("/sys").is_dir():
        return Path("/sys")
    pytest.skip("this user can write everywhere")


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
    (["--out", "apple.jpg"], [".png"]),
    (["--out", "nowhere/apple.png"], ["nowhere", "does not exist"]),
    (["--out", f"{'a' * 300}.png"], ["too long"]),
    (["--schedule", "sd99"], ["'sd99'", "emoji-4"]),
    (["--schedule", "gone.json"], ["gone.json"]),
    (["--schedule", "sdxl-4"], ["timesteps"]),
    (["--colour", "red"], ["--colour"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS, ids=lambda x: " ".join(x)[:30])
def test_bad_arguments(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["generate", "cat", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert_refused((code, *capsys.readouterr()), *words)
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
        assert_refused((cli.main(command), *capsys.readouterr()), "sched.json", *words)


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
def test_bad_weights(run_cli, tmp_path, random_weights, damage):
    folder = tmp_path / "weights"
    shutil.copytree(random_weights, folder)
    named = damage(folder)
    done = run_cli("generate", "cat", "--weights", str(folder), "--out", "cat.png", cwd=tmp_path)
    assert_refused(done, named)
    assert not (tmp_path / "cat.png").exists()


def test_no_weights_folder(run_cli, tmp_path):
    assert_refused(run_cli("generate", "cat", "--weights", "gone", cwd=tmp_path), "gone", "missing")


def test_bad_input_has_no_traceback_and_exit_code_2(run_cli, tmp_path):
    assert_refused(run_cli("generate", "cat", "--count", "0", cwd=tmp_path), "count 0")
    assert_refused(run_cli("generate", cwd=tmp_path), "prompt")
    assert_refused(run_cli(cwd=tmp_path), "COMMAND")


def test_help_teaches_and_does_not_wait_for_torch(run_cli, tmp_path):
    code, out, _ = run_cli("generate", "--help", cwd=tmp_path)
    assert code == 0
    for word in ("unconditional", "--strip", "examples:", "128 to 512", "_1"):
        assert word in out
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    assert run_cli("--help", cwd=tmp_path)[0] == 0


def test_schedule_prints_size_sigma_and_cost(monkeypatch, capsys):
    assert cli.main(["schedule", "--preset", "sd35-medium-4"]) == 0
    out = capsys.readouterr().out
    for figure in ("512x512", "0.8959", "11%", "29%", "55%", "total 2.20"):
        assert figure in out
    assert cli.main(["schedule", "--preset", "flux-4", "--size", "1344x768"]) == 0
    assert "1344x768" in capsys.readouterr().out
    assert cli.main(["schedule"]) == 0
    out = capsys.readouterr().out
    assert "sd35-medium-6" in out and "2.41" in out and "1.88" in out


def test_schedule_refuses_a_size_the_model_can_t_have(capsys):
    assert cli.main(["schedule", "--preset", "sdxl-4", "--size", "1000"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert cli.main(["schedule", "--size", "1024"]) == 2


def test_schedule_of_a_video_shows_its_frames(capsys):
    def rows(*options):
        assert cli.main(["schedule", "--preset", "wan21-1.3b-4", *options]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return [(int(r[1]), r[2]) for r in lines if len(r) == 6 and r[0].isdigit()]

    sizes = ["272x160", "416x240", "560x320", "832x480"]
    assert rows() == list(zip((6, 11, 16, 21), sizes, strict=True)), "the paper's own target"
    assert rows("--frames", "33") == list(zip((3, 5, 7, 9), sizes, strict=True))
    for options, says in (
        (["--preset", "wan21-1.3b-4", "--frames", "80"], "1, 5, 9"),
        (["--preset", "flux-4", "--frames", "81"], "flux-4 is for pictures"),
        (["--frames", "81"], "--frames needs a --preset"),
    ):
        assert cli.main(["schedule", *options]) == 2
        assert says in capsys.readouterr().err


def test_a_schedule_file_for_videos_needs_its_frames(tmp_path, capsys):
    file = tmp_path / "film.json"
    file.write_text('{"scales": [0.5, 1], "sigmas": [1, 0.6], "frames": [0.25, 1]}')
    assert cli.main(["schedule", "--preset", str(file)]) == 2
    assert "give --frames" in capsys.readouterr().err
    assert cli.main(["schedule", "--preset", str(file), "--frames", "17", "--size", "512"]) == 0
    assert [r.split()[1] for r in capsys.readouterr().out.splitlines()[1:3]] == ["2", "5"]


@pytest.mark.parametrize("command", ["generate", "drafts"])
def test_pictures_are_not_made_by_a_schedule_for_videos(command, capsys):
    assert cli.main([command, "rocket", "--schedule", "wan21-1.3b-4"]) == 2
    assert "this is a picture" in capsys.readouterr().err


def test_schedule_shows_the_steps_added_for_a_larger_target(capsys):
    assert cli.main(["schedule", "--preset", "flux-4", "--size", "2048", "--extend"]) == 0
    rows = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    sizes = ["512x512", "640x640", "768x768", "1024x1024", "1456x1456", "2048x2048"]
    levels = ["1", "0.8956", "0.7363", "0.6007", "0.558505", "0.515447"]
    assert [row for row in rows if row and "x" in row[0]] == [
        list(row) for row in zip(sizes, levels, strict=True)
    ]
    assert cli.main(["schedule", "--preset", "wan21-1.3b-4", "--extend"]) == 2
    assert "video" in capsys.readouterr().err
    assert cli.main(["schedule", "--extend"]) == 2


@pytest.mark.skipif(
    not (WEIGHTS / LORA_FOLDER).is_dir(),
    reason=f"there is no {WEIGHTS.name}/{LORA_FOLDER}: the student is not trained yet",
)
def test_embedded_student_draws_a_red_apple(run_cli, tmp_path):
    code, out, err = run_cli(
        "generate", "red apple", "--seed", "7", "--out", "apple.png", "--strip", cwd=tmp_path
    )
    assert code == 0, err
    assert json.loads(Image.open(tmp_path / "apple.png").text["schedule"])["name"] == "emoji-4"
    image = pixels(tmp_path / "apple.png").astype(float)
    assert image.shape == (256, 256, 3)
    corner, middle = image[:24, :24].mean((0, 1)), image[96:192, 80:176].mean((0, 1))
    assert corner.min() > 225, "the background is white"
    assert middle[0] > middle[1] + 110 and middle[0] > middle[2] + 80, "the apple is red"
