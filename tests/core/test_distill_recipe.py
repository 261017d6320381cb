"""The trainer against the published recipe, whose formulas are written anew here.

Models are diffusers', adapters and their initial values peft's; of ours nothing is asked but what
it drew at random, its losses, its gradients and what it made of them.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from recipe_reference import (  # noqa: E402
    GUIDANCE,
    RANK,
    Reference,
    fake_losses,
    student_losses,
)

from swd_core.distill import trainer as trainer_module  # noqa: E402
from swd_core.distill.adapters import active_adapter, adapter_state, switched_layers  # noqa: E402
from swd_core.distill.conditioning import Conditioning  # noqa: E402
from swd_core.distill.diffusers_models import wrap  # noqa: E402
from swd_core.distill.draws import Draws  # noqa: E402
from swd_core.distill.interface import DistillConfig  # noqa: E402
from swd_core.distill.scalewise import intervals  # noqa: E402
from swd_core.distill.trainer import Trainer  # noqa: E402
from swd_core.distill.world import World  # noqa: E402

STEPS = intervals([(4, 6), (6, 8), (8, 8)], (1.0, 0.8959, 0.6022))


def small_sd3(width: int) -> nn.Module:
    """SD3 of three blocks (two where they are wide), the first with a second attention."""
    torch.manual_seed(0)
    layers = 3 if width < 1000 else 2
    model = diffusers.SD3Transformer2DModel(
        sample_size=32, num_layers=layers, attention_head_dim=64, num_attention_heads=width // 64,
        in_channels=16, joint_attention_dim=24, caption_projection_dim=width,
        pooled_projection_dim=32, pos_embed_max_size=16, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )  # fmt: skip
    return model.requires_grad_(False)


class Data:
    """Random latents; `seen` has what was drawn, in order."""

    def __init__(self):
        self.seen, self.generator = [], torch.Generator().manual_seed(9)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def steps(self, rng):
        return STEPS

    def draw(self, interval, count, rng, part):
        previous = self.normal(count, 16, *interval.previous) if interval.previous else None
        text = Conditioning(self.normal(count, 5, 24), self.normal(count, 32))
        self.seen.append((interval, self.normal(count, 16, *interval.size), previous, text))
        _, real, previous, text = self.seen[-1]
        return real, previous, text

    def unconditional(self, count):
        generator = torch.Generator().manual_seed(7)
        context = torch.randn(1, 5, 24, generator=generator)
        return Conditioning(context.expand(count, -1, -1), torch.zeros(count, 32))


@dataclass(frozen=True)
class Watched(World):
    """One process that keeps the gradients that a descent begins with."""

    seen: list[list[torch.Tensor]] = field(default_factory=list)

    def average_gradients(self, parameters) -> None:
        self.seen.append([p.grad.clone() for p in parameters])


DRAWN: list[torch.Tensor] = []


class Recorded(Draws):
    """Keeps noise and noise levels in the order in which they are drawn."""

    def noise(self, shape):
        DRAWN.append(super().noise(shape))
        return DRAWN[-1]

    def levels(self, *arguments):
        DRAWN.append(super().levels(*arguments))
        return DRAWN[-1]


@pytest.fixture
def drawn(monkeypatch) -> list[torch.Tensor]:
    DRAWN.clear()
    monkeypatch.setattr(trainer_module, "Draws", Recorded)
    return DRAWN


def trainer_of(base: nn.Module, **options) -> Trainer:
    """With adapters that do something: a new one's second matrix is 0."""
    config = DistillConfig(
        batch_tokens=48, fake_steps=1, guidance=GUIDANCE, **{"lr": 1e-3, **options}
    )
    trainer = Trainer(wrap(base, rank=RANK), Data(), config, world=Watched())
    generator = torch.Generator().manual_seed(4)
    for layer in switched_layers(trainer.model.module).values():
        for name in ("student", "fake"):
            part = layer.up[name].data
            part.copy_(0.02 * torch.randn(part.shape, generator=generator))
    return trainer


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance=1e-5) -> None:
    """Relative to the largest value of all."""
    largest = max(float(e.abs().max()) for e in expected)
    worst = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
    assert largest > 0 and worst <= tolerance * largest, (worst, largest)


def test_an_interval_begins_at_its_own_noise_level_from_the_size_before():
    assert [(step.size, step.previous, step.sigma) for step in STEPS] == [
        ((4, 6), None, 1.0),
        ((6, 8), (4, 6), 0.8959),
        ((8, 8), (6, 8), 0.6022),
    ]


