"""Measures how faithful drafts are: does the finished image show what its draft promised?"""

import argparse
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..emoji.catalogue import catalogue
from ..emoji.student import EmojiStudent
from ..files import write_text
from ..noise import SeededNoise
from ..process import FlowMatching
from ..resample import upscale
from ..sampling import ScaleState, sample_scalewise
from .emoji_evaluate import nearest
from .emoji_latents import encode_latents
from .emoji_pictures import load_images
from .ways import STUDENTS

log = logging.getLogger(__name__)
SIDES, SIGMAS = STUDENTS["scalewise4"]
SEED = 0


@dataclass(frozen=True)
class Likeness:
    """Of drafts and their finished images, one number per image.

    psnr: dB. ssim: -1..1. same: whether both are nearest to the same training picture; None without
    training pictures.
    """

    psnr: Tensor
    ssim: Tensor
    same: Tensor | None


def prompts(count: int) -> list[str]:
    """The first `count` names of a fixed shuffle of all that the student knows."""
    names = [entry["name"] for entry in catalogue()]
    random.Random(0).shuffle(names)
    return names[:count]


@torch.inference_mode()
def grow(model: EmojiStudent, names: list[str], first: int) -> list[Tensor]:
    """x0 (B, 16, side, side) of every step; row k is image `first` + k of the seed."""
    kept: list[Tensor] = []
    sample_scalewise(
        model.denoiser(model.encode(names)),
        SIGMAS,
        [(side, side) for side in SIDES],
        ScaleState(),
        SeededNoise(SEED, tuple(range(first, first + len(names)))),
        process=FlowMatching(),
        like=torch.zeros(len(names), 16, SIDES[-1], SIDES[-1]),
        upscale=upscale,
        on_step=lambda step, x_t, x0: kept.append(x0),
    )
    return kept


@torch.inference_mode()
def pictures(model: EmojiStudent, latents: Tensor) -> Tensor:
    """Latents to pictures (B, 3, H, W) in [0, 1]."""
    return rearrange(model.decode(latents), "b h w c -> b c h w")


def likeness(drafts: Tensor, finished: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR (B,) in dB and SSIM (B,) of pictures (B, 3, H, W), at the drafts' size."""
    b = F.interpolate(finished, size=drafts.shape[-2:], mode="area")
    psnr = -10 * (drafts - b).square().mean((1, 2, 3)).clamp(min=1e-8).log10()
    return psnr, kornia.metrics.ssim(drafts, b, 11).mean((1, 2, 3))


def measure(
    model: EmojiStudent, names: list[str], banks: dict[int, Tensor] | None = None, batch: int = 16
) -> dict[int, Likeness]:
    """Likeness for each step that a run may stop after, counted from 1.

    Args:
        banks: training latents (N, 16, side, side) by side, to say which picture is nearest.
    """
    found: dict[int, list[tuple[Tensor, ...]]] = {}
    for first in range(0, len(names), batch):
        *drafts, finished = grow(model, names[first : first + batch], first)
        end = pictures(model, finished)
        for stop, draft in enumerate(drafts, start=1):
            row = likeness(pictures(model, draft), end)
            if banks is not None:
                here = nearest(draft, banks[SIDES[stop - 1]])
                row = (*row, (here == nearest(finished, banks[SIDES[-1]])).float())
            found.setdefault(stop, []).append(row)
    joined = {stop: [torch.cat(c) for c in zip(*rows, strict=True)] for stop, rows in found.items()}
    return {stop: Likeness(c[0], c[1], c[2] if banks else None) for stop, c in joined.items()}


def table(measured: dict[int, Likeness]) -> dict[str, dict[str, float]]:
    """Means, and standard deviations over the images, by the step that a run stops after."""
    return {
        str(stop): {
            "side": SIDES[stop - 1] * 8,
            "images": len(found.psnr),
            "same": round(float(found.same.mean()), 4) if found.same is not None else None,
            "psnr": round(float(found.psnr.mean()), 2),
            "psnr_sd": round(float(found.psnr.std()), 2),
            "ssim": round(float(found.ssim.mean()), 4),
            "ssim_sd": round(float(found.ssim.std()), 4),
        }
        for stop, found in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--prompts", type=int, default=10_000, help="all by default")
    parser.add_argument("--out", type=Path, help="JSON for the figures")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = EmojiStudent.load()
    banks = encode_latents(load_images(a.assets), model.vae)
    rows = table(measure(model, prompts(a.prompts), banks))
    if a.out:
        write_text(a.out, json.dumps(rows, indent=1) + "\n")
    for stop, row in rows.items():
        log.info(
            "| %s | %d px | %.1f %% | %.1f ± %.1f | %.3f ± %.3f |",
            stop, row["side"], 100 * row["same"], row["psnr"], row["psnr_sd"], row["ssim"],
            row["ssim_sd"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
