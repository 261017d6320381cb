"""Latents of the training pictures at every size, encoded once, in shards; more may follow."""

import argparse
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..distill.precision import fast_autocast
from ..emoji.autoencoder import FACTOR, Autoencoder
from ..scenes.catalogue import Scene, scene_of
from .pictures import SHARD, load_pictures, paint_shards, shrunk
from .train_autoencoder import VAE_FILE

log = logging.getLogger(__name__)
LATENT_SIDES = (16, 20, 24, 32)


def latent_path(folder: Path, shard: int) -> Path:
    return folder / f"latents_{shard:03d}.safetensors"


def load_autoencoder(path: Path) -> Autoencoder:
    """The autoencoder of a weight file, in float32."""
    return Autoencoder.from_state_dict({k: v.float() for k, v in load_file(path).items()})


@torch.inference_mode()
def encoded(images: Tensor, vae: Autoencoder, side: int) -> Tensor:
    """uint8 pictures (N, 3, H, W), downscaled by area, as float16 latents (N, 16, side, side)."""
    parts = []
    for batch in shrunk(images, side * FACTOR).split(16):
        pixels = (batch.float() / 255).to(memory_format=torch.channels_last)
        with fast_autocast():
            parts.append(vae.encode(pixels).half())
    return torch.cat(parts).contiguous()


def encode_shards(assets: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Paints and encodes pictures 0..count - 1; shards that are there are left alone."""
    vae = load_autoencoder(folder / VAE_FILE)
    for shard in range(-(-count // SHARD)):
        path = latent_path(folder, shard)
        if path.is_file():
            continue
        paint_shards(assets, folder, (shard + 1) * SHARD, seed)
        images = load_pictures(folder, shard)
        latents = {side: encoded(images, vae, side) for side in LATENT_SIDES}
        aside = path.with_suffix(".part")
        save_file({str(side): x for side, x in latents.items()}, aside)
        os.replace(aside, path)
        stats = {s: (round(float(x.float().std()), 3)) for s, x in latents.items()}
        log.info("encoded %s, standard deviations %s", path, stats)


class LatentShards:
    """The shards in a folder, those that appear while it is used included.

    Attributes:
        latents: float16 (N, 16, side, side) by side. scenes: what each picture shows.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.latents: dict[int, list[Tensor]] = {side: [] for side in LATENT_SIDES}
        self.scenes: list[Scene] = []
        self.refresh()
        if not self.scenes:
            raise FileNotFoundError(
                f"{folder} has no latents: run `python -m swd_core.lab.latents` first."
            )

    def refresh(self) -> None:
        """Takes in shards that have been written since."""
        while (path := latent_path(self.folder, len(self.scenes) // SHARD)).is_file():
            for side, value in load_file(path).items():
                self.latents[int(side)].append(value)
            first = len(self.scenes)
            self.scenes += [scene_of(self.seed, first + i) for i in range(SHARD)]
            log.info("training on %d pictures", len(self.scenes))

    def batch(self, chosen: Tensor, side: int) -> Tensor:
        """Latents (B, 16, side, side) in float32 of the pictures with these numbers (B,)."""
        parts = self.latents[side]
        return torch.stack([parts[i // SHARD][i % SHARD] for i in chosen.tolist()]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    encode_shards(a.assets, a.out, a.count, a.seed)


if __name__ == "__main__":
    main()
