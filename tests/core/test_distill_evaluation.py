"""What a training shows and measures of its student on the way, without touching the training."""

import sys
import types
from pathlib import Path

import distill_runs as runs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from swd_core.distill import session
from swd_core.distill.checkpoint import load_checkpoint
from swd_core.distill.evaluation import grid, measures, student_latents
from swd_core.distill.world import World
from swd_core.noise import SeededNoise
from swd_core.process import FlowMatching
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.scenes.student import SceneStudent


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_weights) -> Path:
    return runs.make_place(tmp_path_factory.mktemp("distill"), random_weights)


@pytest.fixture(scope="module")
def straight(place) -> Path:
    """The run that nothing happens to."""
    return runs.train(place, "straight")


def test_every_save_has_a_sheet_and_measures(straight):
    found = runs.evaluations(straight)
    assert list(found) == list(range(2, runs.STEPS + 1, 2))
    sheets = sorted(p.name for p in (straight / "samples").iterdir())
    assert sheets == [f"step_{step:06}.png" for step in found]
    for values in found.values():
        assert values.keys() == {"mmd", "squared", "top_octave"}
        assert all(np.isfinite(v) and v > 0 for v in values.values())
    pictures = [np.asarray(Image.open(straight / "samples" / name)) for name in sheets]
    assert all(p.shape == pictures[0].shape for p in pictures)
    assert (pictures[0] != pictures[-1]).any(), "the student changes"


def test_sampling_leaves_the_training_alone(place, straight):
    """The same losses, checkpoint and student with samples and without; no VAE without them."""
    without = runs.changed(runs.settings_of(place, "without"), "output", samples=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "load_decoder", None)
        session.train(without)
    assert not runs.evaluations(place / "without") and not (place / "without" / "samples").exists()
    assert runs.losses(place / "without") == runs.losses(straight)
    a, b = (load_checkpoint(r / "checkpoint.pt") for r in (place / "without", straight))
    for name in ("student", "fake", "average"):
        assert all(torch.equal(x, y) for x, y in zip(a[name], b[name], strict=True))


def test_steps_touch_neither_vae_nor_text_encoder(place, monkeypatch):
    """The VAE is loaded once, for the first sheet, and decodes nothing but the sheets' pictures."""
    calls = []

    class Decoder:
        def pictures(self, latents):
            calls.append(len(runs.losses(place / "touch")))
            return torch.zeros(len(latents), 64, 64, 3)

    monkeypatch.setattr(session, "load_decoder", lambda *_: calls.append("loaded") or Decoder())
    runs.train(place, "touch", steps=5)
    assert calls == ["loaded", 2, 2, 4, 4, 5, 5]


def test_the_sheet_shows_the_averaged_student_of_the_first_captions(
    place, straight, random_weights
):
    """Sampled again by the embedded student's own code with the LoRA that was written."""
    student = SceneStudent.load(random_weights, lora=straight / "swd_lora")
    settings = runs.settings_of(place)
    schedule, text = settings.scale_schedule(), student.encode(["a fox", "a fox"])
    state = sample_scalewise(
        student.denoiser(text), schedule.sigmas, schedule.sizes(8, 8, 2), ScaleState(),
        SeededNoise(0, (0, 1)), process=FlowMatching(), like=torch.zeros(2, 16, 8, 8),
    )  # fmt: skip
    trainer = session.build_trainer(settings, World())
    session.restore(trainer, straight / "checkpoint.pt")
    kept = [p.detach().clone() for p in trainer.student]
    shown = trainer.batches.first(2)
    latents = student_latents(trainer, shown).cpu()
    torch.testing.assert_close(latents, state.x0, rtol=0, atol=2e-3 * float(state.x0.abs().max()))
    assert all(torch.equal(p, k) for p, k in zip(trainer.student, kept, strict=True))
    assert shown.captions == ("a fox", "a fox")
    assert grid([torch.rand(600, 400, 3)], ["large"]).height > 600, "not made smaller"
    sheet = grid(list(student.decode(state.x0)), shown.captions)
    written = Image.open(straight / "samples" / f"step_{runs.STEPS:06}.png")
    difference = abs(np.asarray(sheet, np.int16) - np.asarray(written, np.int16))
    assert sheet.size == written.size and difference.max() <= 3


def test_any_caption_fits_under_its_picture():
    """Captions are whole paragraphs at times, or nothing."""
    plain = np.asarray(grid([torch.ones(64, 64, 3)] * 2, ["", ""]))
    found = np.asarray(grid([torch.ones(64, 64, 3)] * 2, ["a long one,\n" * 30, ""]))
    assert found.shape == plain.shape
    changed = np.nonzero((found != plain).any((0, 2)))[0]
    assert len(changed) and changed.max() < found.shape[1] / 2, "not under the next one"


def test_measures_are_zero_for_the_real_latents(place, straight):
    trainer = session.build_trainer(runs.settings_of(place), World())
    shown = trainer.batches.first(3)
    assert measures(trainer, shown.real, shown) == {"mmd": 0.0, "squared": 0.0, "top_octave": 1.0}
    blurred = F.avg_pool2d(shown.real, 3, 1, 1)
    found = measures(trainer, blurred, shown)
    assert found["mmd"] > 0 and found["squared"] > 0 and found["top_octave"] < 0.7
    difference = (blurred - shown.real).square().mean()
    assert found["squared"] == pytest.approx(float(difference), abs=1e-5)


def test_a_failing_evaluation_loses_no_step(place, monkeypatch):
    def fails(*_):
        raise OSError("no room for the sheet")

    monkeypatch.setattr(session.Record, "evaluation", fails)
    with pytest.raises(OSError, match="no room"):
        runs.train(place, "failing")
    assert load_checkpoint(place / "failing" / "checkpoint.pt")["step"] == 2


def test_tensorboard_gets_losses_measures_and_sheets(place, monkeypatch):
    written = []

    class Board:
        def __init__(self, folder, purge_step):
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def add_image(self, name, value, step, dataformats):
            written.append((name, step, value.ndim, dataformats))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    runs.train(place, "board", steps=3)
    assert written[0] == ("tensorboard", 0)
    assert ("loss/mmd", 1) in written and ("evaluation/mmd", 2) in written
    assert [w for w in written if w[0] == "samples"] == [
        ("samples", 2, 3, "HWC"), ("samples", 3, 3, "HWC")
    ]  # fmt: skip
