"""Twenty steps of every loss on every family of diffusers models."""

import copy
import importlib.util
import math
import random
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

pytest.importorskip("diffusers")

from swd_core.distill.adapters import adapter, adapter_state  # noqa: E402
from swd_core.distill.ahead import ahead as drawn_ahead  # noqa: E402
from swd_core.distill.diffusers_models import wrap  # noqa: E402
from swd_core.distill.draws import Draws  # noqa: E402
from swd_core.distill.evaluation import measures, student_latents  # noqa: E402
from swd_core.distill.interface import Shown  # noqa: E402
from swd_core.distill.trainer import DistillConfig, Trainer  # noqa: E402
from swd_core.distill.world import World  # noqa: E402
from swd_core.lab.train_student import train_for  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "distill_models", Path(__file__).with_name("distill_models.py")
)
models = sys.modules["distill_models"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)

RANK = 4
FAMILIES = ("sd3", "flux", "sdxl", *models.LANGUAGE)


def trainer_for(family: str, base: torch.dtype = torch.float32, **options) -> Trainer:
    wrapped = wrap(models.small_model(family).to(base), rank=RANK)
    config = DistillConfig(
        **{"batch_tokens": 16, "fake_steps": 1, "warmup": 1, "lr": 2e-3, **options}
    )
    return Trainer(wrapped, models.RandomBatches(family), config)


LOSSES = {
    "all": {},
    "mmd": {"dmd": 0.0, "gan": 0.0},
    "dmd": {"mmd": 0.0, "gan": 0.0},
    "gan": {"mmd": 0.0, "dmd": 0.0, "gan": 1.0},
}
RBF = {"dmd": 0.0, "gan": 0.0, "kernel": "rbf", "mmd_per_batch": True}
CASES = {f"sd3-{name}": ("sd3", options) for name, options in LOSSES.items()} | {
    "sd3-rbf": ("sd3", RBF),
    **{f"{f}-{name}": (f, LOSSES[name]) for f in ("flux", "sdxl") for name in ("all", "mmd")},
    **{f"{f}-{name}": (f, options) for f in models.LANGUAGE for name, options in LOSSES.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_of_each_loss(case):
    trainer = trainer_for(CASES[case][0], **CASES[case][1])
    frozen = {
        n: p.clone() for n, p in trainer.model.module.named_parameters() if not p.requires_grad
    }
    for _ in range(20):
        trainer.train_step()
    assert trainer.step == 20
    assert all(torch.isfinite(torch.tensor(v)) for v in trainer.means().values())
    ups = [up for _, up in adapter_state(trainer.model.module, "student").values()]
    assert sum(bool(up.abs().max() > 0) for up in ups) > len(ups) / 2
    now = dict(trainer.model.module.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items()), "the base never changes"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_in_bfloat16_trains_and_is_sampled(family):
    """As on a graphics card: the base in half precision, adapters and losses in full."""
    trainers = [trainer_for(family), trainer_for(family, base=torch.bfloat16)]
    interval = models.steps(family)[-1]
    real, _, text = models.RandomBatches(family).draw(interval, 3, random.Random(7))
    shown = Shown(("a", "b", "c"), models.steps(family), real, text)
    found = []
    for trainer in trainers:
        for _ in range(2):
            trainer.train_step()
        assert all(p.dtype == torch.float32 for p in trainer.average)
        x0 = student_latents(trainer, shown)
        assert x0.shape == real.shape and x0.dtype == torch.float32
        assert all(math.isfinite(v) for v in measures(trainer, x0, shown).values())
        found.append(x0)
    assert (found[0] - found[1]).abs().mean() < 0.05 * found[0].abs().mean()


@dataclass(frozen=True)
class Watched(World):
    """One process that keeps the gradients that a descent begins with."""

    seen: list[list[torch.Tensor]] = field(default_factory=list)

    def average_gradients(self, parameters) -> None:
        # Nothing comes of the text behind the last block.
        self.seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone()
                          for p in parameters])  # fmt: skip


