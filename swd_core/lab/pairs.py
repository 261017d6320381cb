"""Noise and what the teacher makes of it at the smallest size: what the first step learns from.

The first step makes a picture of noise alone. A pair tells it which one, so that other noise means
another layout from the start; distribution matching then sharpens it (Yin et al., arXiv 2311.18828,
section 4.2, the regression loss).
"""

import argparse
import logging
import random
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..distill.objective import Loss, Seen
from ..distill.precision import fast_autocast
from ..noise import SeededNoise
from ..scenes.captions import caption
from ..scenes.catalogue import draw_training_scene
from ..scenes.student import SceneStudent
from ..tensor_files import read_tensors, save_tensors
from .latents import LATENT_SIDES
from .ways import generate, teacher_way

log = logging.getLogger(__name__)
SIDE = LATENT_SIDES[0]
SHARD = 1024
STEPS, GUIDANCE = 12, 3.0


def pairs_path(folder: Path, shard: int) -> Path:
    return folder / f"pairs_{shard:03d}.safetensors"


def drawn_captions(count: int, seed: int) -> list[str]:
    """Captions of scenes as they are trained on."""
    scenes, words = np.random.default_rng(seed), random.Random(seed)
    return [caption(draw_training_scene(scenes), words) for _ in range(count)]


def make_pairs(
    run: Path, folder: Path, pictures: int, device: torch.device | str = "cpu", batch: int = 64
) -> None:
    """Has the teacher in `run` draw at least that many pictures, in files of SHARD.

    A shard's number is the seed of its noise and of its captions; files that are there are kept.
    """
    model = SceneStudent.load(run, device, lora=None)
    way = teacher_way(STEPS, GUIDANCE, SIDE)
    for shard in range(-(-pictures // SHARD)):
        if pairs_path(folder, shard).is_file():
            continue
        prompts, parts = drawn_captions(SHARD, shard), []
        for i in range(0, SHARD, batch):
            text = model.encode(prompts[i : i + batch])
            with fast_autocast(model.device):
                drawn = generate(model, way, text, shard, range(i, i + len(text.context)))
            parts.append(drawn.half().cpu())
        ids = torch.tensor([model.tokenizer.encode(prompt)[0] for prompt in prompts])
        tensors = {"latents": torch.cat(parts), "prompts": ids.to(torch.int16)}
        save_tensors(pairs_path(folder, shard), tensors)
        log.info("%d pairs", SHARD * (shard + 1))


class Pairs:
    """The pairs in a folder: latents (N, 16, side, side) in float16 and token ids (N, T).

    Raises:
        FileNotFoundError: if there are none.
    """

    def __init__(self, folder: Path):
        shards = [
            read_tensors(path)[0]
            for path in takewhile(Path.is_file, (pairs_path(folder, i) for i in count()))
        ]
        if not shards:
            raise FileNotFoundError(
                f"{folder} has no pairs: run `python -m swd_core.lab.pairs` first."
            )
        self.latents = torch.cat([shard["latents"] for shard in shards])
        self.prompts = torch.cat([shard["prompts"] for shard in shards]).long()

    def noise(self, rows: list[int]) -> Tensor:
        """What the teacher began with, float32 (B, 16, side, side)."""
        shape = (1, *self.latents.shape[1:])
        return torch.cat([SeededNoise(i // SHARD, (i % SHARD,))(0, shape) for i in rows])


def paired(seen: Seen) -> Tensor:
    """Squared distance of the first step's prediction to the teacher's picture of its noise."""
    if seen.x0.shape[-1] != SIDE:
        return 0 * seen.x0.float().sum()
    return (seen.x0.float() - seen.real.float()).square().mean()


def pair_loss(weight: float) -> dict[str, Loss]:
    """What a trainer takes as `extra`."""
    return {"pairs": Loss(paired, weight=weight)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/scenes"), help="the teacher's")
    parser.add_argument("--out", type=Path, help="folder of the pairs; the teacher's by default")
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="that draws, such as cuda")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_pairs(a.run, a.out or a.run, a.pictures, a.device, a.batch)


if __name__ == "__main__":
    main()
