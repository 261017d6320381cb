"""Trains the teacher of scenes: flow matching at every size of the schedule."""

import argparse
import json
import logging
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.average import ema_of
from ..distill.checkpoint import load_checkpoint, resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..files import read_json, write_text
from ..scenes.captions import caption
from ..scenes.model import MMDiT
from ..scenes.student import MODEL_FILE, TEXT_FILE
from ..scenes.text import MAX_TOKENS, PAD, SceneTextEncoder, SceneTokenizer, vocabulary
from ..tensor_files import save_tensors
from .latents import LATENT_SIDES, LatentShards

log = logging.getLogger(__name__)
CHECKPOINT, RECORD = "teacher.pt", "teacher.json"
NOT_MUON = ("adaLN", "embed", "final_layer", "words")
BANDS = (0.0, 0.4, 0.7, 0.9, 1.0)  # of sigma, for the log
WITHOUT_PROMPT = 0.1
WARM_UP = 200  # steps


class Teacher(nn.Module):
    """Text encoder and MMDiT, trained together."""

    def __init__(self, meanings: int, depth: int):
        super().__init__()
        self.text = SceneTextEncoder(meanings)
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


def draw_prompts(scenes: list, tokenizer: SceneTokenizer, rng: random.Random) -> Tensor:
    """Token ids (B, MAX_TOKENS) of a caption for each scene; a tenth of them is empty."""
    empty = [PAD] * MAX_TOKENS
    rows = [
        empty if rng.random() < WITHOUT_PROMPT else tokenizer.encode(caption(scene, rng))[0]
        for scene in scenes
    ]
    return torch.tensor(rows)


@dataclass
class Progress:
    """Losses since the last line of the log, by size and by noise level."""

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, side: int, sigma: Tensor, losses: Tensor) -> None:
        for low, high in zip(BANDS, BANDS[1:], strict=False):
            inside = losses[(sigma >= low) & (sigma < high)]
            self._take(f"{low}-{high}", float(inside.sum()), len(inside))
        self._take(str(side), float(losses.sum()), len(losses))

    def _take(self, name: str, total: float, count: int) -> None:
        entry = self.sums.setdefault(name, [0.0, 0])
        entry[0] += total
        entry[1] += count

    def means(self) -> dict[str, float]:
        """The means by name, and a new beginning."""
        found = {k: round(total / max(n, 1), 4) for k, (total, n) in sorted(self.sums.items())}
        self.sums = {}
        return found


def rate(step: int, begun: int | None, steps: int | None) -> float:
    """Share of the full rate: warm-up, constant, and from step `begun` on a fall over `steps`."""
    factor = min(1.0, (step + 1) / WARM_UP)
    if begun is not None:
        factor *= max(0.0, 1 - (step - begun) / steps)
    return factor


