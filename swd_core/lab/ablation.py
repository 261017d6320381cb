"""The paper's ablation on the teacher of scenes: every variant from every seed, one table.

Hours of CPU time, minutes of a large GPU. Finished rows are kept in a file, so a stopped run goes
on.
"""

import argparse
import json
import logging
import math
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..distill.checkpoint import load_checkpoint
from ..distill.interface import DistillConfig
from ..files import read_json, write_text
from ..scenes.autoencoder import FACTOR
from .classifier import CLASSIFIER_FILE, load_classifier
from .evaluate import NEW, Test, asked, compute_options, real_painter, way_painter
from .latents import LatentShards
from .pictures import shrunk
from .train_student import begin_run, steps_for, train
from .ways import SIDE, STUDENTS, Way

log = logging.getLogger(__name__)
TABLE = "ablation.json"
KEYS = ("everything", NEW, "frechet", "precision", "recall", "spread", "top octave")
TILE, LABEL = 128, 190  # of the sheet: a picture's side, and its column of titles, in pixels
# What differs from the trainer's defaults (the paper's weights): short runs need a short average.
RECIPE: dict[str, Any] = {"fake_steps": 1, "ema": 0.98, "autocast": True}


@dataclass(frozen=True)
class Variant:
    """One row: what it is called, which student's sizes it has, what differs in the training.

    losses: other settings. latent_space: small latents are shrunk ones. noise_first: noised before
    enlarging. pictures: trained until it has seen as many pictures as the first row, which takes
    longer, as full-size ones come in smaller batches; else for as many steps of as many tokens.
    seeds: how many training seeds it has at most.
    """

    name: str
    title: str
    student: str = "scalewise4"
    losses: dict[str, Any] = field(default_factory=dict)
    latent_space: bool = False
    noise_first: bool = False
    pictures: bool = False
    seeds: int = 1

    @property
    def training(self) -> dict[str, bool]:
        return {"latent_space": self.latent_space, "noise_first": self.noise_first}

    def way(self, lora: str) -> Way:
        return Way(self.title, lora, *STUDENTS[self.student], noise_first=self.noise_first)


ALONE = {"mmd": 0.0, "dmd": 0.0, "gan": 0.0}
VARIANTS = (
    Variant("all", "all losses, scale-wise, 4 steps", seeds=3),
    Variant("full4", "full size, 4 steps", "full4", seeds=3),
    Variant("full2", "full size, 2 steps", "full2", seeds=3),
    Variant("full4_pictures", "full size, 4 steps, as many pictures", "full4", pictures=True),
    Variant("full2_pictures", "full size, 2 steps, as many pictures", "full2", pictures=True),
    Variant("six", "scale-wise, 6 steps", "scalewise6"),
    Variant("jump4", "constant size, then a jump", "jump4"),
    Variant("mmd", "MMD alone", losses=ALONE | {"mmd": 1.0}, seeds=2),
    Variant("dmd", "DMD alone", losses=ALONE | {"dmd": 1.0}),
    Variant("gan", "GAN alone", losses=ALONE | {"gan": 1.0}),
    Variant("no_mmd", "without MMD", losses={"mmd": 0.0}, seeds=2),
    Variant("rbf", "RBF kernel", losses={"kernel": "rbf"}),
    # Tokens lie some 80 apart here: what its gradient lacks at the same weight is made up for.
    Variant("rbf40", "RBF kernel, weight 40", losses={"kernel": "rbf", "mmd": 40.0}),
    Variant("batch", "MMD over the batch", losses={"mmd_per_batch": True}),
    Variant("bare", "MMD without noising", losses={"mmd_sigma": (0.0, 0.0), "levels": "uniform"}),
    Variant("noise_first", "noise, then upscale", noise_first=True),
    Variant("latent_space", "downscaled in latent space", latent_space=True),
    # No input holds anything of a picture then: this is what a training from prompts alone is.
    Variant(
        "prompts",
        "prompts alone, DMD alone",
        losses=ALONE | {"dmd": 1.0, "backward_simulation": 1.0},
        seeds=3,
    ),
)


def steps_of(variant: Variant, steps: int, config: DistillConfig) -> int:
    """The steps of a variant where the first row has `steps`."""
    if not variant.pictures:
        return steps
    pictures = steps * 1000 // steps_for(1000, "scalewise4", config)
    return steps_for(pictures, variant.student, config)


