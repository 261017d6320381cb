"""Drafts without a host: picking, going on, files, the sheet and the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core import commands, draft_files
from swd_core.contact import contact_sheet
from swd_core.draft_files import load_drafts, save_drafts
from swd_core.drafts import Draft, Drafts, parse_picks
from swd_core.noise import draw_noise
from swd_core.process import FlowMatching
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((0.5, 0.75, 1), (1.0, 0.8, 0.6), name="three")
SIZES = SCHEDULE.sizes(8, 12)


def denoise(x_t, sigma):
    """Any fixed nonlinear function of its input, image by image."""
    return torch.tanh(x_t) * (1 + sigma) - 0.1 * x_t.flip(-1)


def advance(d: Drafts, until: int) -> Drafts:
    made = []
    sample_scalewise(
        denoise, SCHEDULE.sigmas, SIZES, d.state, d.noise, process=FlowMatching(), until=until,
        like=torch.zeros(len(d.images), 4, 8, 12), on_step=lambda i, x_t, x0: made.append(x0),
    )  # fmt: skip
    return replace(d, scales=(*d.scales, *made), samples=made[-1] * 2)


def begin(count: int, seed: int = 7) -> Drafts:
    return Drafts(SCHEDULE, "test", (8, 12), tuple(Draft(seed, i) for i in range(count)))


def straight(indices, seeds) -> torch.Tensor:
    """A whole run whose step k draws from seeds[k]."""

    def noise(step, shape):
        return draw_noise(seeds[step], indices, step, shape[1:])

    like = torch.zeros(len(indices), 4, 8, 12)
    return sample_scalewise(
        denoise, SCHEDULE.sigmas, SIZES, ScaleState(), noise, process=FlowMatching(), like=like
    ).x0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("1,4-6", [1, 4, 5, 6]),
        ("all", [1, 2, 3, 4, 5, 6, 7, 8]),
        (" ALL ", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("", []),
        (" ", []),
        ("5 2", [5, 2]),
        ("7, 7,6-8", [7, 6, 8]),
        ("2 - 3; 1", [2, 3, 1]),
        ("2–3", [2, 3]),
        ("4-4", [4]),
        ("1,", [1]),
    ],
)
def test_picks(text, numbers):
    assert [p + 1 for p in parse_picks(text, begin(8))] == numbers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("9", "no draft 9; the sheet has drafts 1 to 8"),
        ("0", "no draft 0"),
        ("1,7-9", "no draft 7-9"),
        ("1-99999999999999999999999", "no draft 1-9999"),
        ("6-4", "type 4-6"),
        ("two", "'two' is no draft's number"),
        ("-1", "'-1'"),
        ("1-", "'1-'"),
        ("1.5", "'1.5'"),
        ("all,1", "'all'"),
        ("³", "'³'"),
        ("x" * 5000, "'" + "x" * 30 + "'"),
    ],
)
def test_bad_picks(text, says):
    with pytest.raises(ValueError) as error:
        parse_picks(text, begin(8))
    assert says in str(error.value) and len(str(error.value)) < 200


def test_what_was_clicked_is_of_its_sheet(tmp_path):
    """A click is written with the sheet it was made on; any other sheet is refused."""
    sheet = advance(begin(4), 1)
    clicked = f"2,4 @{sheet.sheet}"
    assert parse_picks(clicked, sheet) == (1, 3)
    assert parse_picks(clicked.upper() + " ", advance(begin(4), 1)) == (1, 3), "run again"
    save_drafts(sheet, tmp_path / "x.drafts.safetensors")
    assert parse_picks(clicked, load_drafts(tmp_path / "x.drafts.safetensors")) == (1, 3)
    others = [
        advance(begin(4, seed=8), 1), advance(begin(5), 1), advance(begin(4), 2),
        sheet.choose([1, 0, 2, 3]), sheet.vary(5, 1),
        replace(sheet, scales=(sheet.scales[0] + 1e-3,)),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(ValueError, match="another sheet.*Click") as error:
            parse_picks(clicked, other)
        assert sheet.sheet in str(error.value) and len(str(error.value)) < 300
        assert parse_picks("2,4", other) == (1, 3), "typed numbers are of any sheet"
        assert parse_picks(f" @{sheet.sheet}", other) == ()
    assert len({d.sheet for d in (sheet, *others)}) == 7


def test_going_on_is_the_straight_run():
    for step in (1, 2):
        done = advance(advance(begin(5), step).choose([3, 1]), 3)
        assert torch.equal(done.scales[-1], straight((3, 1), (7, 7, 7)))


def test_details_draw_from_the_other_seed_after_the_pick_and_from_their_own_before():
    varied = advance(begin(3), 2).choose([2]).vary(40, 2)
    assert torch.equal(advance(varied, 3).scales[-1][1:], straight((2,), (7, 7, 41)))
    own = advance(begin(3), 1).choose([2]).vary(0, 2)
    done = advance(own, 3).scales[-1]
    assert torch.equal(done[:1], straight((2,), (7, 7, 7)))
    assert torch.equal(done[1:], straight((2,), (7, 1, 1)))


def test_details_chosen_once_stay_when_going_deeper():
    deeper = advance(advance(begin(3), 1).choose([1]).vary(9, 1), 2).vary(0, 1)
    assert torch.equal(advance(deeper, 3).scales[-1], straight((1,), (7, 9, 9)))


def test_labels_name_what_makes_the_image_again():
    assert begin(2).labels() == ["seed 7", "seed 7"]
    deeper = advance(begin(3), 1).choose([2]).vary(5, 1)
    assert deeper.labels() == ["seed 7 image 3 detail 5"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / f"a{draft_files.SUFFIX}"
    latent, mask = torch.randn(1, 4, 8, 12), torch.ones(1, 64, 96)
    made = replace(advance(begin(3, seed=2**64 - 1), 2), latent=latent, mask=mask, prompt="ж 苹果")
    save_drafts(made.choose([2, 0]).vary(2**63, 1), path)
    return path


def test_a_file_keeps_everything(file):
    loaded = load_drafts(file)
    made = advance(begin(3, seed=2**64 - 1), 2).choose([2, 0]).vary(2**63, 1)
    assert torch.equal(advance(loaded, 3).scales[-1], advance(made, 3).scales[-1])
    assert (
        loaded.images == made.images and loaded.prompt == "ж 苹果" and loaded.schedule == SCHEDULE
    )
    assert all(torch.equal(a, b) for a, b in zip(loaded.scales, made.scales, strict=True))
    assert loaded.latent.shape == (1, 4, 8, 12) and loaded.mask.shape == (1, 64, 96)


def test_a_file_that_is_there_is_kept(file):
    before = file.read_bytes()
    with pytest.raises(OSError, match="nothing was overwritten"):
        save_drafts(advance(begin(1), 1), file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == [file.name]


def change(file, **values):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["swd_drafts"])
    tensors = load_file(file)
    for key, value in values.items():
        (tensors if key.startswith(("x0", "samples", "latent")) else header)[
            key.replace("_", ".", key[0] == "x")
        ] = value
    save_file(tensors, file, {"swd_drafts": json.dumps(header)})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"noise_version": 2}, "noise rule 2.*Draft them again"),
        ({"version": 2}, "format 2.*Update the pack"),
        ({"step": 3}, "damaged"),
        ({"step": 0}, "damaged"),
        ({"images": [[1, 2, 3]]}, "damaged"),
        ({"images": None}, "damaged"),
        ({"size": "big"}, "damaged"),
        ({"schedule": {"scales": [1], "sigmas": [2]}}, "sigma 2 is outside"),
        ({"samples": torch.zeros(7, 4, 6, 9)}, "damaged"),
        ({"samples": torch.zeros(2)}, "damaged"),
        ({"samples": torch.zeros(2, 4, 6, 9, dtype=torch.int32)}, "damaged"),
        ({"x0_1": torch.zeros(2, 4, 4, 60)}, "damaged"),
        ({"latent": torch.zeros(1, 4, 80, 12)}, "damaged"),
        ({"images": [[2**64, 0, 0]] * 2}, "damaged.*18446744073709551616"),
        ({"images": [[1, -1, 0]] * 2}, "damaged.*-1"),
        ({"images": [[1, 1e400, 0]] * 2}, "damaged.*inf"),
        ({"images": [[1, 1.5, 0]] * 2}, "damaged.*1.5"),
        ({"images": [[1, "2", 0]] * 2}, "damaged.*'2'"),
        ({"images": [[1, 2, 3, 4]] * 2}, "damaged"),
        ({"images": 7}, "damaged"),
        ({"step": 1e400}, "damaged.*inf"),
        ({"step": True}, "damaged.*True"),
        ({"size": [8, 1e400]}, "damaged.*inf"),
        ({"size": [8, 12, 16]}, "damaged"),
        ({"size": [0, 12]}, "damaged.*'0'"),
        ({"size": [8, 10**9]}, "damaged"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_files_that_can_t_be_gone_on_from(file, values, says):
    change(file, **values)
    with pytest.raises(ValueError, match=says) as error:
        load_drafts(file)
    assert "a.drafts.safetensors" in str(error.value)


def test_a_file_with_more_drafts_than_a_sheet_has_is_not_read(tmp_path, monkeypatch):
    """20,000 drafts took 20 s and 1.9 GB."""
    path, many = tmp_path / f"many{draft_files.SUFFIX}", 20_000
    x0 = torch.zeros(many, 1, 2, 3)
    images = tuple(Draft(7, i) for i in range(many))
    made = Drafts(SCHEDULE, "test", (4, 6), images, (x0,), x0.clone())
    with pytest.raises(ValueError, match="20000; ask for 1 to 256"):
        save_drafts(made, path)
    assert not list(tmp_path.iterdir())
    save_drafts(replace(made, images=made.images[:9]), path)
    change(path, images=[[7, i, 0] for i in range(many)])
    monkeypatch.setattr(draft_files, "read_tensors", None)
    with pytest.raises(ValueError, match="damaged: the number of its images is 20000"):
        load_drafts(path)


def test_a_finished_size_that_the_file_makes_up_is_refused(tmp_path):
    """Scales of next to nothing, so that the small latents fit any size: 640 GB were asked for."""
    path = tmp_path / f"large{draft_files.SUFFIX}"
    x0 = torch.zeros(1, 16, 2, 2)
    schedule = ScaleSchedule((1e-5, 1.0), (1.0, 0.5))
    save_drafts(Drafts(schedule, "test", (100_000, 100_000), (Draft(1, 0),), (x0,), x0 + 1), path)
    with pytest.raises(ValueError, match="large.*damaged.*would have 596 GB when finished"):
        load_drafts(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "7", "null", '{"version": 1}', '{"version": []}'], ids=len
)
def test_headers_that_are_none_are_one_error_that_names_the_file(file, text):
    save_file(load_file(file), file, {"swd_drafts": text})
    with pytest.raises(ValueError, match="a.drafts.safetensors"):
        load_drafts(file)


def test_files_that_are_no_drafts(tmp_path, file):
    with pytest.raises(ValueError, match="no drafts file gone"):
        load_drafts(tmp_path / "gone.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{file.name} is not a whole"):
        load_drafts(file)
    save_file({"latent_tensor": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no drafts"):
        load_drafts(file)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 256])
@pytest.mark.parametrize("size", [(128, 128), (48, 96), (512, 256)])
def test_every_cell_of_a_sheet_shows_its_picture_over_its_label(count, size):
    shades = [(k % 16 * 15 + 15, k // 16 * 15 + 15, 128) for k in range(count)]
    labels = ["seed 18446744073709551615 image 256"] * count
    sheet = contact_sheet([Image.new("RGB", size, shade) for shade in shades], labels)
    assert sheet.columns * sheet.rows >= count > sheet.columns * (sheet.rows - 1)
    pixels = np.asarray(sheet.picture)
    high, wide = pixels.shape[0] / sheet.rows, pixels.shape[1] / sheet.columns
    assert wide >= 128 and pixels.shape[1] <= 2048
    for k, shade in enumerate(shades):
        x, y = int(k % sheet.columns * wide), int(k // sheet.columns * high)
        cell = pixels[y : y + int(high), x : x + int(wide)]
        assert tuple(cell[int(high - 44) // 2, int(wide) // 2]) == shade
        ink = (cell[-44:].astype(int).min(-1) > 150).any(0).nonzero()[0]
        assert 0 < ink.min() and ink.max() < wide - 1, "the label stays within its cell"


@pytest.fixture
def main(monkeypatch, capsys, tmp_path, random_weights):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = commands.main([*arguments, "--weights", str(random_weights)])
        return code, *capsys.readouterr()

    return run


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
        (["finish", "--pick", "1"], "no drafts file"),
        (["finish", "gone", "--pick", "1"], "no drafts file gone"),
    ],
)
def test_one_line_for_what_can_t_be_done(main, tmp_path, arguments, says):
    code, out, err = main(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pick", ["3", "2-1", "x", ""])
def test_bad_picks_leave_the_drafts_alone(main, tmp_path, pick):
    main("drafts", "cat", "--size", "128", "--count", "2", "--out", "d.png")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, _, err = main("finish", "--pick", pick)
    assert code == 2 and len(err.splitlines()) == 1 and "pick" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("label", ["two\nlines", "\ud800 half", "\0", "", " \t ", "x" * 5000])
@pytest.mark.parametrize("size", [(1, 1), (8192, 8), (8, 8192)], ids=str)
def test_a_sheet_is_made_of_any_picture_and_label(label, size):
    """Captions of prepared pictures come from files; the shown sheet must not stop a training."""
    sheet = contact_sheet([Image.new("RGB", size, "red")] * 3, [label] * 3)
    assert sheet.picture.width <= 2048 and sheet.count == 3
