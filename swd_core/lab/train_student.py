"""Distils the emoji teacher into few-step students: scale-wise, and full-size to compare with."""

import argparse
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..distill import loop
from ..distill.adapters import add_adapters, switched_layers
from ..distill.conditioning import Conditioning
from ..distill.interface import DistillConfig
from ..distill.mmdit import MMDiTModel, published_layers
from ..distill.objective import Loss
from ..distill.scalewise import Interval, intervals
from ..distill.stopping import stop_if, stoppable
from ..distill.trainer import Trainer
from ..emoji.student import (
    MODEL_FILE,
    TEXT_FILE,
    VAE_FILE,
    WEIGHTS,
    EmojiStudent,
    load_emoji_text,
)
from ..emoji.text import EmojiTextEncoder
from ..families import FAMILIES
from ..lora import schedule_header
from ..lora_files import read_lora, write_peft
from ..lora_sd3 import sd3_modules
from ..presets import presets
from ..scenes.autoencoder import Autoencoder
from ..scenes.model import MMDiT
from ..scenes.student import read_weights
from ..schedule import ScaleSchedule
from .detail import Numbered, PictureDetail
from .emoji_latents import PromptSampler, load_latents, prepare_latents

log = logging.getLogger(__name__)
RANK = 64
LOG_EVERY, SAVE_SECONDS = 25, 240
DECAY = 0.3  # last share of a training, over which the rate falls
LATENTS = "latents.safetensors"
# What the trainer's settings are called on the command line, where they are fractions.
FRACTIONS = ("mmd", "dmd", "gan", "regression", "backward-simulation", "lr", "lr-fake", "guidance",
             "ema")  # fmt: skip
SIGMAS = (1.0, 0.8959, 0.7371, 0.6022)
# Latent sides and noise levels of each student; the names are those of the model card.
STUDENTS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "scalewise4": ((16, 20, 24, 32), SIGMAS),
    "full4": ((32, 32, 32, 32), SIGMAS),
    "full2": ((32, 32), (1.0, 0.7371)),
    "jump4": ((16, 16, 16, 32), SIGMAS),
}


