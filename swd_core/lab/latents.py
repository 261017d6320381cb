"""Latents of the training pictures at every size, encoded once, in shards; more may follow."""

import argparse
import logging
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..distill.precision import fast_autocast
from ..scenes.autoencoder import FACTOR, Autoencoder
from ..scenes.captions import caption
from ..scenes.catalogue import scene_of
from ..scenes.student import VAE_FILE
from ..scenes.text import PAD, SceneTokenizer, vocabulary
from ..tensor_files import read_tensors, save_tensors
from .pictures import SHARD, load_pictures, options, paint_shards, shrunk

log = logging.getLogger(__name__)
LATENT_SIDES = (16, 20, 24, 32)
CAPTIONS = 8  # drawn for each picture


def latent_path(folder: Path, side: int, shard: int) -> Path:
    return folder / f"latents_{side}_{shard:03d}.safetensors"


def prompt_path(folder: Path, shard: int) -> Path:
    return folder / f"prompts_{shard:03d}.safetensors"


def load_autoencoder(path: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a weight file, in float32."""
    state = {k: v.float() for k, v in read_tensors(path)[0].items()}
    return Autoencoder.from_state_dict(state).to(device)


@torch.inference_mode()
def encoded(images: Tensor, vae: Autoencoder, side: int) -> Tensor:
    """uint8 pictures (N, 3, H, W), downscaled by area, as float16 latents (N, 16, side, side).

    They are encoded, and stay, on the device of the autoencoder.
    """
    parts, device = [], next(vae.parameters()).device
    for batch in images.split(16 if device.type == "cpu" else 250):
        small = shrunk(batch.to(device), side * FACTOR)
        pixels = (small.float() / 255).to(memory_format=torch.channels_last)
        with fast_autocast(device):
            parts.append(vae.encode(pixels).half())
    return torch.cat(parts).contiguous()


def drawn_prompts(shard: int, seed: int) -> Tensor:
    """Token ids (1000, CAPTIONS, T), int16, of captions of a shard's pictures."""
    tokenizer, rng = SceneTokenizer(vocabulary()), random.Random(f"{seed} {shard}")
    scenes = [scene_of(seed, SHARD * shard + i) for i in range(SHARD)]
    rows = [[tokenizer.encode(caption(scene, rng))[0] for _ in range(CAPTIONS)] for scene in scenes]
    return torch.tensor(rows, dtype=torch.int16)


def encode_shards(
    assets: Path,
    folder: Path,
    count: int,
    seed: int = 0,
    workers: int = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Paints and encodes pictures 0..count - 1 and draws their captions, shard by shard.

    Files that are there are left alone, and a training can begin with the first shard.
    """
    vae = load_autoencoder(folder / VAE_FILE, device)
    for shard in paint_shards(assets, folder, count, seed, workers):
        if not prompt_path(folder, shard).is_file():
            save_tensors(prompt_path(folder, shard), {"prompts": drawn_prompts(shard, seed)})
        paths = {side: latent_path(folder, side, shard) for side in LATENT_SIDES}
        missing = [side for side, path in paths.items() if not path.is_file()]
        images = load_pictures(folder, shard) if missing else None
        for side in missing:
            latents = encoded(images, vae, side).cpu()
            save_tensors(paths[side], {"latents": latents})
            log.info("encoded %s, standard deviation %.3f", paths[side], latents.float().std())


class LatentShards:
    """The shards in a folder, those that appear while it is used included.

    Args:
        device: where the latents are kept. count: how many pictures are taken at most.

    Attributes:
        latents: float16 (N, 16, side, side) by side. prompts: token ids (N, CAPTIONS, T).
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        device: torch.device | str = "cpu",
        count: int | None = None,
    ):
        self.folder, self.seed, self.device = folder, seed, torch.device(device)
        self.most = count
        self.prompts: Tensor | None = None
        self.latents: dict[int, Tensor] = {}
        self.refresh()
        if LATENT_SIDES[0] not in self.latents:
            raise FileNotFoundError(
                f"{folder} has no latents: run `python -m swd_core.lab.latents` first."
            )

    def refresh(self) -> None:
        """Takes in shards that have been written since."""
        before = self.counts
        most = math.inf if self.most is None else self.most
        self.prompts = self._grown(self.prompts, "prompts", partial(prompt_path, self.folder), most)
        for side in LATENT_SIDES:
            found = self._grown(
                self.latents.get(side),
                "latents",
                partial(latent_path, self.folder, side),
                0 if self.prompts is None else len(self.prompts),
            )
            if found is not None:
                self.latents[side] = found
        if self.counts != before:
            log.info("pictures by side: %s", self.counts)

    @property
    def counts(self) -> dict[int, int]:
        """How many pictures there are, by side."""
        return {side: len(latents) for side, latents in self.latents.items()}

    def _grown(
        self, tensor: Tensor | None, name: str, path: Callable[[int], Path], most: float
    ) -> Tensor | None:
        """A tensor with the rows of the shards that follow those it has, until it has `most`."""
        parts = [] if tensor is None else [tensor]
        have = sum(map(len, parts))
        while have < most and (file := path(have // SHARD)).is_file():
            parts.append(read_tensors(file)[0][name].to(self.device))
            have += len(parts[-1])
        if len(parts) < 2:
            return parts[0] if parts else None
        return torch.cat(parts)

    def weights(self, smallest: float) -> list[float]:
        """How often to train each size: `smallest` for the first one, 0 where there is nothing."""
        share = (1 - smallest) / 4
        wanted = (smallest, share, share, 2 * share)
        return [w * (side in self.latents) for side, w in zip(LATENT_SIDES, wanted, strict=True)]

    def batch(
        self, count: int, side: int, generator: torch.Generator, without: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Random latents (count, 16, side, side) in float32, and the token ids (count, T) of one of
        each one's captions.

        Args:
            generator: of the device that the latents are on.
            without: share of the captions that are empty instead.
        """
        device = self.device
        most = len(self.latents[side])
        chosen = torch.randint(most, (count,), generator=generator, device=device)
        which = torch.randint(CAPTIONS, (count,), generator=generator, device=device)
        empty = torch.rand(count, generator=generator, device=device) < without
        ids = self.prompts[chosen, which].long().masked_fill(empty[:, None], PAD)
        return self.latents[side][chosen].float(), ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    parser.add_argument("--device", default="cpu", help="that encodes, such as cuda")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    encode_shards(a.assets, a.out, a.count, a.seed, a.workers, a.device)


if __name__ == "__main__":
    main()
