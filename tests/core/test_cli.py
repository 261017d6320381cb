"""The command line as a user runs it: pictures, files, metadata."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swd_core.noise import SeededNoise
from swd_core.presets import presets
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.scenes.student import PRESET, SceneStudent


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_picture_is_the_sampler_s_with_the_named_seed(main, tmp_path, random_weights):
    assert main("generate", "a fox", "--seed", "7", "--size", "160x128", "--out", "fox.png")[0] == 0
    student, schedule = SceneStudent.load(random_weights), presets()[PRESET].schedule
    like = torch.zeros(1, 16, 16, 20)
    state = sample_scalewise(
        student.denoiser(student.encode(["a fox"])),
        schedule.sigmas,
        schedule.sizes(16, 20),
        ScaleState(),
        SeededNoise(7, (0,)),
        process=student.process,
        like=like,
    )
    expected = (student.decode(state.x0)[0] * 255).round().byte().numpy()
    assert Image.open(tmp_path / "fox.png").size == (160, 128)
    np.testing.assert_array_equal(pixels(tmp_path / "fox.png"), expected)


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


def test_help_teaches_and_does_not_wait_for_torch(run_cli, tmp_path):
    code, out, _ = run_cli("generate", "--help", cwd=tmp_path)
    assert code == 0
    for word in ("unconditional", "--strip", "examples:", "128 to 512", "_1"):
        assert word in out
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    assert run_cli("--help", cwd=tmp_path)[0] == 0


def test_embedded_student_draws_a_fox_and_the_night(run_cli, tmp_path):
    def drawn(prompt: str) -> np.ndarray:
        code, _, err = run_cli("generate", prompt, "--seed", "7", "--out", "a.png", "--overwrite",
                               cwd=tmp_path)  # fmt: skip
        assert code == 0 and "note" not in err, err
        assert json.loads(Image.open(tmp_path / "a.png").text["schedule"])["name"] == "scenes-4"
        image = pixels(tmp_path / "a.png").astype(float)
        assert image.shape == (256, 256, 3)
        return image

    def orange(image: np.ndarray) -> float:
        """How much more red than blue the reddest 32-pixel square has."""
        squares = image.reshape(8, 32, 8, 32, 3).mean((1, 3))
        return (squares[..., 0] - squares[..., 2]).max()

    night, day = drawn("a fox in the snow at night"), drawn("a koala in the snow by day")
    assert orange(night) > 60 > orange(day) + 20, "foxes are orange, snow and koalas are not"
    assert day[:32].mean() > night[:32].mean() + 60, "the sky is dark at night"
