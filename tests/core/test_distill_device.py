"""A step on another device than the processor: whole there, and nobody waits for it.

torch's device without numbers stands for a graphics card: it refuses to be mixed with the processor
and to be read from.
"""

import contextlib
import importlib.util
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from swd_core.distill.diffusers_models import wrap  # noqa: E402
from swd_core.distill.interface import DistillConfig  # noqa: E402
from swd_core.distill.scalewise import Interval  # noqa: E402
from swd_core.distill.trainer import Trainer  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "distill_models", Path(__file__).with_name("distill_models.py")
)
models = sys.modules["distill_models"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)

DEVICE = torch.device("meta")


@dataclass
class Sent:
    """Batches as the trainer's own data gives them: all but what is read as numbers is sent."""

    batches: models.RandomBatches

    def steps(self, rng: random.Random) -> list[Interval]:
        return self.batches.steps(rng)

    def draw(self, *asked):
        real, previous, text = self.batches.draw(*asked)
        previous = None if previous is None else previous.to(DEVICE)
        return real.to(DEVICE), previous, text.sent(DEVICE)

    def unconditional(self, count: int):
        return self.batches.unconditional(count).sent(DEVICE)


@pytest.mark.parametrize("family", ["sd3", "flux", "sdxl", *models.LANGUAGE])
def test_a_step_reads_nothing_back_before_its_end(family, monkeypatch):
    cpu = torch.autocast

    def autocast(kind, *given, **named):  # which the device without numbers doesn't know
        return contextlib.nullcontext() if kind == "meta" else cpu(kind, *given, **named)

    monkeypatch.setattr(torch, "autocast", autocast)
    model = wrap(models.small_model(family).to(DEVICE), rank=2, checkpointing=True)
    model.module.train()
    config = DistillConfig(batch_tokens=16, fake_steps=1, backward_simulation=1.0, autocast=True)
    trainer = Trainer(model, Sent(models.RandomBatches(family)), config, last=1)
    read: list[int] = []
    monkeypatch.setattr(trainer, "settle", lambda: read.append(trainer.step))
    trainer.train_step()
    assert read == [0], "once in a step, at its end"
