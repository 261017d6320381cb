"""Six pictures with captions, prepared at three sizes, and what is in the files."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from swd_core.distill.prepare import prepare
from swd_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((0.5, 0.75, 1.0), (1.0, 0.8, 0.6))
SIDE = 128


def picture(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


SIZES = [(128, 128), (200, 200), (256, 128), (130, 260), (128, 128), (300, 200)]


def fill(folder, sizes=SIZES) -> None:
    folder.mkdir(exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        picture(i, width, height).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(["a fox", "happy dog", "rocket"][i % 3])


def run(source, folder, encoder, **options):
    return prepare(source, folder, encoder, SCHEDULE, SIDE, **{"shard_size": 2, **options})


def rows(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Every picture's tensors by its name."""
    found = {}
    for path in sorted(folder.glob("*x*-*.safetensors")):
        with safe_open(path, "pt") as file:
            names = json.loads(file.metadata()["names"])
        tensors = load_file(path)
        for i, name in enumerate(names):
            found[name] = {k: v[i] for k, v in tensors.items()}
    return found
