"""A small CNN that names what a scene's picture shows: its truth comes from the generator."""

import argparse
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.average import Average
from ..distill.checkpoint import resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..scenes.catalogue import PLACES, THINGS, TIMES, Scene, scene_of
from ..tensor_files import read_tensors, save_tensors
from .pictures import HELD_BACK, SHARD, load_pictures, paint_numbered, picture_path, shrunk

log = logging.getLogger(__name__)
SIDE = 128  # every picture is shrunk to it by area
WIDTHS = (32, 64, 128, 192)
FEATURES = WIDTHS[-1]
WAVE = 12  # pixels that `melted` moves by
MELTED = 0.2  # share of the training that shows no thing, only its colours
UNCOUNTED = 1 - 100  # makes cross_entropy leave a picture's number of things out
CLASSIFIER_FILE, CHECKPOINT = "scenes_classifier.safetensors", "classifier.pt"
NAMES = tuple(THINGS)


@dataclass(frozen=True)
class Labels:
    """Answers or truths: things (N, 40) in 0..1, count (N,) 1 or 2, place and time (N,) numbers."""

    things: Tensor
    count: Tensor
    place: Tensor
    time: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> "Labels":
        things = torch.zeros(len(scenes), len(NAMES))
        for row, scene in zip(things, scenes, strict=True):
            row[[NAMES.index(name) for name in scene.things]] = 1
        return cls(
            things,
            torch.tensor([len(scene.things) for scene in scenes]),
            torch.tensor([PLACES.index(scene.place) for scene in scenes]),
            torch.tensor([TIMES.index(scene.time) for scene in scenes]),
        )

    def of_some(self, chosen: Tensor) -> "Labels":
        """Those of some of the pictures, by their numbers (M,)."""
        return self._each(lambda field: field[chosen])

    def to(self, device: torch.device | str) -> "Labels":
        return self._each(lambda field: field.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Labels":
        fields = (self.things, self.count, self.place, self.time)
        return Labels(*map(function, fields))

    def right(self, truth: "Labels") -> dict[str, Tensor]:
        """Which of N answers (N,) agree with the truth, by part and in "everything"."""
        found = {
            "things": (self.things.round() == truth.things).all(1),
            "count": self.count == truth.count,
            "place": self.place == truth.place,
            "time": self.time == truth.time,
        }
        return {**found, "everything": torch.stack(list(found.values())).all(0)}


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class SceneClassifier(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1], H and W at least 128, to features and answers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2), nn.ReLU()]
        for before, width in zip(WIDTHS, WIDTHS[1:], strict=False):
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.ReLU(),
                Residual(width),
            ]
        self.body = nn.Sequential(*layers)
        self.things = nn.Linear(2 * FEATURES, len(NAMES))
        self.count = nn.Linear(2 * FEATURES, 2)
        self.place = nn.Linear(2 * FEATURES, len(PLACES))
        self.time = nn.Linear(2 * FEATURES, len(TIMES))

    @property
    def device(self) -> torch.device:
        return self.things.weight.device

    def features(self, pictures: Tensor) -> Tensor:
        """Mean and largest activations (N, 2 * FEATURES) of the last layer."""
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="area")
        x = self.body((pictures - 0.5).to(memory_format=torch.channels_last) * 4)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of things (N, 40), count (N, 2), place (N, 8) and time (N, 4)."""
        x = self.features(pictures)
        return self.things(x), self.count(x), self.place(x), self.time(x)

    @torch.inference_mode()
    def answers(self, pictures: Tensor) -> Labels:
        """What pictures show."""
        things, count, place, when = (x.float() for x in self(pictures))
        return Labels(things.sigmoid(), count.argmax(1) + 1, place.argmax(1), when.argmax(1))


def loss_of(logits: tuple[Tensor, ...], truth: Labels) -> Tensor:
    things, count, place, when = (x.float() for x in logits)
    return (
        10 * F.binary_cross_entropy_with_logits(things, truth.things)
        + F.cross_entropy(count, truth.count - 1)
        + 0.5 * F.cross_entropy(place, truth.place)
        + 0.5 * F.cross_entropy(when, truth.time)
    )


def jittered(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 pictures (N, 3, S, S) in [0, 1], mirrored, shifted and a little blurred at random."""
    x, rng = pictures.float() / 255, random.Random(generator.initial_seed())
    if rng.random() < 0.5:
        x = x.flip(3)
    dy, dx = rng.randint(-6, 6), rng.randint(-6, 6)
    x = F.pad(x, (6, 6, 6, 6), mode="replicate")[
        ..., 6 + dy : 6 + dy + SIDE, 6 + dx : 6 + dx + SIDE
    ]
    if rng.random() < 0.3:
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x + 0.02 * torch.randn(x.shape, generator=generator, device=x.device)


