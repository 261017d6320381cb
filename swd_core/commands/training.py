"""The commands that make a student: sample-teacher, prepare and distill."""

import argparse
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_writable
from .common import KEEP, refusing

if TYPE_CHECKING:
    from ..distill.config import Settings
    from ..distill.world import World

STEPS = """\
The three steps, each of which goes on where it was stopped:
  python -m swd_core sample-teacher --config configs/sd35_medium.toml   optional: pictures
  python -m swd_core prepare --config configs/sd35_medium.toml          encodes them, once
  python -m swd_core distill --config configs/sd35_medium.toml          trains the student
Several graphics cards or machines share each of them: accelerate launch -m swd_core prepare ...
A base that is too large for one of them: accelerate launch --use_fsdp -m swd_core distill ...
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers the three commands."""

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text[0].lower() + text[1:-1], description=text, epilog=STEPS,
            formatter_class=KEEP,
        )  # fmt: skip
        parser.add_argument("--config", required=True, metavar="FILE", help="a .toml of configs/")
        parser.set_defaults(run=run)
        return parser

    command("sample-teacher", "Makes the training pictures with the teacher.", _sample)
    p = command("prepare", "Encodes pictures at every size of the schedule, once.", _prepare)
    p.add_argument(
        "--skip-small", action="store_true", help="leave out too small pictures, and list them"
    )
    d = command("distill", "Trains a scale-wise student as a LoRA.", _distill)
    d.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    d.add_argument(
        "--changed", action="store_true",
        help="with --resume: although [train] says something else than the checkpoint",
    )  # fmt: skip
    d.add_argument("--steps", type=int, metavar="N", help="train to this many steps in all")
    d.add_argument(
        "--estimate", action="store_true", help="only say how much graphics memory it will take"
    )
    d.add_argument("--run", metavar="FOLDER", dest="run_folder", help="instead of [output] run")


def _settings(a: argparse.Namespace) -> "Settings":
    from ..distill.config import read_settings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return read_settings(Path(a.config))


def _need(value: str, where: str, what: str = "folder") -> None:
    if not value:
        raise ValueError(f"{where} is missing in the config: name a {what}.")


def _bar(unit: str, world: "World") -> Callable[[int, int], None]:
    from tqdm import tqdm

    bar = None  # only where there is something to show: an error's line is the last one

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # what was there before is no part of the rate
            bar = tqdm(unit=unit, initial=done, total=total, position=world.rank)
        bar.update(done - bar.n)
        bar.refresh()
        if done == total:
            bar.close()

    return update


def _sample(a: argparse.Namespace) -> None:
    with refusing():
        settings = _settings(a)
        _need(settings.data.source, "[data] source")
        from ..distill.sample_teacher import sample_teacher
        from ..distill.sources import prompts_alone
        from ..distill.world import sharing_world

        if prompts_alone(Path(settings.data.source)):
            raise ValueError(
                "[data] source is prompts alone, so there are no pictures to make: prepare it as "
                "it is, or name a folder for pictures."
            )
        _need(settings.teacher.prompts, "[teacher] prompts", "file with a prompt a line")
        check_writable(Path(settings.data.source))
        world = sharing_world()
        made = sample_teacher(settings, _bar("picture", world), world)
    of = "" if world.size == 1 else f" by process {world.rank + 1} of {world.size}"
    print(f"{made} pictures made in {settings.data.source}{of}")


def _prepare(a: argparse.Namespace) -> None:
    with refusing():
        settings = _settings(a)
        data = settings.data
        _need(data.source, "[data] source")
        _need(data.prepared, "[data] prepared")
        from ..distill.config import check_size
        from ..distill.prepare import prepare
        from ..distill.sources import find_prompts, find_samples, prompts_alone
        from ..distill.teachers import device_of, load_encoder
        from ..distill.world import sharing_world

        world = sharing_world()
        find = find_prompts if prompts_alone(Path(data.source)) else find_samples
        # A wrong size or folder is told before the models are loaded.
        check_size(settings)
        find(Path(data.source))
        check_writable(Path(data.prepared))
        report = prepare(
            Path(data.source), Path(data.prepared), load_encoder(settings, device_of(settings)),
            settings.scale_schedule(), data.size, shard_size=data.shard_size,
            batch=data.encode_batch, most_oblong=data.most_oblong, skip_small=a.skip_small,
            on_shard=_bar("shard", world), world=world,
        )  # fmt: skip
    if report is None:  # the first process has it
        return
    kind = "prompts" if prompts_alone(Path(data.source)) else "pictures"
    for name, reason in sorted(report.skipped.items())[:8]:
        print(f"skipped {name}: {reason}")
    for cause, count in report.anew.items():
        print(f"{count} {kind} had been encoded before, but {cause} changed since")
    print(
        f"{report.encoded} {kind} encoded, {report.kept} were already, {len(report.skipped)} "
        f"skipped (skipped.txt); {data.prepared}"
    )


def _distill(a: argparse.Namespace) -> None:
    with refusing():
        if a.changed and not a.resume:
            raise ValueError("--changed goes on with a checkpoint: give --resume, too.")
        settings = _settings(a)
        if a.steps is not None:
            if a.steps < 1:
                raise ValueError(f"--steps {a.steps} is not possible; give 1 or more.")
            train = dataclasses.replace(settings.train, steps=a.steps)
            settings = dataclasses.replace(settings, train=train)
        if a.run_folder:
            run = dataclasses.replace(settings.output, run=a.run_folder)
            settings = dataclasses.replace(settings, output=run)
        if a.estimate:
            from ..distill.estimate import estimate_settings, lines

            print(lines(estimate_settings(settings)))
            return
        _need(settings.data.prepared, "[data] prepared")
        _need(settings.output.run, "[output] run")
        from ..distill.session import train as run_training

        try:
            folder, step = run_training(settings, resume=a.resume, changed=a.changed)
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    whole = step >= settings.train.steps
    print(f"{folder}" if whole else f"stopped at step {step}; --resume goes on")
