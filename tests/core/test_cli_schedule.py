"""`python -m swd_core schedule`: sizes, noise levels and costs before anything is run."""

import pytest

from swd_core import commands


def test_schedule_prints_size_sigma_and_cost(monkeypatch, capsys):
    assert commands.main(["schedule", "--preset", "sd35-medium-4"]) == 0
    out = capsys.readouterr().out
    for figure in ("512x512", "0.8959", "11%", "29%", "55%", "total 2.20"):
        assert figure in out
    assert commands.main(["schedule", "--preset", "flux-4", "--size", "1344x768"]) == 0
    assert "1344x768" in capsys.readouterr().out
    assert commands.main(["schedule"]) == 0
    out = capsys.readouterr().out
    assert "sd35-medium-6" in out and "2.41" in out and "1.88" in out


def test_schedule_refuses_a_size_the_model_can_t_have(capsys):
    assert commands.main(["schedule", "--preset", "sdxl-4", "--size", "1000"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert commands.main(["schedule", "--size", "1024"]) == 2
    capsys.readouterr()
    assert commands.main(["schedule", "--preset", "flux-4", "--extend"]) == 2
    assert "--extend needs the --size" in capsys.readouterr().err


def test_schedule_of_a_video_shows_its_frames(capsys):
    def rows(*options):
        assert commands.main(["schedule", "--preset", "wan21-1.3b-4", *options]) == 0
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
        assert commands.main(["schedule", *options]) == 2
        assert says in capsys.readouterr().err


def test_a_schedule_file_for_videos_needs_its_frames(tmp_path, capsys):
    file = tmp_path / "film.json"
    file.write_text('{"scales": [0.5, 1], "sigmas": [1, 0.6], "frames": [0.25, 1]}')
    assert commands.main(["schedule", "--preset", str(file)]) == 2
    assert "give --frames" in capsys.readouterr().err
    options = ["--preset", str(file), "--frames", "17", "--size", "512"]
    assert commands.main(["schedule", *options]) == 0
    assert [r.split()[1] for r in capsys.readouterr().out.splitlines()[1:3]] == ["2", "5"]


@pytest.mark.parametrize("command", ["generate", "drafts"])
def test_pictures_are_not_made_by_a_schedule_for_videos(command, capsys):
    assert commands.main([command, "rocket", "--schedule", "wan21-1.3b-4"]) == 2
    assert "this is a picture" in capsys.readouterr().err


def test_schedule_shows_the_steps_added_for_a_larger_target(capsys):
    assert commands.main(["schedule", "--preset", "flux-4", "--size", "2048", "--extend"]) == 0
    rows = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    sizes = ["512x512", "640x640", "768x768", "1024x1024", "1456x1456", "2048x2048"]
    levels = ["1", "0.8956", "0.7363", "0.6007", "0.558505", "0.515447"]
    assert [row for row in rows if row and "x" in row[0]] == [
        list(row) for row in zip(sizes, levels, strict=True)
    ]
    assert commands.main(["schedule", "--preset", "wan21-1.3b-4", "--extend"]) == 2
    assert "video" in capsys.readouterr().err
    assert commands.main(["schedule", "--extend"]) == 2