@pytest.mark.parametrize("width", [64, 1536])
def test_one_step_has_the_published_losses_and_gradients(width, drawn):
    ours = trainer_of(small_sd3(width))
    reference = Reference(ours)
    assert reference.layers.keys() == adapter_state(ours.model.module, "student").keys()
    fake_before = [p.detach().clone() for p in ours.fake]
    ours.step = 3
    ours.train_step()
    fake_seen, student_seen = ours.batches.seen[:2]  # the next step's may be drawn, too
    assert len(drawn) == 8 and fake_seen[0].previous or student_seen[0].previous

    losses = fake_losses(reference, fake_seen, drawn[:3])
    trained = [*reference.parameters("fake"), *reference.head.parameters()]
    for mine, theirs in zip(trained, fake_before, strict=True):
        assert torch.equal(mine, theirs)
    expected = torch.autograd.grad(losses["fake"], trained)
    found_fake, found_student = ours.world.seen
    assert_near(found_fake, expected)

    # The student's step is taken with the fake score as it is after its own.
    for mine, theirs in zip(trained, ours.fake, strict=True):
        mine.data.copy_(theirs.data)
    empty = ours.batches.unconditional(len(student_seen[1]))
    losses |= student_losses(reference, student_seen, empty, drawn[3:])
    total = losses["dmd"] + losses["gan"] + losses["mmd"]
    expected = torch.autograd.grad(total, reference.parameters("student"))
    assert_near(found_student, expected)
    values = {name: value.item() for name, value in losses.items()}
    assert ours.means() == pytest.approx(values, rel=1e-5)


def levels_of(trainer: Trainer, low_high: tuple[float, float]) -> torch.Tensor:
    x = torch.zeros(8, 1, 1, 1)
    renoise = trainer.objective.renoise
    return torch.cat([renoise(low_high, Draws(seed), x)[0] for seed in range(250)])


def test_noise_levels_are_those_of_the_published_scheduler():
    """28 steps of diffusers' scheduler with shift 3: 0 to 27, 12 to 27 and 18 to 27, evenly."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    trainer = trainer_of(small_sd3(64))
    config = trainer.config
    for first, low_high in ((0, (0.0, 1.0)), (12, config.dmd_sigma), (18, config.mmd_sigma)):
        wanted = scheduler.sigmas[first:28].flip(0)
        found, counts = levels_of(trainer, low_high).unique(return_counts=True)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        assert counts.min() > 0.6 * 2000 / len(wanted)
    found = levels_of(trainer_of(small_sd3(64), levels="uniform"), (0.2, 0.4))
    assert len(found.unique()) == 2000 and 0.2 <= found.min() and found.max() <= 0.4


@pytest.mark.parametrize("clip", [10.0, 0.0])
def test_the_optimiser_is_the_published_one(clip):
    """AdamW by its own formula: betas .9 and .999, decay 1e-2, gradients no longer than 10."""
    trainer = trainer_of(small_sd3(64), dmd=0.0, gan=0.0, mmd=3e4, clip=clip, warmup=1)
    before = [p.detach().double() for p in trainer.student]
    first = [torch.zeros_like(p) for p in before]
    second = [torch.zeros_like(p) for p in before]
    for step in range(1, 4):
        trainer.train_step()
        gradients = [g.double() for g in trainer.world.seen[-1]]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert length > 20, "long enough to be clipped"
        share = clip / length if clip else 1.0
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * share * g
            second[i] = 0.999 * second[i] + 0.001 * (share * g) ** 2
            moved = first[i] / (1 - 0.9**step)
            moved = moved / ((second[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            before[i] = before[i] * (1 - 1e-3 * 1e-2) - 1e-3 * moved
    assert_near([p.detach().double() for p in trainer.student], before, 1e-5)
    for group in trainer.optimiser_fake.param_groups:
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 1e-2)


def test_the_lora_is_the_published_one():
    """242 layers of SD3.5 Medium, first matrices of spread 1 / rank, second ones of 0."""
    with torch.device("meta"):
        medium = diffusers.SD3Transformer2DModel(
            num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
            caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)), qk_norm="rms_norm", sample_size=128,
        )  # fmt: skip
    assert len(adapter_state(wrap(medium, rank=64).module, "student")) == 242
    for rank in (8, 64):
        wrapped = wrap(small_sd3(64), rank=rank)
        for adapter in ("student", "fake"):
            pairs = adapter_state(wrapped.module, adapter).values()
            downs = torch.cat([down.flatten() for down, _ in pairs])
            assert float(downs.std()) == pytest.approx(1 / rank, rel=0.02)
            assert abs(float(downs.mean())) < 0.02 / rank
            assert all(not up.any() for _, up in pairs)


def test_without_distribution_matching_the_teacher_is_not_asked(monkeypatch):
    """The discriminator needs the fake score's tokens and nothing else."""
    asked = []
    for dmd in (1.0, 0.0):
        trainer = trainer_of(small_sd3(64), dmd=dmd, mmd=0.0, gan=1.0)
        call = trainer.model._call
        monkeypatch.setattr(
            trainer.model,
            "_call",
            lambda *a, call=call, t=trainer, **k: (
                asked.append((t.config.dmd, active_adapter(t.model.module))) or call(*a, **k)
            ),
        )
        trainer.train_step()
    assert asked.count((1.0, None)) == 2 and asked.count((0.0, None)) == 0
    # Its own step: noise and real latents. The student's: the tokens alone.
    assert asked.count((0.0, "fake")) == 3 and asked.count((0.0, "student")) == 2
