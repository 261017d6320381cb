"""Measures ways to sample scenes as `measures` says, beside what real pictures get."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distill.checkpoint import load_checkpoint, save_checkpoint
from ..distill.precision import fast_autocast
from ..files import read_json, write_text
from ..pictures import in_bytes
from ..scenes.autoencoder import FACTOR
from ..scenes.captions import plain_caption
from ..scenes.catalogue import Scene, draw_scene, draw_training_scene, held_out
from ..scenes.student import LORA_FOLDER, SceneStudent
from .classifier import CLASSIFIER_FILE, SceneClassifier, load_classifier
from .classifier import SIDE as CLASSIFIED
from .measures import (
    bootstrap,
    examined,
    frechet_distance,
    nearest,
    precision_recall,
    prompt_accuracy,
    spread,
    top_octave,
)
from .pictures import HELD_BACK, load_pictures, paint_scenes, picture_path, shrunk
from .sheet import tiled
from .train_student import begin_run
from .ways import SIDE, STUDENTS, Way, generate, teacher_way

log = logging.getLogger(__name__)
Painter = Callable[[Sequence[Scene], int], Tensor]  # scenes and a seed to uint8 (N, 3, H, W)
Row = dict[str, float | list[float]]  # a measure's value, or [value, low, high]
VARIED, EACH = 24, 12  # prompts and pictures of each that the spread is measured on
ROUNDS = 40  # of the bootstrap of the Fréchet distance
NEW = "never trained on"


def asked(count: int, seed: int, held: bool) -> list[Scene]:
    """Scenes to ask for: such as were trained on, or combinations that never were."""
    rng = np.random.default_rng((seed, 2))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng) if held else draw_training_scene(rng)
        if held_out(scene) == held:
            scenes.append(scene)
    return scenes


def real_painter(assets: Path, side: int, workers: int = 1) -> Painter:
    """Real pictures of the scenes, none of which was trained on."""

    def paint(scenes: Sequence[Scene], seed: int) -> Tensor:
        first = HELD_BACK + 1_000_000 * seed
        return shrunk(paint_scenes(assets, scenes, first, workers), side)

    return paint


def student_folder(run: Path, lora: str) -> str:
    """A student's folder in `run`; the embedded weights have theirs under a name of its own."""
    return LORA_FOLDER if lora == "scalewise4" and not (run / lora).is_dir() else lora


def way_painter(
    run: Path, way: Way, batch: int = 16, device: torch.device | str = "cpu"
) -> Painter:
    """What a way to sample makes of the weights in `run`, in batches of `batch`."""
    model = SceneStudent.load(run, device, lora=student_folder(run, way.lora) or None)

    @torch.inference_mode()
    def paint(scenes: Sequence[Scene], seed: int) -> Tensor:
        parts = []
        for i in range(0, len(scenes), batch):
            text = model.encode([plain_caption(scene) for scene in scenes[i : i + batch]])
            with fast_autocast(device):
                latents = generate(model, way, text, seed, range(i, i + len(text.context)))
            parts.append(in_bytes(model.decode(latents)).permute(0, 3, 1, 2).cpu())
            if i // batch % 16 == 15:
                log.info("%s: %d of %d pictures", way.title, i + batch, len(scenes))
        return torch.cat(parts)

    return paint


@dataclass(frozen=True)
class Reference:
    """Real pictures to compare with: pixels uint8 (N, 3, H, W), features (N, D), and by scene."""

    pixels: Tensor
    features: Tensor
    varied: list[Tensor]


def repeated(scenes: Sequence[Scene]) -> list[Scene]:
    """EACH times each of the first VARIED scenes."""
    return [scene for scene in scenes[:VARIED] for _ in range(EACH)]


def measure(
    model: SceneClassifier,
    paint: Painter,
    scenes: Sequence[Scene],
    real: Reference | None,
    seed: int = 0,
) -> tuple[Row, Reference]:
    """One row of the table, and the painted pictures as a reference of their own."""
    pixels = paint(scenes, seed)
    answers, features = examined(model, pixels)
    row: Row = {part: value.rounded() for part, value in prompt_accuracy(answers, scenes).items()}
    varied = list(examined(model, paint(repeated(scenes), seed + 1))[1].split(EACH))
    if real is not None:
        distance = bootstrap(
            lambda chosen: frechet_distance(features[chosen], real.features), len(scenes), ROUNDS
        )
        precision, recall = precision_recall(features, real.features)
        row |= {
            "frechet": distance.rounded(),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
            "spread": round(spread(varied, real.varied), 4),
            "top octave": round(top_octave(pixels, real.pixels), 4),
        }
    return row, Reference(pixels, features, varied)


@dataclass(frozen=True)
class Test:
    """What every way is measured on: prompts that were trained on, others, and real pictures."""

    model: SceneClassifier
    scenes: list[Scene]
    new: list[Scene]
    real: Reference

    @classmethod
    def make(
        cls, paint_real: Painter, model: SceneClassifier, count: int, new: int, kept: Path
    ) -> "Test":
        """The real pictures are painted once and then kept in the file `kept`."""
        scenes = asked(count, 0, held=False)
        if not kept.is_file():
            _, real = measure(model, paint_real, scenes, None)
            save_checkpoint(kept, vars(real))
        return cls(
            model, scenes, asked(new, 0, held=True), Reference(**load_checkpoint(kept, mmap=True))
        )

    def row(self, paint: Painter) -> Row:
        """All measures; of the prompts never trained on the share with everything right."""
        row, _ = measure(self.model, paint, self.scenes, self.real)
        if self.new:
            answers, _ = examined(self.model, paint(self.new, 2))
            row[NEW] = prompt_accuracy(answers, self.new)["everything"].rounded()
        return row

    def floor(self, paint_real: Painter) -> Row:
        """Real pictures against other real ones of the same scenes: as good as a row can be."""
        return measure(self.model, paint_real, self.scenes, self.real, seed=2)[0]


