"""What `make bench-distill` compares with: the recipe by itself, on the batches of the trainer."""

import argparse
import ast
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from distill import PlainLora, recipe, stepper, trainer  # noqa: E402
from distill_data import SMALL, made_up, pictures, prepare  # noqa: E402
from recipe import patch_loss  # noqa: E402


def test_the_recipe_has_nothing_of_this_pack():
    tree = ast.parse((BENCHMARKS / "recipe.py").read_text())
    found = {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name for name in found if name.startswith(("swd_core", "distill", "paired"))}


def test_its_patch_loss_is_the_published_formula():
    """Each channel's distance between means over a picture's tokens, by numbers done by hand."""
    real = torch.tensor([[[1.0, 2.0], [3.0, 2.0]]])  # means 2, 2
    fake = torch.tensor([[[2.0, 5.0], [2.0, 5.0]]])  # means 2, 5
    smooth = (9 + 1e-6) ** 0.5 - 1e-3
    assert float(patch_loss(real, fake)) == pytest.approx(smooth / 2, rel=1e-6)


@pytest.mark.parametrize("fake_steps", [0, 2])
def test_both_sides_are_given_the_same_batches(fake_steps):
    options, drawn = argparse.Namespace(batch_tokens=32, fake_steps=fake_steps), []
    pictures = made_up(SMALL)
    for side in (recipe, trainer):
        data = replace(pictures)
        draw, found = data.draw, []

        def watched(interval, count, rng, draw=draw, found=found):
            batch = draw(interval, count, rng)
            found.append((interval.size, batch[2].context))
            return batch

        data.draw = watched
        step = stepper(side(SMALL, data, options))
        for _ in range(3):
            step()
        drawn.append(found)
    theirs, ours = drawn
    assert len(theirs) == 3 * (fake_steps + 1), "and none ahead on a processor"
    for a, b in zip(theirs, ours, strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize("side", [recipe, trainer, PlainLora])
@pytest.mark.parametrize("prepared", [True, False])
def test_a_side_is_whole_on_its_device_and_never_waits_for_it(side, prepared, monkeypatch):
    """torch refuses to mix its device without numbers with the processor, and to read from it."""
    real = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *a, **k: contextlib.nullcontext() if kind == "meta" else real(kind, *a, **k),
    )
    options = argparse.Namespace(batch_tokens=32, fake_steps=2)
    scale = replace(SMALL, device="meta")
    every = pictures(scale)
    run = side(scale, prepare(every, scale) if prepared else every, options)
    run.settle = lambda: None  # once in a step the trainer reads the losses
    step = stepper(run)
    for _ in range(2):
        step()
    assert run.step == 2
