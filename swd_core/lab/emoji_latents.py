"""Emoji encoded once at every size of the schedule, and the prompts that go with them."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..emoji.catalogue import catalogue
from ..emoji.text import MAX_WORDS, PAD, EmojiTokenizer
from ..scenes.autoencoder import FACTOR, Autoencoder
from ..tensor_files import read_tensors, save_tensors
from .emoji_pictures import load_images

log = logging.getLogger(__name__)
LATENT_SIDES = (16, 20, 24, 32)


@torch.inference_mode()
def encode_latents(
    images: Tensor, vae: Autoencoder, sides: Sequence[int] = LATENT_SIDES
) -> dict[int, Tensor]:
    """Downscales pictures (N, 3, H, W), uint8, in pixel space (area) and encodes them.

    Returns:
        latents (N, 16, side, side) by side.
    """
    encoded = {}
    for side in sides:
        size = side * FACTOR
        parts = []
        for batch in images.split(8):
            small = F.interpolate(batch.float() / 255, size=(size, size), mode="area")
            parts.append(vae.encode(small.to(memory_format=torch.channels_last)))
        encoded[side] = torch.cat(parts)
        log.info("latents %d: mean %.3f std %.3f", side, encoded[side].mean(), encoded[side].std())
    return encoded


def prepare_latents(assets: Path, vae: Autoencoder, path: Path) -> None:
    """Encodes every emoji at every size and writes them to `path`, in float16."""
    encoded = encode_latents(load_images(assets), vae)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {str(side): x.half() for side, x in encoded.items()})


def load_latents(path: Path) -> dict[int, Tensor]:
    """Latents (N, 16, side, side) in float32 by side."""
    return {int(side): value.float() for side, value in read_tensors(path)[0].items()}


@dataclass(frozen=True)
class PromptSampler:
    """Draws how a user might ask for an emoji: its name, name and keywords, or keywords."""

    tokenizer: EmojiTokenizer

    def ids(self, emoji: int, rng: random.Random) -> list[int]:
        entry = catalogue()[emoji]
        keywords = entry["keywords"]
        kind = rng.random()
        if kind < 0.6 or not keywords:
            words = [entry["name"]]
        elif kind < 0.8:
            words = [entry["name"], *rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))]
        else:
            words = rng.sample(keywords, min(len(keywords), rng.randint(2, 4)))
        if kind > 0.6:
            rng.shuffle(words)
        return self.tokenizer.encode(" ".join(words))[0]

    def batch(self, emoji: Tensor, rng: random.Random, dropout: float) -> Tensor:
        """Token ids (B, MAX_WORDS); a share `dropout` of the prompts is empty."""
        empty = [PAD] * MAX_WORDS
        rows = [empty if rng.random() < dropout else self.ids(int(i), rng) for i in emoji]
        return torch.tensor(rows)
