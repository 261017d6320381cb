"""Training the embedded student: beginning from a shipped student, detail by way of the decoder."""

import pytest
import torch
from safetensors.torch import load_file

from swd_core.distill.adapters import adapter, add_adapters, switched_layers
from swd_core.distill.conditioning import Conditioning
from swd_core.distill.draws import Draws
from swd_core.distill.interface import DistillConfig
from swd_core.distill.mmdit import MMDiTModel
from swd_core.distill.objective import Loss, Seen
from swd_core.distill.scalewise import intervals
from swd_core.distill.trainer import Trainer
from swd_core.families import FAMILIES
from swd_core.lab.detail import Numbered, PictureDetail, detail_loss, laplacian
from swd_core.lab.pictures import shrunk
from swd_core.lab.train_student import RANK, begin_from, distil, train_for
from swd_core.scenes.autoencoder import Autoencoder
from swd_core.scenes.model import MMDiT
from swd_core.scenes.student import LORA_FOLDER, MODEL_FILE, VAE_FILE, WEIGHTS, SceneStudent
from swd_core.schedule import ScaleSchedule

ADAPTED = FAMILIES["scenes"].adapted


@pytest.fixture(scope="module")
def module() -> MMDiT:
    state = load_file(WEIGHTS / MODEL_FILE)
    model = MMDiT.from_state_dict({k: v.float() for k, v in state.items()})
    add_adapters(model, ADAPTED, ("student", "fake"), RANK)
    return model.eval()


@torch.inference_mode()
def test_training_begins_where_the_shipped_student_ended(module):
    """The adapters give the same as the LoRA merged into the weights by the loader."""
    merged = SceneStudent.load()
    text = merged.encode(["a fox"])
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = (x, torch.tensor([0.7]), text.context, text.pooled)
    begin_from(module, WEIGHTS / LORA_FOLDER)
    wanted = merged.model(*arguments)
    for name in ("student", "fake"):
        with adapter(module, name):
            torch.testing.assert_close(module(*arguments), wanted, atol=2e-3, rtol=1e-3)
    with adapter(module, None):
        assert (module(*arguments) - wanted).abs().mean() > 0.01


