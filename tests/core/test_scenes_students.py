"""Students of scenes: what they are trained on, how they are sampled, compared and measured."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scene_shards import SHARD, random_teacher, shards

from swd_core.distill.draws import Draws
from swd_core.distill.interface import DistillConfig
from swd_core.distill.scalewise import Interval, intervals
from swd_core.lab import ablation, evaluate, faithfulness, train_student, ways
from swd_core.lab.classifier import SceneClassifier
from swd_core.lab.latents import LatentShards, latent_path
from swd_core.lab.pictures import picture_path
from swd_core.lab.scene_batches import NoiseFirst, SceneBatches
from swd_core.lab.train_student import begin_run, steps_for, train
from swd_core.lab.train_teacher import Teacher
from swd_core.lab.ways import Way, generate, sample_noise_first
from swd_core.lora_files import read_lora
from swd_core.process import FlowMatching
from swd_core.scenes.captions import caption
from swd_core.scenes.catalogue import scene_of
from swd_core.scenes.student import VAE_FILE, SceneStudent, load_text_encoder
from swd_core.scenes.text import SceneTextEncoder, SceneTokenizer, vocabulary


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return shards(tmp_path, monkeypatch)


@pytest.fixture
def run(tmp_path):
    return random_teacher(tmp_path / "run")


def batches(folder, sides=(16, 20, 24, 32), **options) -> SceneBatches:
    steps = intervals([(s, s) for s in sides], (1.0, 0.9, 0.7, 0.6)[: len(sides)])
    text = SceneTextEncoder(len(vocabulary()))
    return SceneBatches(LatentShards(folder), SceneTokenizer(vocabulary()), text, steps, **options)


def test_a_pair_is_one_picture_at_two_sizes_with_its_own_caption(folder):
    data = batches(folder)
    real, previous, text = data.draw(data.schedule[2], 40, random.Random(3))
    large, small = (data.data.latents[side].float() for side in (24, 20))
    which = [next(i for i in range(SHARD) if torch.equal(large[i], row)) for row in real]
    assert set(which) == set(range(SHARD)), "only pictures that there are at every size"
    assert torch.equal(previous, small[which])
    rng = random.Random(3)
    assert which == [rng.randrange(SHARD) for _ in range(40)]
    captions = [caption(scene_of(0, i), rng) for i in which]
    ids = torch.tensor([data.tokenizer.encode(words)[0] for words in captions])
    assert torch.equal(text.context, data.text.words(ids)) and len(text.pooled) == 40


def test_a_process_draws_its_rows_of_the_same_batch(folder):
    data = batches(folder)
    whole = data.draw(data.schedule[1], 10, random.Random(0))
    part = data.draw(data.schedule[1], 10, random.Random(0), slice(4, 7))
    parts = [(*drawn[:2], *drawn[2].parts.values()) for drawn in (whole, part)]
    assert all(torch.equal(a[4:7], b) for a, b in zip(*parts, strict=True))


def test_pictures_without_a_size_are_not_drawn(folder):
    assert batches(folder, (16, 20)).count == 2 * SHARD
    assert batches(folder).count == SHARD
    latent_path(folder, 24, 0).unlink()
    with pytest.raises(ValueError, match=r"all of \[16, 20, 24, 32\] cells.*swd_core\.lab\.laten"):
        batches(folder)
    assert batches(folder, latent_space=True).count == SHARD


def test_in_latent_space_small_latents_are_shrunk_ones(folder):
    data = batches(folder, latent_space=True)
    real, previous, _ = data.draw(data.schedule[1], 5, random.Random(3))
    rng = random.Random(3)
    largest = data.data.latents[32][[rng.randrange(SHARD) for _ in range(5)]].float()
    for found, side in ((real, 20), (previous, 16)):
        wanted = F.interpolate(largest, (side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, wanted)


def test_the_unconditional_text_is_that_of_an_empty_prompt(folder):
    data = batches(folder)
    ids = torch.tensor([data.tokenizer.encode("")[0]])
    for found, wanted in zip(data.unconditional(3).parts.values(), data.text(ids), strict=True):
        assert torch.equal(found, wanted.expand_as(found)) and len(found) == 3


def test_noise_first_trains_on_enlarged_noise():
    trainer = object.__new__(NoiseFirst)
    trainer.process, trainer.device = FlowMatching(), torch.device("cpu")
    previous, real = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 12, 12)
    interval = Interval((12, 12), 0.8, (8, 8))
    found = trainer.input(interval, real, previous, Draws(3))
    noise = Draws(3).noise(previous.shape)
    wanted = F.interpolate(0.2 * previous + 0.8 * noise, (12, 12), mode="bicubic")
    torch.testing.assert_close(found, wanted)
    first = trainer.input(Interval((12, 12), 1.0, None), real, None, Draws(3))
    torch.testing.assert_close(first, Draws(3).noise(real.shape))


def test_sampling_noise_first_enlarges_what_is_noisy():
    noises = {8: torch.randn(1, 2, 8, 8), 16: torch.randn(1, 2, 16, 16)}
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x * 0.5

    like = torch.zeros(1, 2, 16, 16)
    out = sample_noise_first(denoise, (1.0, 0.6), (8, 16), lambda _, s: noises[s[-1]], like)
    assert torch.equal(seen[0], noises[8])
    wanted = F.interpolate(0.4 * 0.5 * noises[8] + 0.6 * noises[8], (16, 16), mode="bicubic")
    torch.testing.assert_close(seen[1], wanted)
    torch.testing.assert_close(out, 0.5 * wanted)


def test_euler_with_guidance_is_the_textbooks(run):
    model = SceneStudent.load(run, lora=None)
    text, empty = model.encode(["a fox"]), model.encode([""])
    way = ways.teacher_way(3, guidance=3.0, side=8)
    found = generate(model, way, text, 4, range(2, 3))
    x = ways.SeededNoise(4, (2,))(0, (1, 16, 8, 8))
    levels = [0.75 * u / (1 - 0.25 * u) for u in (1, 2 / 3, 1 / 3, 0)]
    with torch.no_grad():
        for level, following in zip(levels, levels[1:], strict=False):
            sigma = torch.tensor([level])
            wanted, free = (model.model(x, sigma, t.context, t.pooled) for t in (text, empty))
            x = x + (following - level) * (free + 3 * (wanted - free))
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_as_many_pictures_are_more_steps_of_full_size():
    config = DistillConfig(batch_tokens=2048)
    # 8, 10, 12 and 16 patches a side: 32, 20, 14 and 8 pictures a batch, each as often.
    assert steps_for(18_500, "scalewise4", config) == 1000
    assert steps_for(18_500, "full4", config) == round(18_500 / 8)
    rows = {v.name: v for v in ablation.VARIANTS}
    assert ablation.steps_of(rows["full4"], 1000, config) == 1000
    more = ablation.steps_of(rows["full4_pictures"], 1000, config)
    assert more == pytest.approx(18_500 / 8, rel=0.03)


@pytest.mark.parametrize("student", ["scalewise4", "full2", "scalewise6"])
def test_a_trained_student_is_loaded_with_its_schedule(folder, run, student):
    config = DistillConfig(batch_tokens=64, fake_steps=1, warmup=1, lr=1e-2)
    assert train(LatentShards(folder), run, student, config, "made", steps=2) == 2
    sides, sigmas = ways.STUDENTS[student]
    schedule = read_lora(run / "made").schedule
    assert schedule.sigmas == sigmas and schedule.sizes(32, 32) == [(s, s) for s in sides]
    teacher, made = (SceneStudent.load(run, lora=lora) for lora in (None, "made"))
    way, text = Way("", "made", sides, sigmas), teacher.encode(["a fox"])
    a, b = (generate(model, way, text, 0, range(1)) for model in (teacher, made))
    assert b.isfinite().all() and (a - b).abs().max() > 1e-4


def test_the_same_seed_trains_the_same_student(folder, run):
    def trained(name: str, seed: int, **options) -> tuple[list[torch.Tensor], ...]:
        config = DistillConfig(batch_tokens=64, fake_steps=1, warmup=1, seed=seed)
        train(LatentShards(folder), run, "scalewise4", config, name, steps=1, **options)
        layers = read_lora(run / name).layers.values()
        return [layer.down for layer in layers], [layer.up for layer in layers]

    def alike(a, b) -> list[bool]:
        return [torch.equal(x, y) for x, y in zip(a, b, strict=True)]

    (down, up), again, other = trained("a", 1), trained("b", 1), trained("c", 2)
    assert all(alike(down, again[0]) + alike(up, again[1]))
    assert not any(alike(down, other[0]))
    odd = trained("d", 1, noise_first=True, latent_space=True)
    assert not all(alike(up, odd[1])), "the first step moves these alone"


def test_a_folder_without_a_teacher_gets_the_present_one(tmp_path, run, monkeypatch):
    torch.manual_seed(7)
    teacher = Teacher(len(vocabulary()), depth=1)
    monkeypatch.setattr(train_student, "load_teacher", lambda _: teacher)
    begin_run(tmp_path / "new", run)
    _, text = load_text_encoder(tmp_path / "new" / "scenes_text.safetensors")
    torch.testing.assert_close(text.words.weight, teacher.text.words.weight, atol=1e-2, rtol=1e-3)
    assert (tmp_path / "new" / VAE_FILE).read_bytes() == (run / VAE_FILE).read_bytes()
    torch.nn.init.zeros_(teacher.text.words.weight)
    begin_run(tmp_path / "new", run)
    _, kept = load_text_encoder(tmp_path / "new" / "scenes_text.safetensors")
    assert torch.equal(kept.words.weight, text.words.weight), "a run keeps its teacher"


def test_the_nearest_training_picture_stands_below(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, numbers = SceneClassifier().eval(), np.random.default_rng(0)
    for shard in range(2):
        blocks = numbers.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        np.save(picture_path(tmp_path, shard), blocks.repeat(16, 1).repeat(16, 2))
    training = np.concatenate([np.load(picture_path(tmp_path, shard)) for shard in range(2)])
    chosen = training[[9, 2]]
    pixels = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    rows = evaluate.beside_nearest(model, pixels, tmp_path, columns=2)
    assert np.array_equal(rows[:2], chosen) and np.array_equal(rows[2:], chosen)


def test_drafts_that_show_the_same_are_faithful(monkeypatch):
    torch.manual_seed(0)
    model = SceneClassifier().eval()
    blocks = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    finished = blocks.repeat_interleave(32, 2).repeat_interleave(32, 3)
    same = finished[..., ::2, ::2].contiguous()
    other = (same.float() * 0.2).byte()
    monkeypatch.setattr(
        faithfulness, "grow", lambda _, prompts, first: [
            part[first : first + len(prompts)] for part in (same, other, finished)
        ],
    )  # fmt: skip
    scenes = [scene_of(0, i) for i in range(8)]
    found = faithfulness.measure(None, model, scenes, batch=3)
    assert found["1"]["everything"] == [1, 1, 1] and found["1"]["psnr"][0] == pytest.approx(80)
    assert found["1"]["images"] == 8 and found["1"]["side"] == 128
    error = (same.float() - other.float()).div(255).square().mean((1, 2, 3))
    assert found["2"]["psnr"][0] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-4)
    assert found["2"]["ssim"][0] < found["1"]["ssim"][0] == pytest.approx(1)