@dataclass
class EmojiBatches:
    """Emoji latents at every size with freshly drawn prompts."""

    latents: dict[int, Tensor]
    prompts: PromptSampler
    text: EmojiTextEncoder
    schedule: list[Interval]

    def steps(self, rng: random.Random) -> list[Interval]:
        return self.schedule

    def draw(self, interval: Interval, count: int, rng: random.Random, part: slice):
        chosen = torch.tensor(
            [rng.randrange(len(self.latents[interval.size[0]])) for _ in range(count)][part]
        )
        previous = self.latents[interval.previous[0]][chosen] if interval.previous else None
        text = Numbered(*self._encode(chosen, rng), pictures=chosen)
        return self.latents[interval.size[0]][chosen], previous, text

    @torch.no_grad()
    def _encode(self, chosen: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        return self.text(self.prompts.batch(chosen, rng, dropout=0.0))

    @torch.no_grad()
    def unconditional(self, count: int) -> Conditioning:
        ids = torch.zeros(count, self.text.places.num_embeddings, dtype=torch.long)
        return Conditioning(*self.text(ids))


@torch.no_grad()
def begin_from(module: MMDiT, folder: Path) -> None:
    """Copies a student that `published_layers` made into both adapters of `module`.

    Raises:
        ValueError: if its layers or its rank are others.
    """
    published = read_lora(folder).layers
    for layer, adapters in switched_layers(module).items():
        try:
            parts = [published[name] for name in sd3_modules(layer)]
            for name in adapters.down:
                adapters.down[name].copy_(parts[0].down * parts[0].scale)
                adapters.up[name].copy_(torch.cat([part.up for part in parts]))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{folder} is not a student to begin from: {error}") from error


def begin_run(run: Path, assets: Path) -> None:
    """Gives a folder without a teacher the embedded one, and latents of the training pictures."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / MODEL_FILE).is_file():
        for name in (MODEL_FILE, TEXT_FILE, VAE_FILE):
            shutil.copy(WEIGHTS / name, run / name)
    if not (run / LATENTS).is_file():
        prepare_latents(assets, EmojiStudent.load(run, lora=None).vae, run / LATENTS)


def train_for(
    trainer: Trainer,
    checkpoint: Path,
    save: Callable[[], object],
    minutes: float = math.inf,
    steps: int | None = None,
) -> None:
    """Trains for `minutes` of wall time or `steps` in all, whichever ends first.

    It goes on from `checkpoint` if there is one. SIGINT and SIGTERM end it after the batch that
    runs; that is saved, too.

    Args:
        save: called after each checkpoint.
    """
    trainer.resume(checkpoint)
    start = time.monotonic() - trainer.seconds
    last = time.monotonic()

    def progress() -> float:
        elapsed = time.monotonic() - start
        return max(elapsed / (60 * minutes), trainer.step / steps if steps else 0.0)

    def report(step: int) -> None:
        if step % LOG_EVERY == 0:
            elapsed = time.monotonic() - start
            log.info("step %d %.1f min %s", step, elapsed / 60, trainer.means())

    def save_all() -> None:
        nonlocal last
        last, trainer.seconds = time.monotonic(), time.monotonic() - start
        trainer.save(checkpoint)
        save()

    with stoppable() as stopped:
        loop.train(
            trainer,
            progress,
            DECAY,
            each=report,
            due=lambda _: time.monotonic() - last > SAVE_SECONDS,
            save=save_all,
            between=lambda: stop_if(stopped()),
        )


def train(
    run: Path,
    student: str,
    config: DistillConfig,
    name: str,
    *,
    minutes: float = math.inf,
    steps: int | None = None,
    begin: Path | None = None,
    detail: float = 0.0,
    assets: Path | None = None,
) -> int:
    """Distils for `minutes` of wall time or `steps` in all and writes the LoRA to `run/name`.

    Args:
        begin: folder of a student's LoRA to begin from; the fake score begins there, too.
        detail: weight of the loss on decoded pictures; assets: the folder they are in.

    Returns:
        the steps done in all: fewer than `steps` if the time or a signal ended it.
    """
    sides, sigmas = STUDENTS[student]
    tokenizer, text = load_emoji_text(run / TEXT_FILE)
    module = MMDiT.from_state_dict(
        {k: v.float() for k, v in read_weights(run / MODEL_FILE).items()}
    )
    torch.manual_seed(config.seed)
    add_adapters(module, FAMILIES["emoji"].adapted, ("student", "fake"), RANK)
    if begin is not None:
        begin_from(module, begin)
    steps_of = intervals([(s, s) for s in sides], sigmas)
    batches = EmojiBatches(load_latents(run / LATENTS), PromptSampler(tokenizer), text, steps_of)
    preset = presets()["emoji-4"].schedule
    schedule = ScaleSchedule(tuple(s / sides[-1] for s in sides), sigmas)
    if schedule.scales == preset.scales and schedule.sigmas == preset.sigmas:
        schedule = preset
    extra = {}
    if detail and assets is not None:
        vae = Autoencoder.from_state_dict(
            {k: v.float() for k, v in read_weights(run / VAE_FILE).items()}
        )
        loss = PictureDetail.load(assets, vae, tuple(sorted(set(sides))))
        extra["detail"] = Loss(loss, weight=detail)
    trainer = Trainer(MMDiTModel(module), batches, config, extra=extra)

    def write() -> None:
        header = {
            **schedule_header(schedule),
            "swd_step": str(trainer.step),
            "swd_config": json.dumps(asdict(config)),
        }
        layers = published_layers(trainer.averaged_student())
        write_peft(
            run / name, layers, rank=RANK, alpha=RANK, base_model="swd-emoji", metadata=header
        )

    train_for(trainer, run / f"{name}.pt", write, minutes, steps)
    return trainer.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/emoji"),
        help="folder of the teacher and of what is "
        "made; without a teacher it gets the embedded one, if --assets is given",
    )
    parser.add_argument("--student", choices=STUDENTS, default="scalewise4")
    parser.add_argument("--minutes", type=float, help="in all; 60 without --steps")
    parser.add_argument("--steps", type=int, help="in all, instead of minutes or besides")
    parser.add_argument("--begin", type=Path, help="folder of a student's LoRA to begin from")
    parser.add_argument("--detail", type=float, default=0.0, help="weight of the decoded detail")
    parser.add_argument("--assets", type=Path, help="folder of the training pictures")
    parser.add_argument(
        "--name", help="folder and checkpoint to write; the student's name by default"
    )
    for option in FRACTIONS:
        parser.add_argument(f"--{option}", type=float)
    for option in ("fake-steps", "batch-tokens"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--no-autocast", dest="autocast", action="store_false")
    parser.add_argument("--kernel", choices=("linear", "rbf"))
    parser.add_argument("--seed", type=int)
    a = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {
        k: v for k, v in a.items() if k in DistillConfig.__dataclass_fields__ and v is not None
    }
    if a["detail"] and a["assets"] is None:
        parser.error("--detail compares pictures: give their folder with --assets")
    if a["assets"] is not None:
        begin_run(a["run"], a["assets"])
    train(
        a["run"],
        a["student"],
        DistillConfig(**options),
        a["name"] or a["student"],
        minutes=a["minutes"] or (math.inf if a["steps"] else 60),
        steps=a["steps"],
        begin=a["begin"],
        detail=a["detail"],
        assets=a["assets"],
    )


if __name__ == "__main__":
    main()
