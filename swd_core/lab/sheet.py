"""A sheet of the teacher's pictures for a fixed list of prompts, to look at while it trains."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..distill.scalewise import shifted
from ..pictures import in_bytes
from ..scenes.autoencoder import FACTOR, LATENT_CHANNELS, Autoencoder
from ..scenes.student import VAE_FILE
from ..scenes.text import SceneTokenizer, encode_batch, vocabulary
from .latents import load_autoencoder
from .train_teacher import CHECKPOINT, Teacher, load_teacher

log = logging.getLogger(__name__)
PROMPTS = (
    "a fox in a forest at sunset",
    "two penguins in the snow at night",
    "robot and cat on a beach by day",
    "a rocket in the desert at night",
    "two rabbits in a meadow by day",
    "a dragon in the mountains at sunset",
    "an owl in a forest at night",
    "a castle by a lake at dawn",
    "a bus in a town at night",
    "panda and tiger in a meadow at sunset",
    "a balloon over the mountains at dawn",
    "two ducks by a lake by day",
    "a ghost in a town at dawn",
    "an elephant in the desert by day",
    "ufo and cow in a meadow at night",
    "a snowman on a beach at sunset",
)


@torch.inference_mode()
def sample(
    teacher: Teacher,
    ids: Tensor,
    side: int,
    steps: int = 12,
    guidance: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Latents (B, 16, side, side) of token ids (B, T): Euler steps with classifier-free guidance.

    The steps are shifted towards high noise as in training (Esser et al., section 5.3.2).
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(ids), LATENT_CHANNELS, side, side, generator=generator)
    shift = 3.0 * side / 32
    u = torch.linspace(1, 0, steps + 1)
    sigmas = shifted(u, shift)
    both = torch.cat([ids, torch.zeros_like(ids)])
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level = sigma.expand(len(both))
        wanted, free = teacher(torch.cat([x, x]), level, both).chunk(2)
        x = x + (following - sigma) * (free + guidance * (wanted - free))
    return x


@torch.inference_mode()
def decoded(vae: Autoencoder, latents: Tensor) -> np.ndarray:
    """Latents (B, 16, H, W) as uint8 pictures (B, 8H, 8W, 3)."""
    images = torch.cat([vae.decode(z[None]) for z in latents])
    return in_bytes(images).permute(0, 2, 3, 1).numpy()


def tiled(pictures: np.ndarray, columns: int) -> Image.Image:
    """uint8 pictures (N, H, W, 3) side by side in rows."""
    rows = [np.concatenate(list(row), 1) for row in np.split(pictures, len(pictures) // columns)]
    return Image.fromarray(np.concatenate(rows, 0))


def sheet(out: Path, prompts: Sequence[str], side: int, seed: int, steps: int) -> Image.Image:
    teacher, vae = load_teacher(out), load_autoencoder(out / VAE_FILE)
    ids, _ = encode_batch(SceneTokenizer(vocabulary()), prompts)
    latents = sample(teacher, ids, side, steps=steps, seed=seed)
    return tiled(decoded(vae, latents), columns=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", action="append", help="instead of the fixed list; 8 pictures")
    parser.add_argument(
        "--every", type=float, help="minutes between sheets, for as long as it runs"
    )
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prompts = [p for p in a.prompt for _ in range(8)] if a.prompt else PROMPTS
    folder = a.out / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        if (a.out / CHECKPOINT).is_file():
            path = folder / time.strftime(f"teacher_{a.size}_%m%d_%H%M.png")
            sheet(a.out, prompts, a.size // FACTOR, a.seed, a.steps).save(path)
            log.info("%s", path)
        if a.every is None:
            return
        time.sleep(60 * a.every)


if __name__ == "__main__":
    main()
