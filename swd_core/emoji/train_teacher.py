"""Trains the emoji teacher: flow matching at every size of the schedule."""

import argparse
import json
import logging
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.average import ema_of
from ..distill.checkpoint import resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..tensor_files import save_tensors
from .autoencoder import Autoencoder
from .latents import LATENT_SIDES, PromptSampler, load_latents, prepare_latents
from .model import MMDiT
from .student import MODEL_FILE, TEXT_FILE, VAE_FILE, read_weights
from .text import EmojiTextEncoder, EmojiTokenizer, build_vocabulary

log = logging.getLogger(__name__)
NOT_MUON = ("adaLN", "embed", "final_layer", "words", "places")


class Teacher(nn.Module):
    """Text encoder and MMDiT, trained together."""

    def __init__(self, vocabulary: int, depth: int):
        super().__init__()
        self.text = EmojiTextEncoder(vocabulary)
        self.model = MMDiT(depth)
        for block in self.model.joint_blocks:
            for stream in (block.context_block, block.x_block):
                nn.init.zeros_(stream.adaLN_modulation[1].weight)
                nn.init.zeros_(stream.adaLN_modulation[1].bias)
        nn.init.zeros_(self.model.final_layer.linear.weight)
        nn.init.zeros_(self.model.final_layer.linear.bias)

    def forward(self, x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        return self.model(x, sigma, *self.text(ids))


def sample_sigma(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels, shifted up with the size (Esser et al., section 5.3.2)."""
    u = torch.sigmoid(torch.randn(count, generator=generator))
    uniform = torch.rand(count, generator=generator)
    u = torch.where(torch.rand(count, generator=generator) < 0.15, uniform, u)
    shift = 3.0 * side / max(LATENT_SIDES)
    return shift * u / (1 + (shift - 1) * u)


def side_weights(progress: float) -> list[float]:
    """How often each size is trained: nearly always the smallest first, then all of them.

    What a prompt looks like is learned at the smallest size, where a picture costs a fifth.
    """
    later = min(1.0, max(0.0, (progress - 0.5) / 0.15))
    return [0.85 - 0.65 * later, *(0.05 + (w - 0.05) * later for w in (0.2, 0.2, 0.4))]


def train(
    latents: dict[int, Tensor],
    out: Path,
    minutes: float,
    depth: int = 4,
    lr: float = 2e-3,
    tokens: int = 4096,
    decay: float = 0.25,
    seed: int = 0,
    weights: Path | None = None,
) -> None:
    """Trains for `minutes` of wall time in all; resumes where a killed run stopped.

    Args:
        tokens: picture tokens per step, which fixes the batch at each size.
        decay: share of the time over which the rate falls to zero.
        weights: folder of an exported teacher to begin from, with a new optimiser.
    """
    vocabulary = build_vocabulary()
    prompts = PromptSampler(EmojiTokenizer(vocabulary))
    torch.manual_seed(seed)
    model = Teacher(len(vocabulary), depth)
    if weights is not None:
        model.text.load_state_dict(
            {k: v.float() for k, v in read_weights(weights / TEXT_FILE).items()}
        )
        model.model.load_state_dict(
            {k: v.float() for k, v in read_weights(weights / MODEL_FILE).items()}
        )
    average = ema_of(model, 0.997)
    optimiser = Optimisers(model, lr=lr, weight_decay=0.01, adamw_only=NOT_MUON)
    path = out / "teacher.pt"
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, spent = resume_training(path, parts)
    start = time.monotonic() - spent
    sums = {side: [0.0, 0] for side in LATENT_SIDES}
    images, last_save = 0, time.monotonic()
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            progress = elapsed / (60 * minutes)
            rng = random.Random(seed * 1_000_003 + step)
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            optimiser.set_lr(min(1.0, (step + 1) / 200, max(0.02, (1 - progress) / decay)))
            side = rng.choices(LATENT_SIDES, side_weights(progress))[0]
            batch = tokens // (side // 2) ** 2
            chosen = torch.randint(len(latents[side]), (batch,), generator=generator)
            x0 = latents[side][chosen]
            noise = torch.randn(x0.shape, generator=generator)
            sigma = sample_sigma(batch, side, generator)
            level = sigma[:, None, None, None]
            ids = prompts.batch(chosen, rng, dropout=0.1)
            with fast_autocast():
                velocity = model((1 - level) * x0 + level * noise, sigma, ids)
            loss = F.mse_loss(velocity.float(), noise - x0)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            step += 1
            images += batch
            sums[side][0] += loss.item()
            sums[side][1] += 1
            if step % 50 == 0:
                losses = {s: round(total / max(n, 1), 4) for s, (total, n) in sums.items()}
                log.info(
                    "step %d %.1f min %d images %.1f/s loss %s",
                    step,
                    elapsed / 60,
                    images,
                    images / (time.monotonic() - start - spent),
                    losses,
                )
                sums = {side: [0.0, 0] for side in LATENT_SIDES}
            if time.monotonic() - last_save > 240:
                save_training(path, parts, step, time.monotonic() - start)
                last_save = time.monotonic()
    save_training(path, parts, step, time.monotonic() - start)
    export(average.module, vocabulary, out)


def export(teacher: Teacher, vocabulary: tuple[str, ...], out: Path) -> None:
    """Writes the host's SD3 file and the text encoder, float16."""
    halves = {k: v.half() for k, v in teacher.model.state_dict().items()}
    save_tensors(out / MODEL_FILE, halves, {"license": "MIT"})
    words = {k: v.half() for k, v in teacher.text.state_dict().items()}
    save_tensors(out / TEXT_FILE, words, {"vocabulary": json.dumps(vocabulary)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--decay", type=float, default=0.25, help="last share of the time, with a falling rate"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--from-weights", type=Path, help="folder of an exported teacher to begin from"
    )
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache = a.out / "latents.safetensors"
    if not cache.is_file():
        state = {k: v.float() for k, v in read_weights(a.out / VAE_FILE).items()}
        prepare_latents(a.assets, Autoencoder.from_state_dict(state), cache)
    train(
        load_latents(cache),
        a.out,
        a.minutes,
        a.depth,
        a.lr,
        decay=a.decay,
        seed=a.seed,
        weights=a.from_weights,
    )


if __name__ == "__main__":
    main()
