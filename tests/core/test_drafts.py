"""Drafts without a host: picking, going on and the sheet."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from draft_runs import SCHEDULE, SIZES, advance, begin, denoise
from PIL import Image

from swd_core.contact import contact_sheet
from swd_core.draft_files import load_drafts, save_drafts
from swd_core.drafts import parse_picks
from swd_core.noise import draw_noise
from swd_core.process import FlowMatching
from swd_core.sampling import ScaleState, sample_scalewise


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
    # Of several sheets' clicks each has its own.
    both = f"2,4 @{sheet.sheet}; 3 @{others[0].sheet}"
    assert parse_picks(both, sheet) == (1, 3) and parse_picks(both, others[0]) == (2,)
    with pytest.raises(ValueError, match="another sheet.*Click"):
        parse_picks(both, others[1])
    with pytest.raises(ValueError, match="'1' stands behind a sheet's name"):
        parse_picks(clicked + ", 1", sheet)


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


def test_rows_of_several_prompts_name_their_places_alike():
    two = begin(4)
    prompts = ("fox", "fox", "owl", "owl")
    images = [
        replace(d, index=k % 2, prompt=p)
        for k, (d, p) in enumerate(zip(two.images, prompts, strict=True))
    ]
    labels = replace(two, images=tuple(images)).labels()
    assert labels == ["seed 7 image 1", "seed 7 image 2"] * 2


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


@pytest.mark.parametrize(
    ("counts", "columns"), [((3, 3), 3), ((1, 4, 2), 4), ((16, 1), 8), ((1, 1, 1), 1)]
)
def test_each_heading_has_rows_of_its_own(counts, columns):
    """And stands above the first of them, within the sheet."""
    names = [f"{'a long prompt ' * 30}{n}" for n, _ in enumerate(counts)]
    headings = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    pictures = [Image.new("RGB", (64, 64), (0, 200, 0))] * len(headings)
    sheet = contact_sheet(pictures, ["seed 1"] * len(headings), headings=headings)
    rows = [math.ceil(count / columns) for count in counts]
    assert (sheet.columns, sheet.rows, sheet.count) == (columns, sum(rows), sum(counts))
    pixels = np.asarray(sheet.picture).astype(int)
    high, wide = pixels.shape[0] // sheet.rows, pixels.shape[1] // columns
    k = 0
    for n, count in enumerate(counts):
        for i in range(count):
            row, column = sum(rows[:n]) + i // columns, i % columns
            assert sheet.places[k] == (row, column)
            cell = pixels[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            assert tuple(cell[30 + 4 + 64, wide // 2]) == (0, 200, 0)
            has_heading = (cell[:30].min(-1) > 150).any()
            assert column or has_heading == (i == 0), "on the first row alone"
            k += 1
    assert (pixels[:, -4:].min(-1) < 60).all(), "clipped at the sheet's edge"


@pytest.mark.parametrize("label", ["two\nlines", "\ud800 half", "\0", "", " \t ", "x" * 5000])
@pytest.mark.parametrize("size", [(1, 1), (8192, 8), (8, 8192)], ids=str)
def test_a_sheet_is_made_of_any_picture_and_label(label, size):
    """Captions of prepared pictures come from files; the shown sheet must not stop a training."""
    sheet = contact_sheet([Image.new("RGB", size, "red")] * 3, [label] * 3)
    assert sheet.picture.width <= 2048 and sheet.count == 3


def test_a_heading_shows_no_boxes_for_letters_that_the_font_has_not():
    pictures, labels = [Image.new("RGB", (128, 128))] * 4, [""] * 4

    def sheet(*headings: str) -> bytes:
        rows = [heading for heading in headings for _ in "ab"]
        return contact_sheet(pictures, labels, headings=rows).picture.tobytes()

    assert sheet("Лиса в снегу", "a fox 🦊 in snow") == sheet("prompt 1", "a fox in snow")
    assert sheet("a fox", "ثعلب") == sheet("a fox", "prompt 2")
    assert sheet("Äpfel", "2") == sheet("Apfel", "2")
