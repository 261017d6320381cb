"""A family that reads no pooled text but a mask of its tokens, from pictures to a training step."""

import random

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file

from swd_core.distill.adapters import add_adapters
from swd_core.distill.conditioning import Conditioning, joined, masked
from swd_core.distill.data import PreparedBatches
from swd_core.distill.interface import DistillConfig
from swd_core.distill.prepare import prepare
from swd_core.distill.trainer import Trainer
from swd_core.distill.watch import Watched
from swd_core.process import FlowMatching
from swd_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((0.5, 1.0), (1.0, 0.6))
WIDTH, TOKENS = 8, 5


class Letters:
    """An encoder whose text has as many tokens that count as the prompt has letters."""

    family, factor, multiple, fingerprint = "letters", 8, 2, "1"

    def latents(self, pictures):
        return rearrange(pictures, "b c (h p) (w q) -> b (c p q) h w", p=8, q=8)[:, ::24] * 2 - 1

    def text(self, prompts):
        mask = torch.tensor([[i < len(prompt) for i in range(TOKENS)] for prompt in prompts])
        return Conditioning(mask[..., None] * torch.linspace(1, 2, WIDTH), mask=mask)

    def unconditional(self):
        return self.text([""])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Linear(8 + WIDTH, 12)
        self.outside = torch.nn.Linear(12, 8)

    def forward(self, x, text):
        words = (text.context * text.mask[..., None]).sum(1) / text.mask.sum(1, True).clamp(1)
        cells = rearrange(x, "b c h w -> b (h w) c")
        words = words[:, None].expand(-1, cells.shape[1], -1)
        middle = self.inside(torch.cat([cells, words], -1))
        return rearrange(self.outside(middle), "b (h w) c -> b c h w", h=x.shape[2])


class Model(Watched):
    def __init__(self):
        torch.manual_seed(0)
        self.module, self.width, self.process, self.seen = Net(), 12, FlowMatching(), []
        add_adapters(self.module, ("inside", "outside"), ("student", "fake"), 2)
        self.watched = self.module.inside

    def level(self, t):
        return t

    def tokens(self, output):
        return output

    def predict(self, x, sigma, text):
        self.seen.append(text)
        return x - sigma.view(-1, 1, 1, 1) * self.module(x, text)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, prompt in enumerate(("a", "bbb", "ccccc")):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(prompt)
    prepare(tmp_path / "pictures", tmp_path / "prepared", Letters(), SCHEDULE, 64)
    return tmp_path / "prepared"


def test_what_the_encoder_made_is_drawn_by_name(folder):
    batches = PreparedBatches(folder)
    for interval in batches.steps(random.Random(0)):
        real, _, text = batches.draw(interval, 6, random.Random(1))
        assert set(text.parts) == {"context", "mask", "size"} and text.mask.dtype == torch.bool
        assert text.size.tolist() == [[64, 64]] * 6
        assert sorted(set(text.mask.sum(1).tolist())) == [1, 3, 5]
        wanted = text.mask[..., None] * torch.linspace(1, 2, WIDTH)
        torch.testing.assert_close(text.context, wanted, rtol=1e-3, atol=0)
    empty = batches.unconditional(2)
    assert set(empty.parts) == {"context", "mask"} and not empty.mask.any()
    assert empty.mask.shape == (2, TOKENS)
    shown = batches.first(3)
    assert shown.text.mask.sum(1).tolist() == [len(caption) for caption in shown.captions]


def test_a_step_of_all_losses_reads_it(folder):
    """The teacher's guidance compares with the empty prompt, and its mask, at the same size."""
    model, config = Model(), DistillConfig(batch_tokens=16, fake_steps=1, warmup=1)
    trainer = Trainer(model, PreparedBatches(folder), config)
    trainer.train_step(1.0)
    assert {"mmd", "dmd", "gan", "fake", "head"} == trainer.means().keys()
    empty = [text for text in model.seen if not text.mask.any()]
    assert len(empty) == 1 and 0 < len(model.seen) - 1
    assert all(text.size[0].tolist() == [64, 64] for text in model.seen)
    assert all(text.mask.any(1).all() for text in model.seen if text is not empty[0])


@pytest.mark.parametrize("gone", ["context", "mask"])
def test_a_part_that_is_not_in_every_file_is_damage(folder, gone):
    [name] = [path for path in folder.glob("64x64-*") if gone == "mask"] or ["empty.safetensors"]
    path, kept = folder / name, load_file(folder / name)
    header = {"key": "", "names": "[]"} if gone == "mask" else {}
    save_file({k: v for k, v in kept.items() if k != gone}, path, header)
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged.*{gone}"):
        PreparedBatches(folder)


def test_prompts_of_other_lengths_become_one_with_a_mask():
    prompts = [torch.randn(1, n, 8) for n in (5, 3)]
    both = joined(masked(Conditioning(prompt)) for prompt in prompts)
    assert both.lengths == [5, 3]
    for row, prompt in enumerate(prompts):
        alone = both.rows([row]).trimmed()
        assert alone.mask is None and torch.equal(alone.context, prompt)
    told = masked(Conditioning(prompts[0], mask=torch.tensor([[True] * 2 + [False] * 3])))
    assert told.lengths == [2]


def test_batches_become_one_part_by_part():
    one = Conditioning(torch.zeros(1, 5, 8), size=torch.ones(1, 2))
    both = joined([one, one.map(lambda part: part + 1)])
    assert set(both.parts) == {"context", "size"} and both.size.tolist() == [[1, 1], [2, 2]]
    other = Conditioning(
        torch.full((2, 3, 8), 7.0), pooled=torch.ones(2, 4), size=torch.zeros(2, 2)
    )
    prompted = both.prompted(other)
    assert prompted.context is other.context and prompted.pooled is other.pooled
    assert prompted.size is both.size, "the pictures stay what they are"
