"""Training pictures painted once and kept as shards, since painting costs more than reading."""

import argparse
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import written_whole
from ..scenes.sprites import FluentSprites
from ..scenes.world import World

log = logging.getLogger(__name__)
SHARD = 1000
CHUNK = 50  # pictures that a process paints at a time
HELD_BACK = 10_000_000  # pictures from this number on are for measuring, never for training
_world: World  # of a painting process


def picture_path(folder: Path, shard: int) -> Path:
    return folder / f"pictures_{shard:03d}.npy"


def _begin(assets: Path, seed: int) -> None:
    global _world
    _world = World(FluentSprites(assets), seed)


def _paint(numbers: range) -> np.ndarray:
    """Pictures by their numbers, uint8 (N, 256, 256, 3)."""
    return np.stack([_world.picture(number).pixels for number in numbers])


def _chunks(numbers: range) -> list[range]:
    return [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]


def _paint_scene(scene_and_number: tuple) -> np.ndarray:
    """The picture of a scene, uint8 (256, 256, 3)."""
    return _world.picture_of(*scene_and_number).pixels


@contextmanager
def painters(assets: Path, seed: int, workers: int) -> Iterator[Callable[..., Iterator]]:
    """A `map` whose function paints with the world of `seed`, in so many processes."""
    if workers == 1:
        _begin(assets, seed)
        yield map
        return
    # Spawned: a forked process could not use the graphics card that its parent uses.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (assets, seed)) as pool:
        yield partial(pool.map, chunksize=1)


def paint_numbered(assets: Path, first: int, count: int, seed: int = 0, workers: int = 1) -> Tensor:
    """Pictures first..first + count - 1 as uint8 (N, 3, 256, 256)."""
    with painters(assets, seed, workers) as painted:
        chunks = list(painted(_paint, _chunks(range(first, first + count))))
    return torch.from_numpy(np.concatenate(chunks)).permute(0, 3, 1, 2).contiguous()


def paint_scenes(assets: Path, scenes: Iterable, first: int, workers: int = 1) -> Tensor:
    """Pictures of given scenes as uint8 (N, 3, 256, 256); that of scene k has number first + k."""
    numbered = [(scene, first + k) for k, scene in enumerate(scenes)]
    with painters(assets, 0, workers) as painted:
        pictures = np.stack(list(painted(_paint_scene, numbered)))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def paint_shards(
    assets: Path, folder: Path, count: int, seed: int = 0, workers: int = 1
) -> Iterator[int]:
    """Paints pictures 0..count - 1 into shards of 1,000; gives each one's number once it is whole.

    Those that are there are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // SHARD))
    missing = [shard for shard in shards if not picture_path(folder, shard).is_file()]
    parts = {shard: _chunks(range(SHARD * shard, SHARD * (shard + 1))) for shard in missing}
    with painters(assets, seed, workers) as painted:
        chunks = painted(_paint, [part for shard in missing for part in parts[shard]])
        for shard in shards:
            if shard in missing:
                pictures = np.concatenate(list(islice(chunks, len(parts[shard]))))
                with written_whole(picture_path(folder, shard)) as file:
                    np.save(file, pictures)
                log.info("painted %s", picture_path(folder, shard))
            yield shard


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


def options(parser: argparse.ArgumentParser) -> None:
    """What painting and encoding are told on the command line."""
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that paint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for _ in paint_shards(a.assets, a.out, a.count, a.seed, a.workers):
        pass


if __name__ == "__main__":
    main()
