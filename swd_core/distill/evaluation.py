"""The student as it is sampled: pictures of its averaged weights, and their distance to data."""

from collections.abc import Sequence
from textwrap import shorten

import torch
from PIL import Image
from torch import Tensor

from ..contact import contact_sheet
from ..noise import SeededNoise, draw_noise
from ..pictures import picture_of
from ..spectrum import top_octave_energy
from .adapters import adapter
from .interface import Shown
from .losses import mmd_loss
from .trainer import Trainer

SEED = 0
LEVELS = 3
LARGEST = 1024  # the longer side of a picture in the grid, in pixels
LABEL = 40  # letters of a caption


@torch.no_grad()
def student_latents(trainer: Trainer, shown: Shown) -> Tensor:
    """The averaged student's x0 (B, C, H, W) at the finished size.

    The noise is always the same and drawn apart: the training's random state is left alone.
    """
    noise = SeededNoise(SEED, tuple(range(len(shown.real))))
    with trainer.averaged(), adapter(trainer.model.module, "student"), trainer.autocast():
        return trainer.sample(shown.steps, shown.text, shown.real, noise).float()


@torch.no_grad()
def measures(trainer: Trainer, x0: Tensor, shown: Shown) -> dict[str, float]:
    """How the student's latents differ from the real ones of the same captions.

    Returns:
        mmd: the patch loss between them by the teacher's features, its mean over fixed noise
        levels. squared: their mean squared distance. top_octave: energy of the finest details
        relative to the real ones, 1 where it is right and less where the pictures are blurred.
        Nothing where there are prompts alone.
    """
    if not shown.pictures:
        return {}
    c, count = trainer.config, len(x0)
    noise = draw_noise(SEED, range(count), len(shown.steps), x0.shape[1:]).to(x0.device)
    low, high = c.mmd_sigma
    distances = []
    for k in range(1, LEVELS + 1):
        sigma = trainer.objective.level(torch.full((count,), low + (high - low) * k / LEVELS))
        level = sigma.view(-1, 1, 1, 1)
        tokens = []
        with adapter(trainer.model.module, None), trainer.autocast():
            for latents in (shown.real, x0):
                x_t = trainer.process.add_noise(latents, noise, level)
                tokens.append(trainer.model.features(x_t, sigma, shown.text))
        distances.append(float(mmd_loss(*tokens, c.kernel, c.mmd_per_batch)))
    found = {
        "mmd": sum(distances) / LEVELS,
        "squared": float((x0 - shown.real).square().mean()),
        "top_octave": top_octave_energy(x0) / max(top_octave_energy(shown.real), 1e-12),
    }
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def grid(pictures: Sequence[Tensor], captions: Sequence[str]) -> Image.Image:
    """Pictures (H, W, 3) in [0, 1] on one sheet, each over its number and caption."""
    images = [picture_of(pixels) for pixels in pictures]
    labels = [shorten(caption, LABEL, placeholder=" …") for caption in captions]  # one line each
    return contact_sheet(images, labels, most=LARGEST).picture