def ways(guidance: float, side: int = SIDE) -> list[Way]:
    """The model card's rows: the teacher's own ways, and every student its own."""
    rows = [
        teacher_way(25, guidance, side),
        Way("teacher, 4 full-size steps", "", *STUDENTS["full4"]),
        Way("teacher, 2 full-size steps", "", *STUDENTS["full2"]),
        Way("teacher, sampled scale-wise", "", *STUDENTS["scalewise4"]),
    ]
    titles = {
        "scalewise4": "student, 4 scale-wise steps",
        "full4": "student, 4 full-size steps",
        "full2": "student, 2 full-size steps",
        "jump4": "student, constant then jump",
        "scalewise6": "student, 6 scale-wise steps",
    }
    return rows + [Way(title, name, *STUDENTS[name]) for name, title in titles.items()]


def mixed_ways(etas: Sequence[float]) -> list[Way]:
    """Students at steps that keep their size, with shares of the predicted noise mixed in there;
    the scale-wise one is sampled in six steps, of which two do."""
    kinds = {
        "student, 4 full-size steps": ("full4", *STUDENTS["full4"]),
        "student of 4 scale-wise steps in 6": ("scalewise4", *STUDENTS["scalewise6"]),
    }
    return [
        Way(f"{title}, eta {eta:g}", *kind, eta=eta)
        for title, kind in kinds.items()
        for eta in etas
    ]


def beside_nearest(
    model: SceneClassifier, pixels: Tensor, folder: Path, columns: int = 8
) -> np.ndarray:
    """Rows of pictures (N, 3, H, W), each row above their nearest training pictures in `folder`."""
    features: list[Tensor] = []
    while picture_path(folder, len(features)).is_file():
        training = load_pictures(folder, len(features))
        features.append(examined(model, shrunk(training, CLASSIFIED))[1])
    found = nearest(examined(model, pixels)[1], torch.cat(features)).tolist()
    size = len(features[0])
    nearby = torch.stack([load_pictures(folder, i // size)[i % size] for i in found])
    beside = shrunk(nearby, pixels.shape[-1])
    rows = zip(pixels.split(columns), beside.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row]).permute(0, 2, 3, 1).numpy()


def compute_options(parser: argparse.ArgumentParser) -> None:
    """What measuring is told on the command line about the machine."""
    parser.add_argument("--device", default="cpu", help="that draws and measures, such as cuda")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at a time")
    parser.add_argument("--workers", type=int, default=1, help="processes that paint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/scenes"), help="folder of the classifier"
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/students"),
        help="weights to measure; a folder without any gets the teacher as it now is",
    )
    parser.add_argument("--size", type=int, default=SIDE * FACTOR, help="of the teacher's pictures")
    parser.add_argument("--count", type=int, default=512, help="pictures of each row")
    parser.add_argument("--new", type=int, default=256, help="pictures never trained on")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the 25-step teacher")
    parser.add_argument(
        "--eta", type=float, nargs="+", help="shares of predicted noise to measure, instead"
    )
    parser.add_argument("--only", nargs="*", help="parts of the titles of the rows to measure")
    parser.add_argument(
        "--out", type=Path, help="JSON that collects the rows; measured ones are not run again"
    )
    parser.add_argument(
        "--nearest", type=Path, help="16 outputs of the student above the nearest pictures"
    )
    compute_options(parser)
    a = parser.parse_args()
    if not all(0 <= eta <= 1 for eta in a.eta or ()):
        parser.error("--eta is shares of the predicted noise, from 0 to 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    begin_run(a.run, a.scenes)
    table: dict[str, Any] = read_json(a.out) if a.out and a.out.is_file() else {}

    def keep(name: str, row: Callable[[], Row]) -> None:
        if name not in table and (not a.only or any(part in name for part in a.only)):
            table[name] = row()
            log.info("%s: %s", name, json.dumps(table[name]))
            if a.out:
                write_text(a.out, json.dumps(table, indent=1) + "\n")

    real = real_painter(a.assets, a.size, a.workers)
    test = Test.make(
        real,
        load_classifier(a.scenes / CLASSIFIER_FILE, a.device),
        a.count,
        a.new,
        a.scenes / f"real_{a.size}_{a.count}.pt",
    )
    rows = mixed_ways(a.eta) if a.eta else ways(a.guidance, a.size // FACTOR)
    if not a.eta:
        keep("real pictures", lambda: test.floor(real))
    painter = partial(way_painter, a.run, batch=a.batch, device=a.device)
    for way in rows:
        known = not way.lora or (a.run / student_folder(a.run, way.lora)).is_dir()
        if known and way.sides[-1] * FACTOR == a.size:
            keep(
                way.title,
                lambda way=way: {"calls": way.calls} | test.row(painter(way)),
            )
    if a.nearest:
        way = Way("student", "scalewise4", *STUDENTS["scalewise4"])
        pixels = painter(way)(asked(16, 7, held=False), 7)
        tiled(beside_nearest(test.model, pixels, a.scenes), 8).save(a.nearest)


if __name__ == "__main__":
    main()
