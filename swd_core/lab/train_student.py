"""Distils the teacher of scenes into few-step students: scale-wise, and others to compare with."""

import argparse
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distill import loop
from ..distill.adapters import add_adapters, switched_layers
from ..distill.interface import Batches, DistillConfig
from ..distill.mmdit import MMDiTModel, published_layers
from ..distill.objective import Loss
from ..distill.scalewise import intervals
from ..distill.stopping import stop_if, stoppable
from ..distill.trainer import Trainer
from ..distill.watch import PATCH
from ..families import FAMILIES
from ..lora import schedule_header
from ..lora_files import read_lora, write_peft
from ..lora_sd3 import sd3_modules
from ..scenes.model import MMDiT
from ..scenes.student import MODEL_FILE, TEXT_FILE, VAE_FILE, load_text_encoder, read_weights
from ..schedule import ScaleSchedule
from .latents import LatentShards
from .pairs import Pairs, pair_loss
from .scene_batches import NoiseFirst, PairedFirst, SceneBatches
from .train_teacher import export, load_teacher
from .ways import STUDENTS

log = logging.getLogger(__name__)
RANK = 64
LOG_EVERY, SAVE_SECONDS = 25, 240
DECAY = 0.3  # last share of a training, over which the rate falls
PRESET = "scenes-4"
# What the trainer's settings are called on the command line, where they are fractions.
FRACTIONS = ("mmd", "dmd", "gan", "gan-head", "regression", "backward-simulation", "lr", "lr-fake",
             "guidance", "ema")  # fmt: skip


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


def distil(
    state: Mapping[str, Tensor],
    batches: Batches,
    config: DistillConfig,
    schedule: ScaleSchedule,
    folder: Path,
    base: str,
    *,
    minutes: float = math.inf,
    steps: int | None = None,
    begin: Path | None = None,
    device: torch.device | str = "cpu",
    extra: Mapping[str, Loss] | None = None,
    kind: type[Trainer] = Trainer,
) -> int:
    """Distils for `minutes` of wall time or `steps` in all and writes the LoRA to `folder`.

    Its checkpoint lies beside the folder, which what goes on from it needs.

    Args:
        state: weights of the teacher's MMDiT. schedule: written into the LoRA's header, as is
            `base`, the teacher's name.
        begin: folder of a student's LoRA to begin from; the fake score begins there, too.
        device: where it is trained, and where `batches` gives its tensors.

    Returns:
        the steps done in all: fewer than `steps` if the time or a signal ended it.
    """
    module = MMDiT.from_state_dict({k: v.float() for k, v in state.items()})
    torch.manual_seed(config.seed)
    add_adapters(module, FAMILIES["scenes"].adapted, ("student", "fake"), RANK)
    if begin is not None:
        begin_from(module, begin)
    module.to(device)
    trainer = kind(MMDiTModel(module), batches, config, extra=extra or {}, last=steps)

    def write() -> None:
        header = {
            **schedule_header(schedule),
            "swd_step": str(trainer.step),
            "swd_config": json.dumps(asdict(config)),
        }
        layers = published_layers(trainer.averaged_student())
        write_peft(folder, layers, rank=RANK, alpha=RANK, base_model=base, metadata=header)

    train_for(trainer, folder.with_name(f"{folder.name}.pt"), write, minutes, steps)
    return trainer.step


def begin_run(run: Path, scenes: Path) -> None:
    """Gives a folder without a teacher the present one of a training, with its autoencoder.

    Raises:
        FileNotFoundError: if there is no teacher or no autoencoder yet.
    """
    run.mkdir(parents=True, exist_ok=True)
    if not (run / MODEL_FILE).is_file():
        if not (scenes / VAE_FILE).is_file():
            raise FileNotFoundError(f"There is no {scenes / VAE_FILE}: make train-autoencoder.")
        shutil.copy(scenes / VAE_FILE, run / VAE_FILE)
        export(load_teacher(scenes), run)


