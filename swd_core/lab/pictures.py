"""Training pictures painted once and kept as shards, since painting costs more than reading."""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import written_whole
from ..scenes.sprites import FluentSprites
from ..scenes.world import SIDE, World

log = logging.getLogger(__name__)
SHARD = 1000
HELD_BACK = 10_000_000  # pictures from this number on are for measuring, never for training


def picture_path(folder: Path, shard: int) -> Path:
    return folder / f"pictures_{shard:03d}.npy"


def paint_shards(assets: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Paints pictures 0..count - 1 into shards of 1,000; those that are there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(FluentSprites(assets), seed)
    for shard in range(-(-count // SHARD)):
        path = picture_path(folder, shard)
        if path.is_file():
            continue
        pictures = np.empty((SHARD, SIDE, SIDE, 3), np.uint8)
        for i in range(SHARD):
            pictures[i] = world.picture(shard * SHARD + i).pixels
        with written_whole(path) as file:
            np.save(file, pictures)
        log.info("painted %s", path)


def load_pictures(folder: Path, shard: int) -> Tensor:
    """A shard as a uint8 tensor (1000, 3, 256, 256).

    Raises:
        FileNotFoundError: if it has not been painted.
    """
    path = picture_path(folder, shard)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: paint it with `python -m swd_core.lab.pictures`."
        )
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2).contiguous()  # BHWC -> BCHW


def shrunk(images: Tensor, side: int) -> Tensor:
    """uint8 pictures (N, 3, S, S) downscaled by area to (N, 3, side, side)."""
    if side == images.shape[-1]:
        return images
    parts = images.split(64)
    return torch.cat(
        [F.interpolate(p.float(), (side, side), mode="area").round().byte() for p in parts]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paint_shards(a.assets, a.out, a.count, a.seed)


if __name__ == "__main__":
    main()