def melted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, S, S) with the colours of what they show and none of its shapes.

    Every place takes its colour from about a dozen pixels beside it, in smooth waves that are as
    short, as a model paints that has not learned more; a half also in squares.
    """
    count, side = len(pictures), pictures.shape[-1]
    drawn = {"generator": generator, "device": pictures.device}
    waves = torch.randn(count, 2, side // WAVE, side // WAVE, **drawn)
    moved = F.interpolate(waves, (side, side), mode="bicubic")
    squares = F.interpolate(waves, (side, side), mode="nearest")
    smooth = torch.rand(count, 1, 1, 1, **drawn) < 0.5
    shift = torch.where(smooth, moved, squares).permute(0, 2, 3, 1) * (2 * WAVE / side)
    rows = torch.linspace(-1, 1, side, device=pictures.device)
    place = torch.stack(torch.meshgrid(rows, rows, indexing="xy"), -1)
    return F.grid_sample(pictures, place + shift, padding_mode="reflection", align_corners=True)


def lesson(pictures: Tensor, truth: Labels, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """What is trained on of uint8 pictures (N, 3, S, S): the first of them melted, without things.

    Colours alone must not do: a student's first pictures have them long before they have shapes.
    """
    x, bare = jittered(pictures, generator), round(MELTED * len(pictures))
    x[:bare] = melted(x[:bare], generator)
    things, count = truth.things.clone(), truth.count.clone()
    things[:bare], count[:bare] = 0, UNCOUNTED
    return x, Labels(things, count, truth.place, truth.time)


def held_back(
    assets: Path, count: int, seed: int = 0, workers: int = 1
) -> tuple[Tensor, list[Scene]]:
    """Real pictures uint8 (N, 3, 256, 256) that nothing was trained on, and their scenes."""
    pictures = paint_numbered(assets, HELD_BACK, count, seed, workers)
    return pictures, [scene_of(seed, HELD_BACK + i) for i in range(count)]


def accuracy(model: SceneClassifier, pictures: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of uint8 pictures (N, 3, H, W) answered right, by part and in everything."""
    right: dict[str, list[Tensor]] = {}
    for i in range(0, len(scenes), 64):
        answers = model.answers(pictures[i : i + 64].to(model.device).float() / 255).to("cpu")
        for part, values in answers.right(Labels.of(scenes[i : i + 64])).items():
            right.setdefault(part, []).append(values)
    return {part: round(float(torch.cat(v).float().mean()), 4) for part, v in right.items()}


def load_classifier(path: Path, device: torch.device | str = "cpu") -> SceneClassifier:
    model = SceneClassifier()
    model.load_state_dict({k: v.float() for k, v in read_tensors(path)[0].items()})
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def train(
    assets: Path,
    out: Path,
    minutes: float,
    lr: float = 2e-3,
    batch: int = 48,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> None:
    """Trains on the painted shards for `minutes` of wall time in all; resumes where it stopped.

    Raises:
        FileNotFoundError: if nothing is painted yet.
    """
    shards = 0
    while picture_path(out, shards).is_file():
        shards += 1
    if not shards:
        raise FileNotFoundError(f"There are no painted pictures in {out}: make train-classifier.")
    device = torch.device(device)
    small = torch.cat([shrunk(load_pictures(out, i).to(device), SIDE) for i in range(shards)])
    truth = Labels.of([scene_of(seed, i) for i in range(SHARD * shards)]).to(device)
    test, test_scenes = held_back(assets, 1000, seed, workers)
    torch.manual_seed(seed)
    model = SceneClassifier().to(device, memory_format=torch.channels_last)
    average = Average(model, 0.998)
    optimiser = Optimisers(model, lr=lr, weight_decay=0.01)
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, spent = resume_training(out / CHECKPOINT, parts)
    start, last_save = time.monotonic() - spent, time.monotonic()
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
            cosine = 0.5 * (1 + math.cos(math.pi * elapsed / (60 * minutes)))
            optimiser.set_lr(min(1.0, (step + 1) / 100) * cosine + 0.005)
            chosen = torch.randint(len(small), (batch,), generator=generator, device=device)
            pictures, wanted = lesson(small[chosen], truth.of_some(chosen), generator)
            with fast_autocast(device):
                logits = model(pictures)
            loss = loss_of(logits, wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            average.update_parameters(model)
            step += 1
            if step % 100 == 0:
                log.info("step %d %.1f min loss %.4f", step, elapsed / 60, loss.item())
            if time.monotonic() - last_save > 240:
                save_training(out / CHECKPOINT, parts, step, elapsed)
                last_save = time.monotonic()
                log.info("%s", accuracy(average.module, test[:300], test_scenes[:300]))
    save_training(out / CHECKPOINT, parts, step, time.monotonic() - start)
    state = {k: v.half() for k, v in average.module.state_dict().items()}
    save_tensors(out / CLASSIFIER_FILE, state)
    log.info("held back: %s", accuracy(average.module, test, test_scenes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="that trains, such as cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that paint")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(a.assets, a.out, a.minutes, a.lr, a.batch, a.seed, a.device, a.workers)


if __name__ == "__main__":
    main()
