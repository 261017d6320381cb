"""Trains the teacher of scenes: flow matching at every size of the schedule."""

import argparse
import json
import logging
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.average import Average
from ..distill.checkpoint import load_checkpoint, resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.scalewise import shifted
from ..distill.stopping import stoppable
from ..files import read_json, write_text
from ..scenes.model import MMDiT
from ..scenes.student import MODEL_FILE, TEXT_FILE, read_weights
from ..scenes.text import SceneTextEncoder, vocabulary
from ..tensor_files import save_tensors
from .latents import LATENT_SIDES, LatentShards

log = logging.getLogger(__name__)
CHECKPOINT, RECORD = "teacher.pt", "teacher.json"
NOT_MUON = ("adaLN", "embed", "final_layer", "words")
BANDS = (0.0, 0.4, 0.7, 0.9, 1.0)  # of sigma, for the log
WITHOUT_PROMPT = 0.1
WARM_UP = 200  # steps
EVENLY = 0.3  # share of the smallest size's steps while the rate falls
SAVE_SECONDS, LOOK_SECONDS = 240, 5


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
    drawn = {"generator": generator, "device": generator.device}
    u = torch.sigmoid(torch.randn(count, **drawn))
    uniform = torch.rand(count, **drawn)
    u = torch.where(torch.rand(count, **drawn) < 0.15, uniform, u)
    shift = 3.0 * side / max(LATENT_SIDES)
    return shifted(u, shift)


@dataclass
class Progress:
    """Losses since the last line of the log, by size and by noise level.

    They stay where they were computed until they are asked for: a graphics card is not waited for.
    """

    steps: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, side: int, sigma: Tensor, losses: Tensor) -> None:
        self.steps.append((side, sigma, losses))

    def means(self) -> dict[str, float]:
        """The means by name, and a new beginning."""
        sigma, losses = (torch.cat([s[i] for s in self.steps]).cpu() for i in (1, 2))
        sides = torch.cat([torch.full((len(s[1]),), s[0]) for s in self.steps])
        self.steps.clear()
        parts = {
            f"{low}-{high}": (sigma >= low) & (sigma < high)
            for low, high in zip(BANDS, BANDS[1:], strict=False)
        } | {str(side): sides == side for side in sorted(set(sides.tolist()))}
        return {k: round(float(losses[v].mean()), 4) for k, v in parts.items() if v.any()}


def rate(step: int, minutes_left: float, fall: float) -> float:
    """Share of the full rate: warm-up, constant, and a fall to nothing over the last minutes."""
    falling = min(1.0, max(0.0, minutes_left) / fall) if fall else 1.0
    return min(1.0, (step + 1) / WARM_UP) * falling


def begin_from(teacher: Teacher, folder: Path) -> None:
    """Copies the weights that `export` wrote into a teacher of the same shape."""
    teacher.model.load_state_dict(read_weights(folder / MODEL_FILE))
    teacher.text.load_state_dict(read_weights(folder / TEXT_FILE))


def train(
    data: LatentShards,
    out: Path,
    minutes: float = math.inf,
    depth: int = 5,
    lr: float = 2e-3,
    tokens: int = 4096,
    smallest: float = 0.85,
    fall: float = 0.0,
    steps: int | None = None,
    begin: Path | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> None:
    """Trains for `minutes` of wall time in this run or `steps` in all, whichever ends first.

    It goes on from a checkpoint if there is one, and computes where `data` is.

    Args:
        tokens: picture tokens per step, which fixes the batch at each size.
        smallest: share of the steps at the smallest size; what a prompt looks like is learned
            there, where a picture costs a fifth.
        fall: the last minutes of this run, over which the rate falls to nothing and the sizes are
            trained more evenly. The rate is constant before.
        begin: folder of a teacher's weights to begin from if there is no checkpoint.
        compiled: by torch.compile, which needs a C++ compiler and half a minute for each size, and
            then is 1.5 times as fast on a CPU.
    """
    meanings = vocabulary()
    torch.manual_seed(seed)
    model = Teacher(len(meanings), depth)
    if begin is not None:
        begin_from(model, begin)
    model = model.to(data.device)
    average = Average(model, 0.9985)
    optimiser = Optimisers(model, lr=lr, weight_decay=0.01, adamw_only=NOT_MUON)
    forward = torch.compile(model, dynamic=False) if compiled else model
    path = out / CHECKPOINT
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, spent = resume_training(path, parts)
    record = load_record(out)
    start = last_save = last_look = time.monotonic()
    progress, seen = Progress(), 0
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            if steps is not None and step >= steps:
                break
            rng = random.Random(seed * 1_000_003 + step)
            generator = torch.Generator(data.device).manual_seed(rng.getrandbits(62))
            factor = rate(step, minutes - elapsed / 60, fall)
            optimiser.set_lr(factor)
            falling = minutes - elapsed / 60 < fall
            side = rng.choices(
                LATENT_SIDES, data.weights(min(smallest, EVENLY) if falling else smallest)
            )[0]
            batch = tokens // (side // 2) ** 2
            x0, ids = data.batch(batch, side, generator, WITHOUT_PROMPT)
            noise = torch.randn(x0.shape, generator=generator, device=data.device)
            sigma = sample_sigma(batch, side, generator)
            level = sigma[:, None, None, None]
            with fast_autocast(data.device):
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
            if time.monotonic() - last_save > SAVE_SECONDS:
                save(path, parts, step, spent + elapsed, record)
                last_save = time.monotonic()
            if time.monotonic() - last_look > LOOK_SECONDS:
                data.refresh()
                last_look = time.monotonic()
    save(path, parts, step, spent + time.monotonic() - start, record)
    export(average.module, out)


def load_record(out: Path) -> dict[str, int]:
    """Pictures seen so far by latent side."""
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
    parser.add_argument("--depth", type=int, default=5, help="blocks; the width is 64 times that")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="picture tokens a step")
    parser.add_argument(
        "--smallest", type=float, default=0.85, help="share of the smallest size's steps"
    )
    parser.add_argument("--steps", type=int, help="in all, instead of minutes or besides")
    parser.add_argument(
        "--fall", type=float, default=0.0, help="the last minutes, over which the rate falls"
    )
    parser.add_argument("--begin", type=Path, help="folder of a teacher to begin from")
    parser.add_argument("--device", default="cpu", help="that trains, such as cuda")
    parser.add_argument(
        "--compile", action="store_true", help="needs a C++ compiler; 1.5 times as fast"
    )
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(
        LatentShards(a.out, a.seed, a.device),
        a.out,
        a.minutes,
        a.depth,
        a.lr,
        a.tokens,
        a.smallest,
        a.fall,
        a.steps,
        a.begin,
        a.seed,
        a.compile,
    )


if __name__ == "__main__":
    main()