def watched_and_another(family: str) -> tuple[Trainer, Trainer]:
    """Two equal trainers after one step, so that no adapter is bare."""
    trainers = []
    for _ in range(2):
        trainer = trainer_for(family, accumulate=2, regression=0.5, gan=1.0)
        trainer.train_step()
        trainer.config = replace(trainer.config, fake_steps=0)
        trainer.forget_drawn()
        trainers.append(trainer)
    trainers[0].world = Watched()
    return trainers[0], trainers[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_part_by_part_the_students_gradient_is_that_of_the_whole_loss(family):
    watched, other = watched_and_another(family)
    watched.train_step()

    draws, total = Draws(random.Random(1).getrandbits(62)), 0.0
    for _ in range(2):
        real, x0, text = other._generate(other._draw(draws), draws)
        for part in other.objective.parts:
            total += sum(part(real, x0, text, draws).values()) / 2
    expected = torch.autograd.grad(total, other.student, materialize_grads=True)
    torch.testing.assert_close(watched.world.seen[0], list(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_part_by_part_the_fake_scores_gradient_is_that_of_the_whole_loss(family):
    watched, other = watched_and_another(family)
    watched._fake_step()

    draws, total = Draws(random.Random(1).getrandbits(62)), 0.0
    for _ in range(2):
        with torch.no_grad():
            real, x0, text = other._generate(other._draw(draws), draws)
        sigma, (noisy, noisy_real) = other.objective.renoise((0.0, 1.0), draws, x0, real)
        total += sum(other.objective.fake(x0, noisy, sigma, text).values()) / 2
        total += other.objective.real(noisy_real, sigma, text) / 2
    expected = torch.autograd.grad(total, other.fake, materialize_grads=True)
    torch.testing.assert_close(watched.world.seen[0], list(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["sd3", "sdxl"])
def test_backward_simulation_goes_on_from_what_the_student_itself_made(family):
    trainer = trainer_for(family, backward_simulation=1.0)
    trainer.train_step()
    steps = models.steps(family)
    draws = Draws(3)
    real, x0, text = trainer._generate(trainer._draw(draws, steps), draws)

    draws, expected, (count, channels) = Draws(3), None, real.shape[:2]
    with torch.no_grad(), adapter(trainer.model.module, "student"):
        for step in steps:
            noise = draws.noise((count, channels, *step.size))
            x_t = step.sigma * noise
            if expected is not None:
                up = F.interpolate(expected, size=step.size, mode="bicubic")
                x_t = x_t + (1 - step.sigma if family == "sd3" else 1) * up
            expected = trainer.model.predict(x_t, torch.full((count,), step.sigma), text)
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-5)
    trainer.config = replace(trainer.config, backward_simulation=0.0)
    draws = Draws(3)
    _, other, _ = trainer._generate(trainer._draw(draws, steps), draws)
    assert not torch.allclose(other, x0, atol=1e-2)


def test_mmd_alone_makes_the_students_means_those_of_the_data():
    """What the loss is for: the distance that it measures falls."""
    trainer = trainer_for("sd3", dmd=0.0, gan=0.0, batch_tokens=256, lr=5e-3)
    values = []
    for _ in range(60):
        trainer.train_step()
        values.append(trainer.means()["mmd"])
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_is_saved_and_goes_on(stop, tmp_path):
    trainer = trainer_for("sd3", dmd=0.0, gan=0.0, accumulate=2)
    draw, drawn, written = trainer.batches.draw, [], []

    def draw_and_stop(*args, **kwargs):
        drawn.append(args)
        if len(drawn) == 5:
            signal.raise_signal(stop)
        return draw(*args, **kwargs)

    trainer.batches.draw = draw_and_stop
    path = tmp_path / "student.pt"
    train_for(trainer, path, lambda: written.append(trainer.step), minutes=60)
    assert len(drawn) == 5, "no other batch is begun"
    assert trainer.step == 2 and written == [2]
    again = trainer_for("sd3", dmd=0.0, gan=0.0, accumulate=2)
    again.resume(path)
    assert again.step == 2
    assert all(torch.equal(a, b) for a, b in zip(again.student, trainer.student, strict=True))


class Late:
    """Batches whose every draw but the first waits until the losses of the one before are asked."""

    def __init__(self, trainer: Trainer):
        self.draw, self.asked = trainer.batches.draw, threading.Semaphore(0)
        self.count, part = 0, trainer.objective.of_others
        trainer.batches.draw = self.drawn

        def asked(*arguments):
            self.asked.release()
            return part(*arguments)

        trainer.objective.of_others = asked

    def drawn(self, *arguments):
        self.count += 1
        assert self.count == 1 or self.asked.acquire(timeout=60), "not drawn beside the training"
        return self.draw(*arguments)


def test_the_next_batch_is_drawn_while_one_is_trained_with():
    """Also over the end of a step; and the bits are those of drawing each when it is needed."""
    ahead, plain = (trainer_for("sd3", dmd=0.0, gan=0.0, accumulate=2) for _ in range(2))
    late, ahead._ahead = Late(ahead), drawn_ahead
    for trainer in (ahead, plain):
        for _ in range(3):
            trainer.train_step()
    assert late.count >= 6
    assert all(torch.equal(a, b) for a, b in zip(ahead.student, plain.student, strict=True))
    assert ahead.means() == plain.means()


def test_a_processor_draws_in_the_thread_that_trains():
    """A second one that computes would have the first one's OpenMP threads sleep between calls."""
    trainer, threads = trainer_for("sd3", fake_steps=1), set()
    draw = trainer.batches.draw

    def watched(*arguments):
        threads.add(threading.get_ident())
        return draw(*arguments)

    trainer.batches.draw = watched
    trainer.train_step()
    assert threads == {threading.get_ident()}


def test_with_a_fake_score_the_bits_are_those_of_drawing_each_when_it_is_needed():
    ahead, plain = (trainer_for("sd3", fake_steps=2, accumulate=2) for _ in range(2))
    ahead._ahead = drawn_ahead
    for trainer in (ahead, plain):
        for _ in range(2):
            trainer.train_step()
        trainer.settle()
    assert all(torch.equal(a, b) for a, b in zip(ahead.student, plain.student, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ahead.fake, plain.fake, strict=True))


def test_what_is_wrong_with_a_batch_is_said_when_it_is_needed():
    trainer = trainer_for("sd3", dmd=0.0, gan=0.0, accumulate=2)
    draw, drawn = trainer.batches.draw, []

    def damaged(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise ValueError("shard 3 is damaged")
        return draw(*arguments)

    trainer.batches.draw = damaged
    trainer.train_step()
    with pytest.raises(ValueError, match="shard 3"):
        trainer.train_step()
    assert trainer.step == 1


class Reads(TorchFunctionMode):
    """Counts what makes a program wait for its graphics card: numbers taken out of tensors."""

    KINDS = ("item", "tolist", "__float__", "__bool__", "__int__", "__index__", "cpu", "numpy")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.KINDS
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once():
    trainer = trainer_for("sd3", accumulate=3, fake_steps=4)
    with Reads() as reads:
        trainer.train_step()
    assert reads.count == 1
    found = trainer.means()
    assert found.keys() == {"mmd", "dmd", "gan", "fake", "head"}


def test_the_discriminator_judges_in_single_precision():
    """As the authors' does, outside of autocast; what it sees may be rounded."""
    trainer, off = trainer_for("sd3"), []

    def judged(head, given, out):
        exact = copy.deepcopy(head).double()
        exact._forward_hooks.clear()
        with torch.autocast("cpu", enabled=False):
            off.append(float((out.double() - exact(given[0].double())).abs().max().detach()))

    trainer.head.register_forward_hook(judged)
    with torch.autocast("cpu", torch.bfloat16):
        trainer.train_step()
    assert len(off) > 2 and max(off) < 1e-5


def test_losses_are_the_means_over_all_batches_of_a_step():
    """Batches of one step, each by itself, give the losses that the step notes."""
    trainer, single = (trainer_for("sd3", accumulate=3, fake_steps=0) for _ in range(2))
    trainer.step = 5
    trainer.train_step()
    draws, values = Draws(random.Random(5).getrandbits(62)), []
    for _ in range(3):
        real, x0, text = single._generate(single._draw(draws), draws)
        parts = (part(real, x0, text, draws) for part in single.objective.parts)
        values.append({name: v.item() for part in parts for name, v in part.items()})
    expected = {name: sum(v[name] for v in values) / 3 for name in values[0]}
    assert trainer.means() == pytest.approx(expected, rel=1e-5)
