"""Distils the emoji teacher into few-step students: scale-wise, and full-size to compare with."""

import argparse
import logging
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..distill.conditioning import Conditioning
from ..distill.interface import DistillConfig
from ..distill.objective import Loss
from ..distill.scalewise import Interval, intervals
from ..emoji.student import (
    MODEL_FILE,
    PRESET,
    TEXT_FILE,
    VAE_FILE,
    WEIGHTS,
    EmojiStudent,
    load_emoji_text,
)
from ..emoji.text import EmojiTextEncoder
from ..presets import presets
from ..scenes.autoencoder import Autoencoder
from ..scenes.student import read_weights
from ..schedule import ScaleSchedule
from .detail import Numbered, PictureDetail
from .emoji_latents import PromptSampler, load_latents, prepare_latents
from .train_student import config_of, distil, options
from .ways import STUDENTS

log = logging.getLogger(__name__)
LATENTS = "latents.safetensors"


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


def begin_run(run: Path, assets: Path) -> None:
    """Gives a folder without a teacher the embedded one, and latents of the training pictures."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / MODEL_FILE).is_file():
        for name in (MODEL_FILE, TEXT_FILE, VAE_FILE):
            shutil.copy(WEIGHTS / name, run / name)
    if not (run / LATENTS).is_file():
        prepare_latents(assets, EmojiStudent.load(run, lora=None).vae, run / LATENTS)


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
    steps_of = intervals([(s, s) for s in sides], sigmas)
    batches = EmojiBatches(load_latents(run / LATENTS), PromptSampler(tokenizer), text, steps_of)
    preset = presets()[PRESET].schedule
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
    return distil(
        read_weights(run / MODEL_FILE), batches, config, schedule, run / name, "swd-emoji",
        minutes=minutes, steps=steps, begin=begin, extra=extra,
    )  # fmt: skip


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
    options(parser)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if a.detail and a.assets is None:
        parser.error("--detail compares pictures: give their folder with --assets")
    if a.assets is not None:
        begin_run(a.run, a.assets)
    train(
        a.run,
        a.student,
        config_of(a),
        a.name or a.student,
        minutes=a.minutes or (math.inf if a.steps else 60),
        steps=a.steps,
        begin=a.begin,
        detail=a.detail,
        assets=a.assets,
    )


if __name__ == "__main__":
    main()
