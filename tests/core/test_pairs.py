"""Pairs of noise and the teacher's picture of it, and the first step that learns from them."""

import random
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from swd_core.distill.conditioning import Conditioning
from swd_core.distill.draws import Draws
from swd_core.distill.interface import DistillConfig
from swd_core.distill.objective import Seen
from swd_core.distill.scalewise import intervals
from swd_core.lab import latents, pairs
from swd_core.lab.latents import LatentShards, drawn_prompts, latent_path, prompt_path
from swd_core.lab.pairs import Pairs, make_pairs, pairs_path
from swd_core.lab.scene_batches import SceneBatches
from swd_core.lab.train_student import train
from swd_core.lora_files import read_lora
from swd_core.noise import draw_noise
from swd_core.scenes.student import TEXT_FILE, SceneStudent, load_text_encoder

SHARD, SIZES = 4, (16, 20, 24, 32)


@pytest.fixture
def made(random_weights, tmp_path, monkeypatch) -> Pairs:
    monkeypatch.setattr(pairs, "SHARD", SHARD)
    make_pairs(random_weights, tmp_path, 7, batch=3)
    return Pairs(tmp_path)


@pytest.fixture
def data(tmp_path, monkeypatch) -> LatentShards:
    monkeypatch.setattr(latents, "SHARD", SHARD)
    generator = torch.Generator().manual_seed(5)
    for side in SIZES:
        rows = torch.randn(SHARD, 16, side, side, generator=generator).half()
        save_file({"latents": rows}, latent_path(tmp_path, side, 0))
    save_file({"prompts": drawn_prompts(0, 0)}, prompt_path(tmp_path, 0))
    return LatentShards(tmp_path)


def batches(data: LatentShards, weights, **options) -> SceneBatches:
    tokenizer, text = load_text_encoder(weights / TEXT_FILE)
    steps = intervals([(side, side) for side in SIZES], (1.0, 0.9, 0.7, 0.6))
    return SceneBatches(data, tokenizer, text, steps, **options)


@torch.inference_mode()
def test_a_pair_is_what_the_guided_teacher_makes_of_its_noise(made, random_weights):
    """Euler's steps and the shift of the noise levels are written anew here."""
    assert len(made.latents) == 2 * SHARD, "whole files"
    teacher = SceneStudent.load(random_weights, lora=None)
    rows = [6, 1]
    x = made.noise(rows)
    assert torch.equal(x[0], draw_noise(1, [2], 0, (16, 16, 16))[0]), "row 6: the second file's 2"
    context, pooled = teacher.text(made.prompts[rows])
    empty = teacher.text(torch.zeros_like(made.prompts[rows]))
    times = torch.linspace(1, 0, 13, dtype=torch.float64)
    sigmas = 1.5 * times / (1 + 0.5 * times)  # half of the shift of 3 at twice the side
    for sigma, after in pairwise(sigmas.tolist()):
        level = torch.full((2,), sigma)
        plain = teacher.model(x, level, *empty)
        x = x + (after - sigma) * (plain + 3 * (teacher.model(x, level, context, pooled) - plain))
    found = made.latents[rows].float()
    assert (found - x).square().mean() < 1e-3 * x.square().mean(), "but for bfloat16"


def test_files_that_are_there_are_kept(made, random_weights, tmp_path):
    before = pairs_path(tmp_path, 1).read_bytes()
    pairs_path(tmp_path, 0).unlink()
    make_pairs(random_weights, tmp_path, 9, batch=4)
    assert pairs_path(tmp_path, 1).read_bytes() == before
    assert len(Pairs(tmp_path).latents) == 3 * SHARD
    pairs_path(tmp_path, 1).unlink()
    assert len(Pairs(tmp_path).latents) == SHARD, "not those behind a gap: numbers are seeds"
    pairs_path(tmp_path, 0).unlink()
    with pytest.raises(FileNotFoundError, match=r"python -m swd_core\.lab\.pairs"):
        Pairs(tmp_path)


def test_the_first_step_gets_the_pairs_and_the_others_pictures(made, data, random_weights):
    with_pairs, without = (batches(data, random_weights, pairs=p) for p in (made, None))
    first, second = with_pairs.schedule[:2]
    real, noise, text = with_pairs.draw(first, 6, random.Random(2))
    rows = [next(i for i, x in enumerate(made.latents) if torch.equal(x.float(), y)) for y in real]
    assert len(set(rows)) > 1 and torch.equal(noise, made.noise(rows))
    assert torch.equal(text.context, with_pairs.text.words(made.prompts[rows]))
    a, b = (batch.draw(second, 6, random.Random(2)) for batch in (with_pairs, without))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    part = with_pairs.draw(first, 6, random.Random(2), slice(2, 5))
    assert torch.equal(part[0], real[2:5]) and torch.equal(part[1], noise[2:5])


def test_a_share_of_the_batches_is_the_first_steps_alone(made, data, random_weights):
    rng = random.Random(0)
    drawn = batches(data, random_weights, pairs=made, first=0.25)
    alone = sum(len(drawn.steps(rng)) == 1 for _ in range(2000))
    assert 420 < alone < 580
    assert all(len(batches(data, random_weights).steps(rng)) == len(SIZES) for _ in range(9))
    early = batches(data, random_weights, pairs=made, first=0.25, early=0.5)
    lengths = [len(early.steps(rng)) for _ in range(2000)]
    shares = {n: lengths.count(n) / 2000 for n in set(lengths)}
    assert shares == pytest.approx({1: 0.25, 2: 0.375, len(SIZES): 0.375}, abs=0.04)


def test_only_the_first_steps_prediction_is_held_to_its_pair():
    config, text, draws = DistillConfig(), Conditioning(torch.empty(0)), Draws(0)
    loss = pairs.pair_loss(2.0)["pairs"]
    for side, wanted in ((16, 9.0), (20, 0.0)):
        x0 = torch.full((2, 16, side, side), 1.0, requires_grad=True)
        found = loss.function(Seen(config, torch.full_like(x0, 4.0), x0, text, draws))
        found.backward()
        assert found.item() == pytest.approx(wanted) and (x0.grad is not None)
    assert loss.weight == 2.0


def test_training_on_pairs_brings_the_first_step_nearer_to_the_teacher(
    made, data, random_weights, tmp_path
):
    run = tmp_path / "run"
    run.symlink_to(random_weights)
    config = DistillConfig(mmd=0, dmd=0, gan=0, batch_tokens=256, lr=3e-3, ema=0.5)
    train(data, run, "scalewise4", config, "near", pairs=made, first=1.0, steps=12)

    @torch.no_grad()
    def distance(lora: str | None) -> float:
        student = SceneStudent.load(run, lora=lora)
        x = made.noise(list(range(len(made.prompts))))
        velocity = student.model(x, torch.ones(len(x)), *student.text(made.prompts))
        return (x - velocity - made.latents.float()).square().mean().item()

    assert distance("near") < 0.9 * distance(None)
    assert read_lora(run / "near").schedule.name == "scenes-4"
