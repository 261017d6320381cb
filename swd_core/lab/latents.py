"""Latents of the training pictures at every size, encoded once, in shards; more may follow."""

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..distill.precision import fast_autocast
from ..scenes.autoencoder import FACTOR, Autoencoder
from ..scenes.catalogue import Scene, scene_of
from ..scenes.student import VAE_FILE
from ..tensor_files import read_tensors, save_tensors
from .pictures import SHARD, load_pictures, paint_shards, shrunk

log = logging.getLogger(__name__)
LATENT_SIDES = (16, 20, 24, 32)


def latent_path(folder: Path, side: int, shard: int) -> Path:
    return folder / f"latents_{side}_{shard:03d}.safetensors"


def load_autoencoder(path: Path) -> Autoencoder:
    """The autoencoder of a weight file, in float32."""
    return Autoencoder.from_state_dict({k: v.float() for k, v in read_tensors(path)[0].items()})


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
    """Paints and encodes pictures 0..count - 1, the smallest size of all first.

    Shards that are there are left alone, so a training can begin with the first one.
    """
    vae = load_autoencoder(folder / VAE_FILE)
    for side in LATENT_SIDES:
        for shard in range(-(-count // SHARD)):
            path = latent_path(folder, side, shard)
            if path.is_file():
                continue
            paint_shards(assets, folder, (shard + 1) * SHARD, seed)
            latents = encoded(load_pictures(folder, shard), vae, side)
            save_tensors(path, {"latents": latents})
            log.info("encoded %s, standard deviation %.3f", path, latents.float().std())


class LatentShards:
    """The shards in a folder, those that appear while it is used included.

    Attributes:
        latents: shards, float16 (1000, 16, side, side), by side. scenes: what each picture shows.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.latents: dict[int, list[Tensor]] = {side: [] for side in LATENT_SIDES}
        self.scenes: list[Scene] = []
        self.refresh()
        if not self.latents[LATENT_SIDES[0]]:
            raise FileNotFoundError(
                f"{folder} has no latents: run `python -m swd_core.lab.latents` first."
            )

    def refresh(self) -> None:
        """Takes in shards that have been written since."""
        for side, shards in self.latents.items():
            while (path := latent_path(self.folder, side, len(shards))).is_file():
                shards.append(read_tensors(path)[0]["latents"])
        for number in range(len(self.scenes), SHARD * max(map(len, self.latents.values()))):
            self.scenes.append(scene_of(self.seed, number))
        log.info("pictures by side: %s", {s: SHARD * len(x) for s, x in self.latents.items()})

    def weights(self, smallest: float) -> list[float]:
        """How often to train each size: `smallest` for the first one, 0 where there is nothing."""
        share = (1 - smallest) / 4
        wanted = (smallest, share, share, 2 * share)
        return [w * bool(self.latents[side]) for side, w in zip(LATENT_SIDES, wanted, strict=True)]

    def batch(
        self, count: int, side: int, generator: torch.Generator
    ) -> tuple[Tensor, list[Scene]]:
        """Random latents (count, 16, side, side) in float32 and what they show."""
        shards = self.latents[side]
        chosen = torch.randint(SHARD * len(shards), (count,), generator=generator).tolist()
        x0 = torch.stack([shards[i // SHARD][i % SHARD] for i in chosen]).float()
        return x0, [self.scenes[i] for i in chosen]


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