def budget_of(a: argparse.Namespace, variant: Variant, seed: int) -> dict[str, float]:
    """How long `train` trains a student."""
    if a.minutes:
        return {"minutes": a.minutes}
    return {"steps": steps_of(variant, a.steps, config_of(a, variant, seed))}


def name_of(variant: Variant, seed: int, budget: dict[str, float]) -> str:
    """Of a student's folder and checkpoint."""
    minutes = f"{budget['minutes']:g}min" if "minutes" in budget else budget["steps"]
    return f"{variant.name}-{seed}-{minutes}"


@dataclass(frozen=True)
class Bench:
    """What every row needs: training data and the test."""

    data: LatentShards
    test: Test

    @classmethod
    def make(cls, a: argparse.Namespace) -> "Bench":
        return cls(LatentShards(a.scenes, device=a.device, count=a.pictures), test_of(a))

    def row(self, a: argparse.Namespace, variant: Variant, seed: int) -> dict[str, Any]:
        """Trains a student and measures it.

        Raises:
            Stopped: if the training was stopped; half a student is not measured.
        """
        budget = budget_of(a, variant, seed)
        name, config = name_of(variant, seed, budget), config_of(a, variant, seed)
        steps = train(self.data, a.run, variant.student, config, name, **budget, **variant.training)
        seconds = load_checkpoint(a.run / f"{name}.pt")["seconds"]
        if steps < budget.get("steps", 0) or seconds < 60 * budget.get("minutes", 0):
            raise Stopped(f"{variant.title}, seed {seed}: stopped at step {steps}.")
        way = variant.way(name)
        measured = self.test.row(way_painter(a.run, way, a.batch, a.device))
        return {
            "variant": variant.name, "title": variant.title, "seed": seed,
            **budget, "steps": steps, "pictures": a.count, "calls": way.calls, **measured,
        }  # fmt: skip


def test_of(a: argparse.Namespace) -> Test:
    """The test; its real pictures are painted by the first call in a run's folder."""
    side = SIDE * FACTOR
    return Test.make(
        real_painter(a.assets, side, a.workers),
        load_classifier(a.scenes / CLASSIFIER_FILE, a.device),
        a.count,
        a.new,
        a.run / f"real_{side}_{a.count}.pt",
    )


class Stopped(Exception):
    """A training ended before its last step."""


def config_of(a: argparse.Namespace, variant: Variant, seed: int) -> DistillConfig:
    return DistillConfig(seed=seed, **RECIPE | {"batch_tokens": a.batch_tokens} | variant.losses)


_bench: Bench  # of one of several processes
_stopped = ""  # why it begins no other training, once one was stopped
_in_row = False


def _begin(a: argparse.Namespace) -> None:
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all; the first passes it on
    signal.signal(signal.SIGTERM, _end)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    _bench = Bench.make(a)


def _end(*_: Any) -> None:
    """Ends a row outside of its training; never a process, which may hold a lock of the pool's."""
    global _stopped
    _stopped = _stopped or "It was stopped."
    if _in_row:
        raise Stopped(_stopped)


def _row(a: argparse.Namespace, variant: Variant, seed: int) -> dict[str, Any]:
    global _stopped, _in_row
    if _stopped:
        raise Stopped(_stopped)
    try:
        _in_row = True
        return _bench.row(a, variant, seed)
    except Stopped as stopped:
        _stopped = str(stopped)
        raise
    finally:
        _in_row = False


def measured_rows(
    a: argparse.Namespace, wanted: list[tuple[Variant, int]]
) -> Iterator[dict[str, Any]]:
    """The rows of variants and seeds as they are finished, `a.jobs` at a time.

    Raises:
        Stopped: if a training was, by SIGTERM here or Ctrl-C; no other is begun then.
    """
    if a.jobs == 1:
        bench = Bench.make(a)
        yield from (bench.row(a, *each) for each in wanted)
        return
    test_of(a)
    context = multiprocessing.get_context("spawn")
    before = signal.signal(signal.SIGTERM, _pass_on)
    try:
        with ProcessPoolExecutor(a.jobs, context, _begin, (a,)) as pool:
            try:
                for future in as_completed([pool.submit(_row, a, *each) for each in wanted]):
                    yield future.result()
            except BaseException:  # Ctrl-C, one that was stopped or failed, or an error outside
                _pass_on()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:  # one that had no memory left
        raise Stopped("One of the processes was ended.") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _pass_on(*_: Any) -> None:
    """Asks the other processes to end; each does after its batch, and saves."""
    for process in multiprocessing.active_children():
        process.terminate()


