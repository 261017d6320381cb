"""The decoder's training on latents as the models make them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scene_shards import SHARD, random_teacher, shards

from swd_core.lab import made, pictures, train_decoder
from swd_core.lab.latents import load_autoencoder
from swd_core.lab.made import made_path, student_made, teacher_made
from swd_core.lab.pictures import picture_path
from swd_core.lab.train_decoder import Crops, DecoderTraining, energy_loss
from swd_core.resample import upscale
from swd_core.scenes.student import VAE_FILE, WEIGHTS, SceneStudent


@pytest.fixture
def model(tmp_path) -> SceneStudent:
    return SceneStudent.load(random_teacher(tmp_path / "run"), lora=None)


def predicted(model, x_t, sigma, text):
    """x0 = x_t - sigma v."""
    with torch.inference_mode():
        level = torch.full((len(x_t),), sigma)
        return x_t - sigma * model.model(x_t, level, text.context, text.pooled)


def test_the_teachers_latents_are_its_predictions_from_a_little_noise(model):
    real = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    text = model.encode(["a fox", "a cat"])
    found = teacher_made(model, real, text, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    sigma = 0.05 + 0.4 * float(torch.rand((), generator=again))
    noise = torch.randn(real.shape, generator=again)
    wanted = predicted(model, (1 - sigma) * real + sigma * noise, sigma, text)
    assert (found - wanted).norm() < 0.02 * wanted.norm()  # found in bfloat16


def test_the_students_latents_are_its_steps_from_the_size_before(model):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(2, 16, 16, 16, generator=generator)
    noise = torch.randn(2, 16, 20, 20, generator=generator)
    text = model.encode(["a fox", "a cat"])
    x_t = (1 - 0.8959) * upscale(before, (20, 20)) + 0.8959 * noise
    wanted = predicted(model, x_t, 0.8959, text)
    found = student_made(model, before, text, 1, noise)
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_the_energy_loss_is_how_far_the_power_of_second_differences_is_off():
    x, y = (torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(i)) for i in (1, 2))

    def power(pictures):
        p = np.pad(pictures.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        middle = p[..., 1:-1, 1:-1]
        around = p[..., 1:-1, 2:] + p[..., 1:-1, :-2] + p[..., 2:, 1:-1] + p[..., :-2, 1:-1]
        return np.square(middle - around / 4).mean()

    assert float(energy_loss(0.5 * x, y)) == pytest.approx(abs(0.25 * power(x) / power(y) - 1))


@pytest.mark.parametrize("side", [16, 32])
def test_crops_of_latents_and_pictures_show_the_same_place(side):
    """The latents here are the pictures' means over eight by eight pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (40, 3, 8 * side, 8 * side)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    means = F.avg_pool2d(pixels.float() / 255, 8)
    crops = Crops({side: pixels}, {"real": {side: means}})
    z, x = crops.draw("real", side, 6, generator)
    assert z.shape == (6, 3, 12, 12) and x.shape == (6, 3, 96, 96)
    torch.testing.assert_close(F.avg_pool2d(x, 8), z)


def test_soft_latents_are_decoded_with_more_detail_after_it():
    """Pictures here are what the embedded decoder makes of the latents, sharpened."""
    vae = load_autoencoder(WEIGHTS / VAE_FILE)
    z = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        soft = vae.decode(z)
        x = soft + (soft - F.avg_pool2d(soft, 3, 1, 1, count_include_pad=False))
    run = DecoderTraining(vae, detail=8.0, energy=1.0, gan=0.02, lr=1e-3)
    encoder = {k: v.clone() for k, v in vae.taesd_encoder.state_dict().items()}

    def off():
        with torch.no_grad():
            return float(energy_loss(vae.decode(z), x))

    before = off()
    for _ in range(15):
        run.step("student", z, x, 1.0)
    assert off() < 0.8 * before
    assert all(torch.equal(v, encoder[k]) for k, v in vae.taesd_encoder.state_dict().items())


def test_a_training_changes_the_decoder_alone_and_keeps_what_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SHARD", SHARD)
    monkeypatch.setattr(train_decoder, "HELD", 2)
    folder, run = shards(tmp_path, monkeypatch), random_teacher(tmp_path / "run")
    (run / VAE_FILE).rename(folder / VAE_FILE)
    rng = np.random.default_rng(0)
    np.save(picture_path(folder, 0), rng.integers(0, 256, (SHARD, 256, 256, 3), np.uint8))
    save_file(load_file(folder / VAE_FILE), run / VAE_FILE)
    monkeypatch.setattr(made, "LORA_FOLDER", None)
    made.make(folder, run, None, 0, SHARD)
    found = load_file(made_path(folder, 0))
    assert {k: len(v) for k, v in found.items()} == dict.fromkeys(found, SHARD)
    assert "student_32" in found and "student_16" not in found, "the first step begins with noise"
    start = load_file(folder / VAE_FILE)
    for _ in range(2):  # the second finds that its time is over
        train_decoder.train(folder, 0.01, batch=2)
    end, kept = load_file(folder / VAE_FILE), load_file(folder / f"before_{VAE_FILE}")
    assert all(torch.equal(kept[k], v) for k, v in start.items())
    changed = {k.split(".")[0] for k, v in start.items() if not torch.equal(end[k], v)}
    assert changed == {"taesd_decoder"}
    another = {k: v + 1 if k.startswith("taesd_encoder") else v for k, v in end.items()}
    save_file(another, folder / VAE_FILE)
    with pytest.raises(ValueError, match=f"before_{VAE_FILE} has another encoder"):
        train_decoder.train(folder, 0.01, batch=2)
    left = load_file(folder / VAE_FILE)
    assert all(torch.equal(left[k], v) for k, v in another.items())