def test_a_student_of_another_rank_is_no_beginning():
    state = load_file(WEIGHTS / MODEL_FILE)
    model = MMDiT.from_state_dict({k: v.float() for k, v in state.items()})
    add_adapters(model, ADAPTED, ("student",), RANK // 2)
    with pytest.raises(ValueError, match="not a student to begin from"):
        begin_from(model, WEIGHTS / LORA_FOLDER)


@pytest.fixture(scope="module")
def vae() -> Autoencoder:
    state = load_file(WEIGHTS / VAE_FILE)
    return Autoencoder.from_state_dict({k: v.float() for k, v in state.items()}).eval()


def test_decoded_detail_compares_each_picture_with_its_own(vae):
    """Against pictures that the decoder itself made of the same latents it is nearly nothing."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 16, 20, 20, generator=generator)
    with torch.no_grad():
        pictures = vae.decode(latents).clamp(0, 1)
    loss = PictureDetail(vae, {160: (pictures * 255).round().byte()}, crop=20)
    text = Numbered(torch.empty(0), pictures=torch.tensor([2, 0]))

    def value(x0):
        return loss(Seen(DistillConfig(), latents[[2, 0]], x0, text, Draws(1)))

    right, wrong = value(latents[[2, 0]]), value(latents[[1, 3]])
    soft = value(torch.zeros(2, 16, 20, 20))
    assert right < 0.1 * wrong
    assert right < 0.1 * soft


def test_extra_losses_reach_the_student_and_nothing_else(module, vae):
    """One step by decoded detail alone moves the student's adapter; the rest stays as it was."""
    generator = torch.Generator().manual_seed(2)
    latents = {side: torch.randn(3, 16, side, side, generator=generator) for side in (16, 20)}
    pictures = (torch.rand(3, 3, 160, 160, generator=generator) * 255).byte()
    student = SceneStudent.load(lora=None)
    text = student.encode(["cat", "dog", "a fox"])

    class Batches:
        def steps(self, rng):
            return intervals([(16, 16), (20, 20)], (1.0, 0.7))

        def draw(self, interval, count, rng, part):
            chosen = torch.tensor([rng.randrange(3) for _ in range(count)])
            previous = latents[interval.previous[0]][chosen] if interval.previous else None
            prompts = (text.context[chosen].clone(), text.pooled[chosen].clone())
            conditioning = Numbered(*prompts, pictures=chosen)
            return latents[interval.size[0]][chosen], previous, conditioning

    config = DistillConfig(mmd=0.0, dmd=0.0, gan=0.0, batch_tokens=128, warmup=1)
    sizes = {side: shrunk(pictures, side) for side in (128, 160)}
    extra = {"detail": Loss(PictureDetail(vae.requires_grad_(False), sizes), weight=0.5)}
    trainer = Trainer(MMDiTModel(module), Batches(), config, extra=extra)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    trainer.train_step()
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert len(changed) >= len(switched_layers(module))
    assert all(".student" in name for name in changed)
    assert trainer.means().keys() == {"detail"}


def test_training_ends_at_the_number_of_steps(module, tmp_path):
    latents = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    text = SceneStudent.load(lora=None).encode(["cat", "dog"])

    class Batches:
        def steps(self, rng):
            return intervals([(16, 16)], (1.0,))

        def draw(self, interval, count, rng, part):
            chosen = torch.tensor([rng.randrange(2) for _ in range(count)])
            return (
                latents[chosen],
                None,
                Conditioning(text.context[chosen].clone(), text.pooled[chosen].clone()),
            )

    config = DistillConfig(dmd=0.0, gan=0.0, batch_tokens=128)
    for wanted in (2, 3):
        trainer = Trainer(MMDiTModel(module), Batches(), config)
        train_for(trainer, tmp_path / "run.pt", lambda: None, steps=wanted)
        assert trainer.step == wanted


def test_no_batch_is_drawn_beyond_the_last_step(tmp_path):
    """A batch is made while the one before is trained with, but nobody waits for one too many."""
    latents = torch.zeros(2, 16, 16, 16)
    text, drawn = SceneStudent.load(lora=None).encode(["cat", "dog"]), []
    state = load_file(WEIGHTS / MODEL_FILE)

    class Batches:
        def steps(self, rng):
            return intervals([(16, 16)], (1.0,))

        def draw(self, interval, count, rng, part):
            drawn.append(count)
            return latents, None, Conditioning(text.context, text.pooled)

    config = DistillConfig(dmd=0.0, gan=0.0, batch_tokens=128, accumulate=2)
    schedule = ScaleSchedule((1.0,), (1.0,))
    folder = tmp_path / "student"
    for steps in (2, 3):
        distil(state, Batches(), config, schedule, folder, "teacher", steps=steps)
        assert len(drawn) == 2 * steps


def test_detail_loss_wants_as_much_detail_as_the_picture_has():
    """Shifted detail costs nothing, missing and exaggerated detail cost, by how much there is."""
    pixels = torch.arange(32)
    stripes = ((pixels[:, None] + pixels[None, :]) % 2).float().expand(1, 3, 32, 32)
    shifted = 1 - stripes
    flat = torch.full_like(stripes, 0.5)
    inside = (..., slice(8, 24), slice(8, 24))  # away from the replicated border
    assert detail_loss(shifted, stripes) == pytest.approx(0, abs=1e-6)
    missing = float(detail_loss(flat, stripes))
    # Every pixel differs from the mean of its neighbours by 1: their rms is 1.
    assert float(laplacian(stripes)[inside].square().mean()) == pytest.approx(1)
    assert missing == pytest.approx(1, rel=0.1)
    half = float(detail_loss(0.5 * stripes, stripes))
    more = float(detail_loss(1.5 * stripes, stripes))
    assert half == pytest.approx(missing / 2, rel=0.01) == pytest.approx(more, rel=0.01)
