"""Measures the embedded teacher and students: the model card's table and its sheets of pictures."""

import argparse
import json
import logging
import random
import time
from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from ..emoji.catalogue import catalogue
from ..emoji.student import LORA_FOLDER, WEIGHTS, EmojiStudent
from ..files import read_json, write_text
from ..pictures import picture_of
from ..spectrum import top_octave_ratio
from .emoji_latents import encode_latents
from .emoji_pictures import load_images
from .ways import SIDE, SIGMAS, STUDENTS, Way, generate, shifted

log = logging.getLogger(__name__)
FULL2 = STUDENTS["full2"][1]


def ways(guidance: float) -> list[Way]:
    scalewise = STUDENTS["scalewise4"]
    return [
        Way(
            f"teacher, 25 steps, guidance {guidance:g}",
            "",
            (SIDE,) * 25,
            shifted(25),
            guidance,
            True,
        ),
        Way("teacher, 4 full-size steps", "", (SIDE,) * 4, SIGMAS),
        Way("teacher, 2 full-size steps", "", (SIDE,) * 2, FULL2),
        Way("teacher, sampled scale-wise", "", *scalewise),
        Way("student, 4 scale-wise steps", "scalewise4", *scalewise),
        Way("student, 4 full-size steps", "full4", *STUDENTS["full4"]),
        Way("student, 2 full-size steps", "full2", *STUDENTS["full2"]),
        Way("student, constant then jump", "jump4", *STUDENTS["jump4"]),
    ]


def nearest(latents: Tensor, bank: Tensor) -> Tensor:
    """Index of the nearest training latent (L2) for each row."""
    return torch.cdist(latents.flatten(1), bank.flatten(1)).argmin(1)


def grey(images: Tensor) -> Tensor:
    """(B, H, W, 3) -> (B, 1, H, W)."""
    return kornia.color.rgb_to_grayscale(rearrange(images, "b h w c -> b c h w"))


@torch.inference_mode()
def measure(
    run: Path, way: Way, bank: Tensor, pictures: Tensor, count: int, seeds: int, batch: int
) -> dict[str, float]:
    """One row of the table over the first `count` prompts of a fixed shuffle and `seeds` seeds.

    bank: training latents (N, 16, 32, 32). pictures: the training pictures (N, 3, 256, 256), uint8.
    """
    model = load(run, way.lora)
    chosen = list(range(len(bank)))
    random.Random(0).shuffle(chosen)
    chosen = chosen[:count]
    hits, psnr, ssim, ratios, spread = 0, [], [], [], []
    seconds = 0.0
    for part in [chosen[i : i + batch] for i in range(0, len(chosen), batch)]:
        text = model.encode([catalogue()[i]["name"] for i in part])
        real = rearrange(pictures[part].float() / 255, "b c h w -> b h w c")
        made = []
        for seed in range(seeds):
            start = time.perf_counter()
            latents = generate(model, way, text, seed, range(part[0], part[0] + len(part)))
            images = model.decode(latents)
            seconds += time.perf_counter() - start
            hits += int((nearest(latents, bank) == torch.tensor(part)).sum())
            error = (images - real).square().mean((1, 2, 3)).clamp(min=1e-8)
            psnr.append(-10 * error.log10())
            a, b = (rearrange(t, "b h w c -> b c h w") for t in (images, real))
            ssim.append(kornia.metrics.ssim(a, b, 11).mean((1, 2, 3)))
            ratios.append(torch.tensor(top_octave_ratio(grey(images), grey(real))))
            made.append(latents)
        spread.append(
            torch.stack(made).std(0).mean((1, 2, 3)) if seeds > 1 else torch.zeros(len(part))
        )
    images = len(chosen) * seeds
    return {
        "retrieval": round(hits / images, 4),
        "psnr": round(float(torch.cat(psnr).mean()), 2),
        "ssim": round(float(torch.cat(ssim).mean()), 4),
        "top_octave": round(float(torch.stack(ratios).mean()), 3),
        "spread": round(float(torch.cat(spread).mean()), 4),
        "calls": round(way.calls, 2),
        "seconds": round(seconds / images, 3),
        "images": images,
    }


def student_folder(run: Path, lora: str) -> str:
    """A student's folder in `run`: the embedded weights have theirs under a name of its own."""
    return LORA_FOLDER if run == WEIGHTS and lora == "scalewise4" else lora


def load(run: Path, lora: str) -> EmojiStudent:
    return EmojiStudent.load(run, lora=student_folder(run, lora) or None)


@torch.inference_mode()
def sheet(model: EmojiStudent, way: Way, path: Path, count: int = 64, seed: int = 2026) -> None:
    """`count` unpicked pictures, prompts drawn by a fixed seed, with their prompts."""
    chosen = random.Random(seed).sample(range(len(catalogue())), count)
    tiles = []
    for part in [chosen[i : i + 8] for i in range(0, count, 8)]:
        text = model.encode([catalogue()[i]["name"] for i in part])
        tiles.append(
            model.decode(generate(model, way, text, seed, range(part[0], part[0] + len(part))))
        )
    images = F.interpolate(
        rearrange(torch.cat(tiles), "b h w c -> b c h w"), size=(160, 160), mode="area"
    )
    columns, cell = 8, (160, 176)
    picture = Image.new("RGB", (columns * cell[0], (count // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(picture)
    for k, (i, image) in enumerate(zip(chosen, images, strict=True)):
        x, y = k % columns * cell[0], k // columns * cell[1]
        picture.paste(picture_of(image.permute(1, 2, 0)), (x, y))
        draw.text((x + 80, y + 160), catalogue()[i]["name"][:26], "black", anchor="mt")
    picture.save(path)


def row(way: Way, figures: dict[str, float]) -> str:
    keys = ("retrieval", "psnr", "ssim", "top_octave", "spread", "calls", "seconds")
    return f"| {way.title} | " + " | ".join(f"{figures[k]:g}" for k in keys) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument(
        "--run", type=Path, default=WEIGHTS, help="a training run; the embedded weights by default"
    )
    parser.add_argument(
        "--prompts", type=int, default=10_000, help="how many training prompts; all by default"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0, help="of the 25-step teacher")
    parser.add_argument("--only", nargs="*", help="parts of the titles of the rows to measure")
    parser.add_argument(
        "--out", type=Path, help="JSON that collects the rows; measured ones are not run again"
    )
    parser.add_argument("--sheets", type=Path, help="folder for the sheets of 64 pictures")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pictures = load_images(a.assets)
    bank = encode_latents(pictures, load(a.run, "").vae, (SIDE,))[SIDE]
    table = read_json(a.out) if a.out and a.out.is_file() else {}
    for way in ways(a.guidance):
        known = not way.lora or (a.run / student_folder(a.run, way.lora)).is_dir()
        if not known or (a.only and not any(part in way.title for part in a.only)):
            continue
        if way.title not in table:
            table[way.title] = measure(
                a.run, way, bank, pictures, min(a.prompts, len(bank)), a.seeds, a.batch
            )
        log.info("%s", row(way, table[way.title]))
        if a.out:
            write_text(a.out, json.dumps(table, indent=1) + "\n")
        if a.sheets and (way.euler or way.lora == "scalewise4"):
            a.sheets.mkdir(parents=True, exist_ok=True)
            name = "teacher" if way.euler else "student"
            sheet(load(a.run, way.lora), way, a.sheets / f"emoji_{name}.png")


if __name__ == "__main__":
    main()
