"""Student steps per second against a plain transcription of the published recipe, side by side.

    python -m benchmarks.distill --steps 4

The recipe encodes text and pictures in every step and runs a whole pass for every score and every
set of features. Both sides train the same small random SD3 model on the same batches, with the same
losses and the same number of fake-score steps. `--memory distill` and `--memory lora` (one
diffusion loss of the same model) each measure their process's peak.
"""

import argparse
import logging
import random
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from swd_core.distill.adapters import adapter, adapter_parameters
from swd_core.distill.buckets import shrink
from swd_core.distill.diffusers_models import SD3Model
from swd_core.distill.interface import DistillConfig
from swd_core.distill.scalewise import Interval, intervals
from swd_core.distill.trainer import Trainer

log = logging.getLogger(__name__)
SIZES = [(16, 16), (20, 20), (24, 24), (32, 32)]
SIGMAS = (1.0, 0.8959, 0.7371, 0.6022)
WIDTH, TOKENS, COUNT, RANK = 384, 77, 8, 16


def small_sd3() -> SD3Model:
    torch.manual_seed(0)
    module = SD3Transformer2DModel(
        sample_size=32, num_layers=8, attention_head_dim=64, num_attention_heads=WIDTH // 64,
        in_channels=16, joint_attention_dim=WIDTH, caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH, pos_embed_max_size=32, qk_norm="rms_norm",
    )  # fmt: skip
    return SD3Model(module, rank=RANK)


class Encoders:
    """A VAE of SD3's shape at half its width, and a CLIP text encoder of 12 layers."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.vae = AutoencoderKL(
            block_out_channels=(64, 128, 256, 256), latent_channels=16, layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        config = CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=6,
            projection_dim=WIDTH,
        )  # fmt: skip
        self.clip = CLIPTextModelWithProjection(config).eval()

    @torch.no_grad()
    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.clip(ids)
        return output.last_hidden_state, output.text_embeds

    @torch.no_grad()
    def latents(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        small = shrink(pictures, (size[0] * 8, size[1] * 8))
        return self.vae.encode(small * 2 - 1).latent_dist.mode()


@dataclass
class EveryStep:
    """The recipe's data: pictures and token ids, encoded anew for every batch."""

    encoders: Encoders
    pictures: Tensor
    ids: Tensor

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        chosen = torch.tensor([rng.randrange(len(self.ids)) for _ in range(count)])
        pictures = self.pictures[chosen]
        previous = None
        if interval.previous:
            previous = self.encoders.latents(pictures, interval.previous)
        real = self.encoders.latents(pictures, interval.size)
        return real, previous, self.encoders.text(self.ids[chosen])

    def unconditional(self, count: int) -> Any:
        return self.encoders.text(torch.zeros(count, TOKENS, dtype=torch.long))


class Prepared:
    """The same, encoded once."""

    def __init__(self, data: EveryStep):
        whole, encoders = data.pictures.split(8), data.encoders
        self.latents = {
            size: torch.cat([encoders.latents(part, size) for part in whole]) for size in SIZES
        }
        self.text, self.empty = encoders.text(data.ids), data.unconditional(1)

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        chosen = torch.tensor([rng.randrange(len(self.text[0])) for _ in range(count)])
        previous = self.latents[interval.previous][chosen] if interval.previous else None
        return self.latents[interval.size][chosen], previous, tuple(t[chosen] for t in self.text)

    def unconditional(self, count: int) -> Any:
        context, pooled = self.empty
        return context.expand(count, -1, -1), pooled.expand(count, -1)


class WholePasses:
    """The recipe's calls: every score and every set of features is a pass through all blocks."""

    def __init__(self, model: SD3Model):
        self.inner, self.module, self.width = model, model.module, model.width

    def predict(self, *arguments: Any) -> Tensor:
        return self.inner.predict(*arguments)

    def features(self, *arguments: Any) -> Tensor:
        return self.inner.predict_with_features(*arguments)[1]

    def predict_with_features(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self.predict(*arguments), self.features(*arguments)


def trainer(model: Any, batches: Any, a: argparse.Namespace) -> Trainer:
    config = DistillConfig(fake_steps=a.fake_steps, batch_tokens=a.batch_tokens, lr=1e-5)
    return Trainer(model, batches, intervals(SIZES, SIGMAS), config)


def seconds_of(run: Trainer, steps: range) -> float:
    """Seconds of processor time: other programs on the machine don't count."""
    start = time.process_time()
    for step in steps:
        run.student_step(random.Random(step))
    return time.process_time() - start


def data() -> EveryStep:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.rand(COUNT, 3, 256, 256, generator=generator)
    ids = torch.randint(0, 49000, (COUNT, TOKENS), generator=generator)
    return EveryStep(Encoders(), pictures, ids)


def plain_lora_step(model: SD3Model, prepared: Prepared, a: argparse.Namespace, step: int) -> None:
    """One diffusion loss at full size: what LoRA trainers do."""
    count = max(2, a.batch_tokens * 4 // (SIZES[-1][0] * SIZES[-1][1]))
    full = intervals(SIZES, SIGMAS)[-1]
    real, _, text = prepared.draw(full, count, random.Random(step))
    sigma = torch.full((count,), 0.5)
    noisy = 0.5 * real + 0.5 * torch.randn_like(real)
    with adapter(model.module, "student"):
        loss = (model.predict(noisy, sigma, text) - real).square().mean()
    loss.backward()
    for p in adapter_parameters(model.module, "student"):
        p.grad = None


def peak(kind: str, a: argparse.Namespace, prepared: Prepared) -> int:
    """Most bytes that this process ever holds while it trains two steps."""
    model = small_sd3()
    run = trainer(model, prepared, a) if kind == "distill" else None
    for step in range(2):
        if run is None:
            plain_lora_step(model, prepared, a, step)
        else:
            run.student_step(random.Random(step))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="student steps of each side")
    parser.add_argument("--rounds", type=int, default=2, help="the sides take turns this often")
    parser.add_argument("--fake-steps", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--memory", choices=("distill", "lora"), help="only one side's peak memory")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    every = data()
    prepared = Prepared(every)
    if a.memory:
        log.info("%s: %.0f MB at most", a.memory, peak(a.memory, a, prepared) / 2**20)
        return
    sides = {
        "recipe, encoding every step": trainer(WholePasses(small_sd3()), every, a),
        "recipe's step, prepared data": trainer(WholePasses(small_sd3()), prepared, a),
        "this trainer, prepared data": trainer(small_sd3(), prepared, a),
    }
    spent = dict.fromkeys(sides, 0.0)
    for number in range(a.rounds):
        for name, run in sides.items():
            spent[name] += seconds_of(run, range(number * a.steps, (number + 1) * a.steps))
    last = list(spent.values())[-1]
    steps = a.steps * a.rounds
    log.info(f"{steps} student steps of each, {a.fake_steps} fake-score steps to one, "
          f"{a.batch_tokens} patches a batch, {torch.get_num_threads()} thread(s)")  # fmt: skip
    for name, value in spent.items():
        log.info(f"{name:<30} {steps / value:7.3f} steps/CPU s  {value / last:5.2f} x the last")


if __name__ == "__main__":
    main()
