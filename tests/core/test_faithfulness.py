"""The committed figures of how faithful drafts are are those of the shipped student."""

import json
from pathlib import Path

import pytest

from swd_core.emoji.student import EmojiStudent
from swd_core.lab.emoji_faithfulness import measure, prompts

ROOT = Path(__file__).parents[2]
COUNT = 32


def test_drafts_are_as_faithful_as_the_documentation_says():
    """On 32 of the prompts, within four standard errors of the mean."""
    committed = json.loads((ROOT / "docs" / "faithfulness.json").read_text())
    found = measure(EmojiStudent.load(), prompts(10_000)[-COUNT:])
    assert {str(stop) for stop in found} == set(committed)
    for stop, likeness in found.items():
        row = committed[str(stop)]
        assert row["images"] >= 256
        for name, values in (("psnr", likeness.psnr), ("ssim", likeness.ssim)):
            error = row[f"{name}_sd"] / COUNT**0.5
            assert float(values.mean()) == pytest.approx(row[name], abs=4 * error), (stop, name)


def test_a_longer_draft_is_more_faithful():
    found = measure(EmojiStudent.load(), prompts(8))
    means = [float(likeness.psnr.mean()) for likeness in found.values()]
    assert means == sorted(means) and means[0] > 15
