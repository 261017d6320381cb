"""Measures the teacher of scenes as `measures` says, beside what real pictures get."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import write_text
from ..scenes.autoencoder import FACTOR
from ..scenes.captions import plain_caption
from ..scenes.catalogue import Scene, draw_scene, draw_training_scene, held_out
from ..scenes.sprites import FluentSprites
from ..scenes.student import VAE_FILE
from ..scenes.text import SceneTokenizer, encode_batch, vocabulary
from ..scenes.world import World
from .classifier import CLASSIFIER_FILE, SceneClassifier, load_classifier
from .latents import load_autoencoder
from .measures import (
    bootstrap,
    examined,
    frechet_distance,
    precision_recall,
    prompt_accuracy,
    spread,
    top_octave,
)
from .pictures import HELD_BACK, shrunk
from .sheet import decoded, sample
from .train_teacher import load_teacher

log = logging.getLogger(__name__)
Painter = Callable[[Sequence[Scene], int], Tensor]  # scenes and a seed to uint8 (N, 3, H, W)
VARIED, EACH = 24, 12  # prompts and pictures of each that the spread is measured on


def asked(count: int, seed: int, held: bool) -> list[Scene]:
    """Scenes to ask for: such as were trained on, or combinations that never were."""
    rng = np.random.default_rng((seed, 2))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng) if held else draw_training_scene(rng)
        if held_out(scene) == held:
            scenes.append(scene)
    return scenes


def real_painter(assets: Path, side: int) -> Painter:
    """Real pictures of the scenes, none of which was trained on."""
    world = World(FluentSprites(assets), seed=0)

    def paint(scenes: Sequence[Scene], seed: int) -> Tensor:
        first = HELD_BACK + 1_000_000 * seed
        pictures = [world.picture_of(scene, first + i).pixels for i, scene in enumerate(scenes)]
        return shrunk(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), side)

    return paint


def teacher_painter(out: Path, side: int, steps: int, guidance: float) -> Painter:
    """The averaged teacher's pictures in so many full-size steps."""
    teacher, vae = load_teacher(out), load_autoencoder(out / VAE_FILE)
    tokenizer = SceneTokenizer(vocabulary())

    def paint(scenes: Sequence[Scene], seed: int) -> Tensor:
        parts = []
        for i in range(0, len(scenes), 16):
            ids, _ = encode_batch(tokenizer, [plain_caption(s) for s in scenes[i : i + 16]])
            number = seed * 1_000_003 + i
            latents = sample(teacher, ids, side // FACTOR, steps, guidance, number)
            parts.append(torch.from_numpy(decoded(vae, latents)).permute(0, 3, 1, 2))
            log.info("%d of %d pictures", min(i + 16, len(scenes)), len(scenes))
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
) -> tuple[dict[str, str], Reference]:
    """One row of the table, and the painted pictures as a reference of their own."""
    pixels = paint(scenes, seed)
    answers, features = examined(model, pixels)
    row = {part: str(value) for part, value in prompt_accuracy(answers, scenes).items()}
    varied = list(examined(model, paint(repeated(scenes), seed + 1))[1].split(EACH))
    if real is not None:
        distance = bootstrap(
            lambda chosen: frechet_distance(features[chosen], real.features), len(scenes), rounds=40
        )
        precision, recall = precision_recall(features, real.features)
        row |= {
            "frechet": str(distance),
            "precision": f"{precision:.3f}",
            "recall": f"{recall:.3f}",
            "spread": f"{spread(varied, real.varied):.3f}",
            "top octave": f"{top_octave(pixels, real.pixels):.3f}",
        }
    return row, Reference(pixels, features, varied)


def evaluate(
    assets: Path, out: Path, side: int, count: int, steps: int, guidance: float
) -> dict[str, dict[str, str]]:
    """Rows by name: real pictures against real ones, the teacher, and it on held-out scenes."""
    model = load_classifier(out / CLASSIFIER_FILE)
    scenes = asked(count, 0, held=False)
    painter, real_one = teacher_painter(out, side, steps, guidance), real_painter(assets, side)
    _, real = measure(model, real_one, scenes, None)
    others = asked(VARIED, 0, held=False) + asked(count - VARIED, 1, held=False)
    rows = {"real pictures": measure(model, real_one, others, real, seed=2)[0]}
    rows[f"teacher, {steps} steps"] = measure(model, painter, scenes, real)[0]
    new = asked(count, 0, held=True)
    answers, _ = examined(model, painter(new, 2))
    rows["teacher, never trained on"] = {
        part: str(value) for part, value in prompt_accuracy(answers, new).items()
    }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels")
    parser.add_argument("--count", type=int, default=512, help="pictures of each kind")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = evaluate(a.assets, a.out, a.size, a.count, a.steps, a.guidance)
    text = json.dumps(rows, indent=1)
    write_text(a.out / f"teacher_{a.size}.json", text)
    log.info(text)


if __name__ == "__main__":
    main()