def steps_for(pictures: int, student: str, config: DistillConfig) -> int:
    """How many steps show the student so many pictures; small ones come in larger batches."""
    tokens = [(side // PATCH) ** 2 for side in STUDENTS[student][0]]
    each = [max(2, config.batch_tokens // n) * config.accumulate for n in tokens]
    return max(1, round(pictures * len(each) / sum(each)))


def schedule_of(student: str) -> ScaleSchedule:
    sides, sigmas = STUDENTS[student]
    name = PRESET if student == "scalewise4" else ""
    return ScaleSchedule(tuple(side / sides[-1] for side in sides), sigmas, name=name)


def train(
    data: LatentShards,
    run: Path,
    student: str,
    config: DistillConfig,
    name: str,
    *,
    latent_space: bool = False,
    noise_first: bool = False,
    pairs: Pairs | None = None,
    pairs_weight: float = 1.0,
    first: float = 0.0,
    early: float = 0.0,
    **budget: Any,
) -> int:
    """Distils the teacher in `run` on the device of `data`, writes the LoRA to `run/name`.

    Args:
        pairs_weight: of the loss on `pairs`, if there are any.
    """
    sides, sigmas = STUDENTS[student]
    tokenizer, text = load_text_encoder(run / TEXT_FILE)
    steps_of = intervals([(side, side) for side in sides], sigmas)
    text.to(data.device)
    return distil(
        read_weights(run / MODEL_FILE),
        SceneBatches(data, tokenizer, text, steps_of, latent_space, pairs, first, early),
        config,
        schedule_of(student),
        run / name,
        "swd-scenes",
        device=data.device,
        kind=PairedFirst if pairs else NoiseFirst if noise_first else Trainer,
        extra=pair_loss(pairs_weight) if pairs else None,
        **budget,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What the trainer can be told on the command line."""
    for option in FRACTIONS:
        parser.add_argument(f"--{option}", type=float)
    for option in ("fake-steps", "batch-tokens"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--no-autocast", dest="autocast", action="store_false")
    parser.add_argument("--kernel", choices=("linear", "rbf"))
    parser.add_argument("--seed", type=int)


def config_of(a: argparse.Namespace) -> DistillConfig:
    """The settings that the command line names, the rest as by default."""
    fields = DistillConfig.__dataclass_fields__
    return DistillConfig(**{k: v for k, v in vars(a).items() if k in fields and v is not None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/scenes"), help="folder of latents and the teacher"
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/students"),
        help="folder of what is made; the first time it gets the teacher as it then is",
    )
    parser.add_argument("--student", choices=STUDENTS, default="scalewise4")
    parser.add_argument("--minutes", type=float, help="in all; 60 without --steps")
    parser.add_argument("--steps", type=int, help="in all, instead of minutes or besides")
    parser.add_argument("--begin", type=Path, help="folder of a student's LoRA to begin from")
    parser.add_argument(
        "--name", help="folder and checkpoint to write; the student's name by default"
    )
    parser.add_argument("--pictures", type=int, help="training pictures at most; all by default")
    parser.add_argument(
        "--pairs", type=Path, help="folder of noise and pictures that the first step learns from"
    )
    parser.add_argument("--pairs-weight", type=float, default=1.0, help="of the loss on them")
    parser.add_argument(
        "--first", type=float, default=0.0, help="share of batches, 0 to 1, for that step alone"
    )
    parser.add_argument(
        "--early", type=float, default=0.0, help="share of batches for the first two steps alone"
    )
    parser.add_argument("--device", default="cpu", help="that trains, such as cuda")
    options(parser)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    begin_run(a.run, a.scenes)
    train(
        LatentShards(a.scenes, device=a.device, count=a.pictures),
        a.run,
        a.student,
        config_of(a),
        a.name or a.student,
        minutes=a.minutes or (math.inf if a.steps else 60),
        steps=a.steps,
        begin=a.begin,
        pairs=Pairs(a.pairs) if a.pairs else None,
        pairs_weight=a.pairs_weight,
        first=a.first,
        early=a.early,
    )


if __name__ == "__main__":
    main()
