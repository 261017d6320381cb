"""One training from a config: steps, progress, log, checkpoints and the LoRA that comes out."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..families import SD3
from ..lora import schedule_header
from ..lora_files import write_hosts, write_peft
from . import loop
from .checkpoint import load_checkpoint
from .config import Settings, check_prompts_alone
from .data import PreparedBatches, fingerprint, kind_of, read_index
from .evaluation import grid, measures, student_latents
from .home import MARK, Home, alone, check_own, claim, identity
from .interface import Shown
from .origin import check_source
from .record import LOSSES, SAMPLES, TENSORBOARD, Record
from .stopping import stop_if, stoppable
from .taught import Taught, Teaching
from .teachers import device_of, load_decoder, load_model, publisher, schedule_sigmas
from .trainer import Trainer
from .world import World, join_world, sharing_world

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
OWN = (CHECKPOINT, LOSSES, SAMPLES, TENSORBOARD)  # what lies beside the LoRA


def check_prepared(index: Mapping[str, Any], settings: Settings) -> None:
    """Raises ValueError if a config isn't the one that its data was prepared with.

    Args:
        index: what `read_index` gives.
    """
    folder, family, data = settings.data.prepared, settings.family, settings.data
    if index["family"] != family.encoders:
        raise ValueError(
            f"{folder} was prepared for {index['family']}, not {family.encoders}. "
            "Give another folder in [data] prepared."
        )
    scales, wanted = list(index["schedule"]["scales"]), list(settings.scale_schedule().scales)
    if scales != wanted:
        raise ValueError(
            f"{folder} was prepared for the scales {scales}, not {wanted}. Run prepare again."
        )
    made = {"size": (index.get("side", data.size), data.size)}
    tokens = re.search(r"-(\d+)$", index.get("encoder", ""))  # as its encoder's fingerprint ends
    if tokens and family.architecture.text_tokens and not family.embedded:
        made["text_tokens"] = (int(tokens[1]), data.text_tokens)
    for name, (before, now) in made.items():
        if before != now:
            raise ValueError(
                f"{folder} was prepared with [data] {name} {before}, and it is {now} now. Run "
                "prepare again, or set it back."
            )


def build_trainer(settings: Settings, world: World) -> Trainer:
    """The trainer of a config on its prepared data.

    Raises:
        ValueError: if the data was prepared with other settings.
    """
    check_prepared(read_index(Path(settings.data.prepared)), settings)
    if settings.train.mmd_per_batch and world.size > 1:
        raise ValueError("[train] mmd_per_batch needs the whole batch in one process.")
    if settings.train.accumulate > 1 and settings.train.mmd_per_batch:
        log.info("mmd_per_batch compares the pictures of each accumulated batch by itself")
    device = device_of(settings)
    batches = PreparedBatches(Path(settings.data.prepared), schedule_sigmas(settings), device)
    if settings.data.source:
        check_source(Path(settings.data.source), batches)
    config = settings.train
    if not batches.pictures:  # every input is what the student itself has made of noise
        check_prompts_alone(config)
        config = replace(config, backward_simulation=1.0)
    model = load_model(settings, device)
    trainer = Trainer(model, batches, config, world=world, last=settings.train.steps)
    if not batches.pictures and trainer.objective.needs_real:
        t, guided = settings.teacher, settings.family.architecture.guided
        teaching = Teaching(
            trainer.objective,
            load_decoder(settings, device),
            count=trainer.count(batches.finished),
            steps=t.pool_steps,
            guidance=1.0 if guided else t.guidance,  # or the model has it inside
            world=world,
        )
        trainer.taught = Taught(teaching, t.pool, t.pool_renewed)
    return trainer


def write_lora(trainer: Trainer, settings: Settings, home: Home) -> Path:
    """Writes the averaged student in the published layout.

    Raises:
        ValueError: if something else is there by now. OSError: if it can't be written.
    """
    check_own(home)
    schedule = settings.scale_schedule()
    layers = publisher(settings)(trainer.model, trainer.averaged_student())
    header = {
        **schedule_header(schedule),
        "swd_step": str(trainer.step),
        "swd_config": json.dumps(asdict(settings.train)),
        MARK: home.mark,
    }
    rank = settings.model.rank
    base = settings.model.base or f"swd-{settings.family.encoders}"
    write_peft(home.lora, layers, rank=rank, alpha=rank, base_model=base, metadata=header)
    kind = settings.family.architecture
    if kind is not SD3 and kind.diffusers.part == "transformer":
        write_hosts(home.lora, layers, header)
    return home.lora


def save_all(trainer: Trainer, settings: Settings, home: Home, then: str) -> Path:
    """Writes checkpoint and LoRA.

    Args:
        then: how to go on once there is room, for the message.

    Raises:
        OSError: if one of them can't be written; says what is safe and how to go on.
    """
    try:
        trainer.save(home.checkpoint, training=home.record)
        return write_lora(trainer, settings, home)
    except OSError as error:
        if not home.checkpoint.is_file():
            then = "run again"
        raise OSError(
            f"Step {trainer.step} can't be saved ({error}). What was saved before is whole: make "
            f"room and {then}."
        ) from error


def restore(trainer: Trainer, path: Path) -> None:
    """Takes up a checkpoint.

    Raises:
        ValueError: if it is damaged or of another model.
    """
    state = load_checkpoint(path)
    if state is None:
        return
    try:
        have = [tuple(p.shape) for p in (*trainer.student, *trainer.fake)]
        saved = [tuple(p.shape) for p in (*state["student"], *state["fake"])]
        if have == saved:
            trainer.take_up(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The checkpoint {path} is damaged ({error!r}). Move it away.") from error
    if have != saved:
        raise ValueError(
            f"The checkpoint {path} is of another model or rank. Give the config it was made with, "
            "or another [output] run."
        )


@dataclass
class Evaluator:
    """Shows and measures the student; the VAE is loaded when it is first needed, if it is."""

    settings: Settings
    shown: Shown
    decoder: Any = None

    @torch.no_grad()
    def __call__(self, trainer: Trainer, record: Record | None) -> None:
        """All processes sample, since all may hold a part of the model; the first one records."""
        x0 = student_latents(trainer, self.shown)
        values = measures(trainer, x0, self.shown)
        if record is None:
            return
        if self.decoder is None:
            self.decoder = load_decoder(self.settings, trainer.device)
        pictures = [self.decoder.pictures(x[None])[0] for x in x0]  # one by one, for the memory
        record.evaluation(trainer.step, values, grid(pictures, self.shown.captions))


def train(settings: Settings, *, resume: bool = False, changed: bool = False) -> tuple[Path, int]:
    """Trains to [train] steps, or until it is asked to stop, as it can be between two batches; both
    end with a checkpoint.

    Args:
        changed: go on although other settings than the number of steps are not the checkpoint's.

    Returns:
        the LoRA's folder and the number of steps done in all.

    Raises:
        ValueError: if the config, the data or the checkpoint doesn't fit. FloatingPointError: if
            a loss is not finite; the checkpoint before stays. OSError: if the disk is full.
    """
    output, run = settings.output, Path(settings.output.run)
    checkpoint, prepared = run / CHECKPOINT, Path(settings.data.prepared)
    if output.name.lower() in OWN:
        raise ValueError(
            f"[output] name is {output.name!r}, but a run's folder has a {output.name.lower()} of "
            "its own beside the LoRA. Choose another name."
        )
    if checkpoint.is_file() and not resume:
        raise ValueError(
            f"{checkpoint} exists already. Give --resume to go on with it, or another [output] run."
        )
    if resume and not checkpoint.is_file():
        raise ValueError(f"There is no {checkpoint} to resume from. Start without --resume.")
    index = read_index(prepared)
    kind = kind_of(index)
    home = claim(
        checkpoint,
        run / output.name,
        identity(settings, {f"prepared {kind}": fingerprint(index)}),
        instead=f"Give another [output] run or name; with --changed and the same {kind} it goes "
        "on with other settings.",
        changed=changed,
    )
    refusal = f"Another process trains in {run}. Wait for its end, or give another [output] run."
    with alone(run, refusal, holds=sharing_world().is_first):  # which writes for all
        return _train(settings, home)


def _train(settings: Settings, home: Home) -> tuple[Path, int]:
    """`train` in a folder that nobody else trains in."""
    config, output, run = settings.train, settings.output, Path(settings.output.run)
    world = join_world(settings.model.device)
    trainer = build_trainer(settings, world)
    restore(trainer, home.checkpoint)
    world.barrier()
    record = Record(run, trainer.step, output.tensorboard) if world.is_first else None
    evaluate = None
    if output.samples:
        decoder = trainer.taught.teaching.autoencoder if trainer.taught else None
        evaluate = Evaluator(settings, trainer.batches.first(output.samples), decoder)

    def save() -> None:
        if world.is_first:
            save_all(trainer, settings, home, "go on with --resume")

    bar = tqdm(initial=trainer.step, total=config.steps, unit="step", disable=not world.is_first)

    def due(step: int) -> bool:
        return step % output.save_every == 0 or step == config.steps

    def each(step: int) -> None:
        bar.update()
        if step % output.log_every == 0 or step == config.steps:
            means = world.mean(trainer.means())
            if record is not None:
                record.losses(step, means)
                bar.set_postfix(means)
        # Before the saving: a checkpoint then means that its step's evaluation is recorded.
        if due(step) and evaluate is not None:
            evaluate(trainer, record)

    with stoppable() as asked, bar:
        loop.train(
            trainer,
            lambda: trainer.step / config.steps,
            config.decay,
            each=each,
            due=due,
            save=save,
            between=lambda: stop_if(world.any(asked())),
        )
    world.barrier()
    return run / output.name, trainer.step
