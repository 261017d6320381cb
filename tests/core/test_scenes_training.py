"""The laboratory of scenes: shards that grow, a training that goes on, sampling that arrives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from swd_core.distill.checkpoint import load_checkpoint
from swd_core.lab import latents, pictures
from swd_core.lab.latents import LatentShards, drawn_prompts, encoded, latent_path, prompt_path
from swd_core.lab.pictures import load_pictures, picture_path, shrunk
from swd_core.lab.sheet import sample, tiled
from swd_core.lab.train_autoencoder import WIDTHS, export, random_crops, whole_loss
from swd_core.lab.train_teacher import (
    CHECKPOINT,
    MODEL_FILE,
    RECORD,
    TEXT_FILE,
    load_teacher,
    rate,
    sample_sigma,
    train,
)
from swd_core.scenes.autoencoder import Autoencoder
from swd_core.scenes.catalogue import PLACES, PROPS, SEATED, THINGS, TIMES, scene_of
from swd_core.scenes.sprites import FluentSprites
from swd_core.scenes.student import VAE_FILE
from swd_core.scenes.text import MAX_TOKENS, PAD, SceneTokenizer, vocabulary
from swd_core.scenes.world import World


def write_shard(folder, side: int, shard: int) -> None:
    """1,000 latents, each filled with its own number in thousandths."""
    numbers = torch.arange(1000 * shard, 1000 * (shard + 1)) / 1000
    rows = numbers.half()[:, None, None, None].expand(-1, 16, side, side)
    save_file({"latents": rows.contiguous()}, latent_path(folder, side, shard))
    prompts = torch.arange(1000, dtype=torch.int16) % 50
    prompts = prompts[:, None, None].expand(-1, 8, MAX_TOKENS).contiguous()
    save_file({"prompts": prompts}, prompt_path(folder, shard))


def test_shards_that_appear_are_taken_in_with_their_captions(tmp_path):
    write_shard(tmp_path, 16, 0)
    data = LatentShards(tmp_path, seed=4)
    assert data.weights(0.8) == [0.8, 0, 0, 0]
    write_shard(tmp_path, 16, 1)
    write_shard(tmp_path, 32, 0)
    data.refresh()
    assert data.weights(0.8) == pytest.approx([0.8, 0, 0, 0.1])
    x0, ids = data.batch(200, 16, torch.Generator().manual_seed(0))
    numbers = (x0[:, 0, 0, 0] * 1000).round().int().tolist()
    assert max(numbers) > 1000 and len(set(numbers)) > 150 and x0.dtype == torch.float32
    # Half precision names a number below 1.0 to a quarter of a thousandth, above to a half.
    assert ids[:, 0].tolist() == [n % 50 for n in numbers]
    assert LatentShards(tmp_path, count=1000).counts == {16: 1000, 32: 1000}


def test_no_latents_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"swd_core\.lab\.latents"):
        LatentShards(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"swd_core\.lab\.pictures"):
        load_pictures(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="teacher"):
        load_teacher(tmp_path)


def test_a_share_of_the_captions_is_empty(tmp_path):
    write_shard(tmp_path, 16, 1)
    write_shard(tmp_path, 16, 0)
    data = LatentShards(tmp_path)
    _, ids = data.batch(1500, 16, torch.Generator().manual_seed(0), without=0.1)
    assert 0.08 < float((ids == PAD).all(1).float().mean()) < 0.13


def test_captions_name_what_their_pictures_show():
    prompts, known = drawn_prompts(shard=3, seed=2), SceneTokenizer(vocabulary())
    assert len(prompts) == 1000 and len({tuple(row.tolist()) for row in prompts[:, 0]}) > 500
    meanings = known.meanings
    for number in range(0, 1000, 99):
        scene = scene_of(2, 3000 + number)
        wrong = {m for m in (*PLACES, *TIMES, *THINGS) if m not in scene.things} - {
            scene.place, scene.time}  # fmt: skip
        said = [{meanings[i] for i in ids} for ids in prompts[number].tolist()]
        assert not any(wrong & words for words in said)
        assert set(scene.things) <= set().union(*said), "in some of its captions"


def test_the_rate_warms_up_stays_and_falls():
    assert rate(0, 100, 0) == pytest.approx(1 / 200)
    assert rate(199, 100, 0) == rate(100_000, 0.1, 0) == 1
    falling = [rate(1000, left, fall=20) for left in (100, 20, 10, 0, -1)]
    assert falling == pytest.approx([1, 1, 0.5, 0, 0])


def test_noise_levels_rise_with_the_size():
    generator = torch.Generator().manual_seed(0)
    small, large = (sample_sigma(20_000, side, generator) for side in (16, 32))
    assert 0 <= small.min() and large.max() <= 1
    # The median of a logit-normal level is a half, shifted by s it is s / (1 + s).
    assert float(small.median()) == pytest.approx(1.5 / 2.5, abs=0.01)
    assert float(large.median()) == pytest.approx(3 / 4, abs=0.01)


def test_training_goes_on_where_it_was_stopped(tmp_path):
    write_shard(tmp_path, 16, 0)
    data = LatentShards(tmp_path)
    train(data, tmp_path, steps=3, depth=1, tokens=256)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 3
    assert json.loads((tmp_path / RECORD).read_text()) == {"16": 3 * 4}
    train(data, tmp_path, steps=5, depth=1, tokens=256)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 5
    assert json.loads((tmp_path / RECORD).read_text()) == {"16": 5 * 4}
    teacher = load_teacher(tmp_path)
    exported = load_file(tmp_path / MODEL_FILE)
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(exported[name], value.half()), name
    assert load_file(tmp_path / TEXT_FILE)["words.weight"].shape[0] == len(vocabulary())


def test_a_training_begins_from_weights_that_another_wrote(tmp_path):
    write_shard(tmp_path, 16, 0)
    data, other = LatentShards(tmp_path), tmp_path / "other"
    train(data, tmp_path, steps=1, depth=1, tokens=256, seed=1)
    train(data, other, steps=0, depth=1, tokens=256, seed=2, begin=tmp_path)
    for name, value in load_file(tmp_path / MODEL_FILE).items():
        assert torch.equal(load_file(other / MODEL_FILE)[name], value), name


@pytest.fixture
def assets(tmp_path):
    """A disc of its own colour for every figure."""
    folder = tmp_path / "assets"
    folder.mkdir()
    codes = sorted({thing.code for thing in THINGS.values()} | set(PROPS.values()) | {SEATED})
    for number, code in enumerate(codes):
        picture = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(picture).ellipse((4, 4, 60, 60), (number, 255 - number, 90, 255))
        picture.save(folder / f"{code}.webp", lossless=True)
    return folder


def test_several_processes_paint_what_one_paints(tmp_path, assets, monkeypatch):
    monkeypatch.setattr(pictures, "SHARD", 3)
    monkeypatch.setattr(pictures, "CHUNK", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    assert list(pictures.paint_shards(assets, one, 6, seed=2)) == [0, 1]
    two.mkdir()
    np.save(picture_path(two, 0), np.zeros(1))
    assert list(pictures.paint_shards(assets, two, 6, seed=2, workers=2)) == [0, 1]
    assert np.load(picture_path(two, 0)).tolist() == [0], "what is there stays"
    painted = np.load(picture_path(one, 1))
    assert np.array_equal(np.load(picture_path(two, 1)), painted)
    world = World(FluentSprites(assets), 2)
    assert all((world.picture(3 + i).pixels == painted[i]).all() for i in range(3))
    again = pictures.paint_numbered(assets, 3, 3, seed=2, workers=2)
    assert np.array_equal(again.permute(0, 2, 3, 1).numpy(), painted)
    scenes = [scene_of(0, number) for number in (5, 6)]
    found = pictures.paint_scenes(assets, scenes, 40, workers=2).permute(0, 2, 3, 1).numpy()
    world = World(FluentSprites(assets), 0)
    assert all((world.picture_of(s, 40 + i).pixels == found[i]).all() for i, s in enumerate(scenes))


def test_shards_are_encoded_at_every_size_with_their_captions(tmp_path, assets, monkeypatch):
    for module in (pictures, latents):
        monkeypatch.setattr(module, "SHARD", 2)
    torch.manual_seed(0)
    export(Autoencoder(WIDTHS), tmp_path / VAE_FILE)
    latents.encode_shards(assets, tmp_path, 4)
    data = LatentShards(tmp_path)
    assert data.counts == {16: 4, 20: 4, 24: 4, 32: 4} and data.prompts.shape[:2] == (4, 8)
    whole = torch.cat([load_pictures(tmp_path, shard) for shard in range(2)])
    vae = latents.load_autoencoder(tmp_path / VAE_FILE)
    with torch.no_grad():
        wanted = vae.encode(shrunk(whole, 160).float() / 255)
    torch.testing.assert_close(data.latents[20].float(), wanted, atol=0.05, rtol=0.05)


def test_sampling_arrives_where_the_velocity_points():
    """With the exact velocity (x - x0) / sigma every number of steps ends at x0."""
    x0 = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))

    def exact(x, sigma, ids):
        goal = torch.cat([x0, x0]) * (ids.sum(1) >= 0)[:, None, None, None]
        return (x - goal) / sigma[:, None, None, None]

    ids = torch.ones(3, 8, dtype=torch.long)
    for steps in (1, 7):
        torch.testing.assert_close(sample(exact, ids, 8, steps), x0, atol=1e-4, rtol=1e-4)


def test_guidance_goes_past_the_prompted_velocity():
    def asked(x, sigma, ids):
        return torch.where(ids[:, :1, None, None] > 0, -2.0, -1.0).expand_as(x)

    ids = torch.ones(2, 8, dtype=torch.long)
    plain, strong = (sample(asked, ids, 8, 4, guidance) for guidance in (1.0, 3.0))
    torch.testing.assert_close(strong - plain, torch.full_like(plain, 2.0))


def test_pictures_are_shrunk_by_area_and_encoded(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    np.save(picture_path(tmp_path, 0), drawn)
    images = load_pictures(tmp_path, 0)
    blocks = drawn.reshape(2, 128, 2, 128, 2, 3).astype(float).mean((2, 4))
    small = shrunk(images, 128)
    assert np.abs(small.permute(0, 2, 3, 1).numpy() - blocks).max() <= 0.5
    torch.manual_seed(0)
    vae = Autoencoder(WIDTHS)
    found = encoded(images, vae, 16)
    assert found.shape == (2, 16, 16, 16) and found.dtype == torch.float16
    with torch.no_grad():
        expected = vae.encode(small.float() / 255)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.05)


def test_the_autoencoder_has_a_gradient_everywhere_and_prefers_smooth_latents():
    torch.manual_seed(0)
    vae = Autoencoder(WIDTHS)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    x = random_crops(images, 2, generator)
    assert x.shape == (2, 3, 64, 64) and 0 <= x.min() and x.max() <= 1
    noise = torch.zeros(2, 16, 8, 8)
    whole_loss(vae, x, noise, detail=2.0, smooth=0.03, resized=True).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    losses = [whole_loss(vae, x, noise, 2.0, weight, False).item() for weight in (0.0, 1.0)]
    assert losses[1] > losses[0]


def test_a_sheet_is_laid_out_in_rows():
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    sheet = np.asarray(tiled(pictures, 3))
    assert sheet.shape == (4, 6, 3)
    assert sheet[0, ::2, 0].tolist() == [0, 1, 2] and sheet[3, ::2, 0].tolist() == [3, 4, 5]
