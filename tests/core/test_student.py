"""The embedded student's files and models, on small random weights."""

import copy

import pytest
import torch
from card_copies import CARD, Copies
from safetensors.torch import load_file

from swd_core.scenes.autoencoder import Autoencoder, widen
from swd_core.scenes.model import MMDiT, position_embedding
from swd_core.scenes.student import MODEL_FILE, VAE_FILE, SceneStudent


@pytest.fixture(scope="module")
def student(random_weights) -> SceneStudent:
    return SceneStudent.load(random_weights)


def test_lora_makes_the_student_another_model(student, random_weights):
    teacher = SceneStudent.load(random_weights, lora=False)
    changed = [
        name
        for (name, a), b in zip(
            student.model.named_parameters(), teacher.model.parameters(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert changed == [f"joint_blocks.0.x_block.{leaf}.weight" for leaf in ("attn.qkv", "mlp.fc1")]


def test_guidance_is_the_usual_formula_and_one_is_off(student):
    x, text, empty = torch.randn(1, 16, 8, 8), student.encode(["cat"]), student.encode([""])
    with_text, without = student.denoiser(text)(x, 0.7), student.denoiser(empty)(x, 0.7)
    assert not torch.equal(with_text, without)
    torch.testing.assert_close(
        student.denoiser(text, guidance=3.0)(x, 0.7), without + 3 * (with_text - without)
    )
    assert torch.equal(student.denoiser(text, guidance=1.0)(x, 0.7), with_text)


def test_a_step_brings_nothing_to_the_device(student):
    """On a graphics card each of it waits for the step before."""
    there = copy.deepcopy(student)
    there.text, there.model = there.text.to(CARD), there.model.to(CARD)
    denoise = there.denoiser(there.encode(["a fox"]), guidance=3.0)
    with Copies() as brought:
        denoise(torch.empty(2, 16, 8, 8, device=CARD), 0.7)
    assert not brought.seen


def test_one_prompt_serves_a_batch(student):
    x = torch.randn(3, 16, 8, 12)
    together = student.denoiser(student.encode(["a fox"]))(x, 0.9)
    alone = student.denoiser(student.encode(["a fox"]))(x[1:2], 0.9)
    torch.testing.assert_close(together[1:2], alone)


def test_decode_gives_images_in_range(student):
    images = student.decode(torch.randn(2, 16, 10, 12) * 3)
    assert images.shape == (2, 80, 96, 3)
    assert images.min() >= 0 and images.max() <= 1


def test_padded_autoencoder_is_the_narrow_one():
    torch.manual_seed(0)
    narrow = Autoencoder((8, 16, 24, 32)).eval()
    wide = widen(narrow.state_dict())
    full = Autoencoder()
    full.load_state_dict(wide)
    back = Autoencoder.from_state_dict(wide)
    assert back.taesd_decoder[1].out_channels == 32
    x, z = torch.rand(1, 3, 64, 48), torch.randn(1, 16, 8, 6)
    with torch.inference_mode():
        for other in (full, back):
            torch.testing.assert_close(other.encode(x), narrow.encode(x), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(other.decode(z), narrow.decode(z), atol=1e-5, rtol=1e-4)


def test_files_of_another_kind_are_refused(random_weights):
    model, vae = load_file(random_weights / MODEL_FILE), load_file(random_weights / VAE_FILE)
    with pytest.raises(ValueError, match="not an SD3-type MMDiT"):
        MMDiT.from_state_dict(vae)
    with pytest.raises(ValueError, match="not an SD3-type MMDiT"):
        MMDiT.from_state_dict({k: v for k, v in model.items() if "ln_q" not in k})
    with pytest.raises(ValueError, match="not a 16-channel TAESD"):
        Autoencoder.from_state_dict(model)
    with pytest.raises(ValueError, match="not a 16-channel TAESD"):
        Autoencoder.from_state_dict({k: torch.zeros_like(v) for k, v in vae.items()})


@pytest.mark.parametrize("size", [(8, 8), (10, 16), (16, 10)])
def test_a_place_keeps_its_code_at_every_scale(size):
    small = position_embedding(*size, 32, torch.device("cpu"))
    large = position_embedding(2 * size[0], 2 * size[1], 32, torch.device("cpu"))
    assert small.shape == (size[0] * size[1], 32)
    small, large = small.view(*size, 32), large.view(2 * size[0], 2 * size[1], 32)
    torch.testing.assert_close(large[0, 0], small[0, 0])
    torch.testing.assert_close(large[-1, -1], small[-1, -1])
