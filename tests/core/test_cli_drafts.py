"""`python -m swd_core drafts` and `finish`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swd_core import draft_files
from swd_core.drafts import Draft, Drafts
from swd_core.growth import GrowthSchedule


def pixels_of(path):
    return np.asarray(Image.open(path))


def test_finished_drafts_are_the_pictures_of_generate(main, tmp_path):
    command = ("cat", "--seed", "3", "--size", "128")
    assert main("generate", *command, "--count", "3", "--out", "g.png")[0] == 0
    for step in ("1", "3"):
        name = ("--stop-after", step, "--out", f"d{step}.png")
        assert main("drafts", *command, "--count", "4", *name)[0] == 0
        assert main("finish", f"d{step}{draft_files.SUFFIX}", "--pick", "3,1")[0] == 0
        for k in (1, 3):
            expected = pixels_of(tmp_path / f"g_{k}.png")
            np.testing.assert_array_equal(pixels_of(tmp_path / f"d{step}_{k}.png"), expected)


def test_finish_takes_the_newest_drafts_and_varies_details(main, tmp_path):
    assert main("drafts", "cat", "--seed", "3", "--size", "128", "--count", "2")[0] == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["cat-3-drafts.png", f"cat-3{draft_files.SUFFIX}"]
    code, out, _ = main("finish", "--pick", "2", "--detail-seed", "5", "--variations", "2")
    assert code == 0 and out.splitlines()[1:] == ["cat-3_2-1.png", "cat-3_2-2.png"]
    one, two = (pixels_of(tmp_path / f"cat-3_2-{k}.png") for k in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drafts", "cat", "--count", "0"], "1 to 256"),
        (["drafts", "cat", "--count", "10000"], "1 to 256"),
        (["drafts", "cat", "--stop-after", "4"], "step 1 to 3"),
        (["drafts", "cat", "--stop-after", "0"], "step 1 to 3"),
        (["drafts", "cat", "--seed", "-1"], "seed -1"),
        (["drafts", "cat", "--size", "100"], "Size 100"),
        (["drafts", "cat", "--schedule", "sdxl-4"], "timesteps"),
        (["drafts", "cat", "--out", "a.jpg"], ".png"),
        (["finish", "--pick", "1"], "or name one elsewhere"),
        (["finish", "gone", "--pick", "1"], "no drafts file gone. Name one"),
    ],
)
def test_one_line_for_what_can_t_be_done(main, tmp_path, arguments, says):
    code, out, err = main(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["generate", "drafts"])
def test_a_schedule_of_another_model_runs_and_says_so(main, tmp_path, command):
    picture = (command, "cat", "--seed", "3", "--size", "128", "--schedule")
    code, _, err = main(*picture, "flux-4")
    assert code == 0 and len(list(tmp_path.iterdir())) > 0
    assert "flux-4 was made for another model" in err and "scenes-4" in err
    code, _, err = main(*picture, "scenes-4", "--overwrite")
    assert code == 0 and "made for another model" not in err


@pytest.mark.parametrize("pick", ["3", "2-1", "x", ""])
def test_bad_picks_leave_the_drafts_alone(main, tmp_path, pick):
    main("drafts", "cat", "--size", "128", "--count", "2", "--out", "d.png")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, _, err = main("finish", "--pick", pick)
    assert code == 2 and len(err.splitlines()) == 1 and "pick" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_drafts_that_grow_by_comfyuis_samplers_are_left_to_it(main):
    x0 = torch.zeros(1, 16, 4, 4)
    schedule = GrowthSchedule((1.0, 0.5))
    drafts = Drafts(
        schedule, "scenes", (8, 8), (Draft(1, 0),), (x0,), samples=x0, x_t=x0, stretches=2
    )
    draft_files.save_drafts(drafts, Path(f"g{draft_files.SUFFIX}"))
    code, _, err = main("finish", "--pick", "1")
    assert code != 0 and "Finish them in ComfyUI" in err