def train(
    data: LatentShards,
    out: Path,
    minutes: float,
    depth: int = 4,
    lr: float = 2e-3,
    tokens: int = 4096,
    smallest: float = 0.85,
    decay: int | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> None:
    """Trains for `minutes` of wall time in this run; goes on from a checkpoint if there is one.

    Args:
        tokens: picture tokens per step, which fixes the batch at each size.
        smallest: share of the steps at the smallest size; what a prompt looks like is learned
            there, where a picture costs a fifth.
        decay: lets the rate fall to nothing over so many steps and ends there; also where a run
            with the same `decay` was stopped. None goes on at a constant rate.
        compiled: by torch.compile, which needs a C++ compiler and half a minute for each size, and
            then is 1.5 times as fast on a CPU.
    """
    meanings = vocabulary()
    tokenizer = SceneTokenizer(meanings)
    torch.manual_seed(seed)
    model = Teacher(len(meanings), depth)
    average = ema_of(model, 0.9985)
    optimiser = Optimisers(model, lr=lr, weight_decay=0.01, adamw_only=NOT_MUON)
    forward = torch.compile(model, dynamic=False) if compiled else model
    path = out / CHECKPOINT
    parts = {"model": model, "average": average, "optimiser": optimiser}
    first, spent = resume_training(path, parts)
    record = load_record(out)
    if decay is not None:
        record.setdefault("decay_from", first)
    else:
        record.pop("decay_from", None)
    begun = record.get("decay_from")
    step, start, last_save = first, time.monotonic(), time.monotonic()
    progress, seen = Progress(), 0
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            if begun is not None and step - begun >= decay:
                break
            rng = random.Random(seed * 1_000_003 + step)
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            optimiser.set_lr(rate(step, begun, decay))
            side = rng.choices(LATENT_SIDES, data.weights(smallest))[0]
            batch = tokens // (side // 2) ** 2
            x0, scenes = data.batch(batch, side, generator)
            noise = torch.randn(x0.shape, generator=generator)
            sigma = sample_sigma(batch, side, generator)
            level = sigma[:, None, None, None]
            ids = draw_prompts(scenes, tokenizer, rng)
            with fast_autocast():
                velocity = forward((1 - level) * x0 + level * noise, sigma, ids)
            losses = F.mse_loss(velocity.float(), noise - x0, reduction="none").mean((1, 2, 3))
            optimiser.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            step += 1
            seen += batch
            record[str(side)] = record.get(str(side), 0) + batch
            progress.add(side, sigma, losses.detach())
            if step % 50 == 0:
                log.info(
                    "step %d %.1f min %d pictures %.1f/s loss %s",
                    step,
                    (spent + elapsed) / 60,
                    sum(record.get(str(s), 0) for s in LATENT_SIDES),
                    seen / (time.monotonic() - start),
                    progress.means(),
                )
            if time.monotonic() - last_save > 240:
                save(path, parts, step, spent + elapsed, record)
                last_save = time.monotonic()
                data.refresh()
    save(path, parts, step, spent + time.monotonic() - start, record)
    export(average.module, out)


def load_record(out: Path) -> dict[str, int]:
    """Pictures seen so far by latent side, and where the rate began to fall, if it did."""
    path = out / RECORD
    return read_json(path) if path.is_file() else {}


def save(path: Path, parts: dict, step: int, seconds: float, record: dict[str, int]) -> None:
    save_training(path, parts, step, seconds)
    write_text(path.parent / RECORD, json.dumps(record))


def load_teacher(out: Path) -> Teacher:
    """The averaged teacher of a checkpoint.

    Raises:
        FileNotFoundError: if there is none yet.
    """
    state = load_checkpoint(out / CHECKPOINT)
    if state is None:
        raise FileNotFoundError(f"There is no {out / CHECKPOINT}: train the teacher first.")
    weights = {k.removeprefix("module."): v for k, v in state["average"].items()}
    weights.pop("n_averaged")
    depth = sum(k.endswith("x_block.attn.qkv.weight") for k in weights)
    teacher = Teacher(len(weights["text.words.weight"]), depth)
    teacher.load_state_dict(weights)
    return teacher.eval().requires_grad_(False)


def export(teacher: Teacher, out: Path) -> None:
    """Writes the host's SD3 file and the text encoder, float16."""
    halves = {k: v.half() for k, v in teacher.model.state_dict().items()}
    save_tensors(out / MODEL_FILE, halves, {"license": "MIT"})
    words = {k: v.half() for k, v in teacher.text.state_dict().items()}
    save_tensors(out / TEXT_FILE, words, {"vocabulary": json.dumps(vocabulary())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--minutes", type=float, default=600, help="in this run")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="picture tokens a step")
    parser.add_argument(
        "--smallest", type=float, default=0.85, help="share of the smallest size's steps"
    )
    parser.add_argument(
        "--decay", type=int, help="end with so many steps of a falling rate; default is a constant"
    )
    parser.add_argument(
        "--compile", action="store_true", help="needs a C++ compiler; 1.5 times as fast"
    )
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = LatentShards(a.out, a.seed)
    train(data, a.out, a.minutes, a.depth, a.lr, a.tokens, a.smallest, a.decay, a.seed, a.compile)


if __name__ == "__main__":
    main()