def run_ablation(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains and measures what the table's file does not hold yet; returns all rows.

    Raises:
        SystemExit: if a training was stopped.
    """
    path = a.out or a.run / (f"{a.minutes:g}min_{TABLE}" if a.minutes else TABLE)
    rows = read_json(path) if path.is_file() else []
    begin_run(a.run, a.scenes)
    wanted = []
    for seed in range(a.train_seeds):
        for variant in VARIANTS:
            row = {"variant": variant.name, "seed": seed, "pictures": a.count}
            row |= budget_of(a, variant, seed)
            chosen = variant.name in a.variants and seed < variant.seeds
            if chosen and not any(row.items() <= r.items() for r in rows):
                wanted.append((variant, seed))
    if not wanted:
        return rows
    try:
        for row in measured_rows(a, wanted):
            rows.append(row)
            write_text(path, json.dumps(rows, indent=1) + "\n")
            log.info("%s seed %d: %s", row["title"], row["seed"], json.dumps(row))
    except Stopped as stopped:
        raise SystemExit(f"{stopped} The same command goes on from there.") from stopped
    return rows


def number(measured: float | list[float]) -> float:
    """The value of a measure that may have bounds."""
    return measured[0] if isinstance(measured, list) else measured


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every variant's mean over the seeds, with the smallest and largest in brackets."""
    lines = [f"| variant | seeds | steps | {' | '.join(KEYS)} | calls |"]
    lines.append("|" + "---|" * (len(KEYS) + 4))
    for variant in VARIANTS:
        found = [r for r in rows if r["variant"] == variant.name]
        if not found:
            continue
        cells = []
        for key in KEYS:
            values = [number(r[key]) for r in found]
            spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.4g}{spread}")
        steps = sorted({r["steps"] for r in found})
        shown = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else steps[0]
        head = f"| {variant.title} | {len(found)} | {shown} | "
        lines.append(head + f"{' | '.join(cells)} | {found[0]['calls']:.2f} |")
    return "\n".join(lines)


def sheet(rows: list[tuple[str, Tensor]]) -> Image.Image:
    """A titled row for each of some pictures uint8 (N, 3, H, W)."""
    count = len(rows[0][1])
    picture = Image.new("RGB", (LABEL + count * TILE, len(rows) * TILE), "white")
    draw = ImageDraw.Draw(picture)
    for y, (title, pictures) in enumerate(rows):
        draw.multiline_text((8, y * TILE + TILE // 3), "\n".join(wrap(title, 26)), "black")
        small = shrunk(pictures, TILE).permute(0, 2, 3, 1).numpy()
        picture.paste(Image.fromarray(np.concatenate(list(small), 1)), (LABEL, y * TILE))
    return picture


def write_sheet(a: argparse.Namespace, count: int = 8, seed: int = 2026) -> None:
    """Unpicked pictures of every variant that is trained, and real ones of the same prompts."""
    scenes, rows = asked(count, seed, held=False), []
    for variant in [v for v in VARIANTS if v.name in a.variants]:
        name = name_of(variant, 0, budget_of(a, variant, 0))
        paint = way_painter(a.run, variant.way(name), a.batch, a.device)
        rows.append((variant.title, paint(scenes, seed)))
    rows.append(("real pictures", real_painter(a.assets, SIDE * FACTOR)(scenes, seed)))
    sheet(rows).save(a.sheet, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--scenes", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=500, help="of training for each student")
    parser.add_argument(
        "--minutes",
        type=float,
        help="of wall time for each, instead of steps; --jobs trainings share the machine alike",
    )
    parser.add_argument("--train-seeds", type=int, default=3, help="at most; some rows have less")
    parser.add_argument("--count", type=int, default=512, help="pictures of each row")
    parser.add_argument("--new", type=int, default=256, help="pictures never trained on")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of training")
    parser.add_argument("--out", type=Path, help="the table's file; RUN/ablation.json by default")
    parser.add_argument("--sheet", type=Path, help="PNG of what the first seed's students make")
    parser.add_argument("--pictures", type=int, help="training pictures at most; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    compute_options(parser)
    names = [v.name for v in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    a = parser.parse_args()
    if a.minutes is not None and not 0 < a.minutes < math.inf:
        parser.error(f"--minutes {a.minutes:g} is no time to train for")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info(table(run_ablation(a)))
    if a.sheet:
        write_sheet(a)


if __name__ == "__main__":
    main()
