"""One training from a config: steps, progress, log, checkpoints and the LoRA that comes out."""

import json
import logging
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from ..lora import WEIGHTS_NAME, write_peft
from ..lora_config import CONFIG_NAME
from .checkpoint import load_checkpoint
from .config import FAMILIES, Settings, TrainConfig
from .data import PreparedBatches, read_index
from .families import device_of, load_model, publisher, schedule_sigmas
from .stopping import stoppable
from .trainer import Trainer
from .world import World, join_world

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.jsonl"


def rate_factor(step: int, config: TrainConfig) -> float:
    """What the student's rate is multiplied by: a rise over `warmup`, a fall over `decay`."""
    factor = min(1.0, (step + 1) / config.warmup)
    if config.decay:
        factor = min(factor, max(0.02, (1 - step / config.steps) / config.decay))
    return factor


def seeded(config: TrainConfig, step: int) -> random.Random:
    """All the randomness of one step: resuming needs no other state."""
    return random.Random(config.seed * 1_000_003 + step)


def build_trainer(settings: Settings, world: World) -> Trainer:
    """The trainer of a config on its prepared data.

    Raises:
        ValueError: if the data was prepared for another model, schedule or size.
    """
    index, wanted = read_index(Path(settings.data.prepared)), settings.scale_schedule()
    if index["family"] != settings.kind:
        raise ValueError(
            f"{settings.data.prepared} was prepared for {index['family']}, not {settings.kind}. "
            "Give another folder in [data] prepared."
        )
    scales = list(index["schedule"]["scales"])
    if scales != list(wanted.scales):
        raise ValueError(
            f"{settings.data.prepared} was prepared for the scales {scales}, not "
            f"{list(wanted.scales)}. Run prepare again."
        )
    if settings.train.mmd_per_batch and world.size > 1:
        raise ValueError("[train] mmd_per_batch needs the whole batch in one process.")
    if settings.train.accumulate > 1 and settings.train.mmd_per_batch:
        log.info("mmd_per_batch compares the pictures of each accumulated batch by itself")
    device = device_of(settings)
    batches = PreparedBatches(Path(settings.data.prepared), schedule_sigmas(settings), device)
    model = load_model(settings, device)
    return Trainer(model, batches, [], settings.train, world=world)


def write_lora(trainer: Trainer, settings: Settings) -> Path:
    """Writes the averaged student in the published layout; each file is whole or the old one."""
    schedule, folder = settings.scale_schedule(), Path(settings.output.run) / settings.output.name
    layers = publisher(settings)(trainer.model, trainer.averaged_student())
    header = {
        "swd_scales": json.dumps(schedule.scales),
        "swd_sigmas": json.dumps(schedule.sigmas),
        "swd_sigma_kind": schedule.sigma_kind,
        "swd_preset": schedule.name,
        "swd_step": str(trainer.step),
        "swd_config": json.dumps(asdict(settings.train)),
    }
    aside, rank = folder.with_name(folder.name + ".tmp"), settings.model.rank
    base = settings.model.base or f"swd-{FAMILIES[settings.model.family][0]}"
    write_peft(aside, layers, rank=rank, alpha=rank, base_model=base, metadata=header)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        os.replace(aside / name, folder / name)
    aside.rmdir()
    return folder


def restore(trainer: Trainer, path: Path) -> None:
    """Takes up a checkpoint.

    Raises:
        ValueError: if it is damaged or of another training.
    """
    try:
        state = load_checkpoint(path)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"The checkpoint {path} can't be read ({error}). Move it away.") from error
    if state is None:
        return
    have = [tuple(p.shape) for p in (*trainer.student, *trainer.fake)]
    saved = [tuple(p.shape) for p in (*state["student"], *state["fake"])]
    if have != saved:
        raise ValueError(
            f"The checkpoint {path} is of another model or rank. Give the config it was made with, "
            "or another [output] run."
        )
    before = state["config"]
    for key, value in asdict(trainer.config).items():
        # A checkpoint keeps tuples as they are; a TOML list became one.
        if key in before and before[key] != value:
            log.info("since the checkpoint, [train] %s went from %s to %s", key, before[key], value)
    trainer.resume(path)


class Scalars:
    """TensorBoard's scalars where tensorboard is installed; losses.jsonl always."""

    def __init__(self, run: Path, step: int, tensorboard: bool):
        self.path = run / LOSSES
        self._forget_after(step)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step)
            except ImportError:
                log.info("tensorboard is not installed; the losses are in %s", self.path)

    def _forget_after(self, step: int) -> None:
        """Drops the lines of steps that will be done again, and a half-written last one."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                break
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(aside, self.path)

    def add(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"loss/{name}", value, step)

    def picture(self, step: int, name: str, value: torch.Tensor) -> None:
        """A picture (H, W, 3) in [0, 1]."""
        if self.board is not None:
            self.board.add_image(name, value, step, dataformats="HWC")


def train(
    settings: Settings,
    *,
    resume: bool = False,
    on_save: Callable[[Trainer, Scalars], None] | None = None,
) -> tuple[Path, int]:
    """Trains to [train] steps, or until it is asked to stop; both end with a checkpoint.

    Returns:
        the LoRA's folder and the number of steps done in all.

    Raises:
        ValueError: if the config, the data or the checkpoint doesn't fit. FloatingPointError: if
            a loss is not finite; the checkpoint before stays. OSError: if the disk is full.
    """
    config, run = settings.train, Path(settings.output.run)
    checkpoint = run / CHECKPOINT
    if checkpoint.is_file() and not resume:
        raise ValueError(
            f"{checkpoint} exists already. Give --resume to go on with it, or another [output] run."
        )
    if resume and not checkpoint.is_file():
        raise ValueError(f"There is no {checkpoint} to resume from. Start without --resume.")
    world = join_world(settings.model.device)
    trainer = build_trainer(settings, world)
    restore(trainer, checkpoint)
    world.barrier()
    run.mkdir(parents=True, exist_ok=True)
    scalars = Scalars(run, trainer.step, settings.output.tensorboard) if world.is_first else None
    folder = run / settings.output.name

    def save() -> None:
        if scalars is not None:
            try:
                trainer.save(checkpoint)
                write_lora(trainer, settings)
            except (OSError, RuntimeError, SafetensorError) as error:
                raise OSError(
                    f"Step {trainer.step} can't be saved in {run} ({error}). The checkpoint before "
                    "is whole: make room and go on with --resume."
                ) from error
            if on_save is not None:
                on_save(trainer, scalars)

    bar = tqdm(initial=trainer.step, total=config.steps, unit="step") if world.is_first else None
    saved = -1
    with stoppable() as asked, bar or nullcontext():
        while trainer.step < config.steps and not world.any(asked()):
            trainer.optimiser.param_groups[0]["lr"] = config.lr * rate_factor(trainer.step, config)
            trainer.student_step(seeded(config, trainer.step))
            if bar is not None:
                bar.update()
            if trainer.step % settings.output.log_every == 0:
                means = world.mean(trainer.means())
                if scalars is not None:
                    scalars.add(trainer.step, means)
                    bar.set_postfix(means)
            if trainer.step % settings.output.save_every == 0:
                save()
                saved = trainer.step
        if saved != trainer.step:
            save()
    world.barrier()
    return folder, trainer.step
