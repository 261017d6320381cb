"""The paper's ablation on the emoji teacher: every variant from every seed, one table.

Hours of CPU time. Finished rows are kept in `ablation.json`, so a stopped run goes on. The teacher
is the embedded one, unless the run's folder has another.
"""

import argparse
import json
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw

from ..distill.interface import DistillConfig
from ..emoji.catalogue import catalogue
from ..files import read_json, write_text
from ..pictures import picture_of
from .emoji_evaluate import load, measure
from .emoji_latents import load_latents
from .emoji_pictures import load_images
from .emoji_student import LATENTS, begin_run, train
from .ways import STUDENTS, Way, generate

log = logging.getLogger(__name__)
TABLE = "ablation.json"
KEYS = ("retrieval", "psnr", "ssim", "top_octave", "spread")
TILE, LABEL = 128, 170  # of the sheet: a picture's side, and its column of titles, in pixels
# What differs from the trainer's defaults (the paper's weights): short runs need a short average.
RECIPE: dict[str, Any] = {"fake_steps": 1, "ema": 0.98, "autocast": True}


@dataclass(frozen=True)
class Variant:
    """One row: what it is called, which student's sizes it has, what differs in the losses."""

    name: str
    title: str
    student: str = "scalewise4"
    losses: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("all", "all losses, scale-wise, 4 steps"),
    Variant("mmd", "MMD alone", losses={"dmd": 0.0, "gan": 0.0}),
    Variant("no_mmd", "without MMD", losses={"mmd": 0.0}),
    Variant("rbf", "RBF kernel", losses={"kernel": "rbf"}),
    # Its gradient is about 110 times smaller than the linear kernel's on these tokens.
    Variant("rbf_weighted", "RBF kernel, weighted", losses={"kernel": "rbf", "mmd": 110.0}),
    Variant("full4", "full size, 4 steps", "full4"),
    Variant("full2", "full size, 2 steps", "full2"),
    Variant("jump4", "constant size, then a jump", "jump4"),
)


def way_of(variant: Variant, lora: str) -> Way:
    sides, sigmas = STUDENTS[variant.student]
    return Way(variant.title, lora, sides, sigmas)


def name_of(variant: Variant, seed: int, steps: int) -> str:
    return f"ablation/{variant.name}-{seed}-{steps}"


def run_ablation(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains and measures what `ablation.json` does not hold yet; returns all rows.

    Raises:
        SystemExit: if a training was stopped; half a student is not measured.
    """
    path = a.out or a.run / TABLE
    rows = read_json(path) if path.is_file() else []
    done = {(r["variant"], r["seed"], r["steps"], r["prompts"]) for r in rows}
    begin_run(a.run, a.assets)
    bank = load_latents(a.run / LATENTS)[32]
    pictures = load_images(a.assets)
    for seed in a.train_seeds:
        for variant in VARIANTS:
            if variant.name not in a.variants:
                continue
            if (variant.name, seed, a.steps, a.prompts) in done:
                continue
            name = name_of(variant, seed, a.steps)
            options = RECIPE | {"batch_tokens": a.batch_tokens} | variant.losses
            config = DistillConfig(seed=seed, **options)
            if (reached := train(a.run, variant.student, config, name, steps=a.steps)) < a.steps:
                raise SystemExit(
                    f"{variant.title}, seed {seed}: stopped at step {reached} of {a.steps}. The "
                    "same command goes on from there."
                )
            figures = measure(
                a.run, way_of(variant, name), bank, pictures, a.prompts, a.seeds, a.batch
            )
            rows.append(
                {"variant": variant.name, "title": variant.title, "seed": seed,
                 "steps": a.steps, "prompts": a.prompts, **figures}
            )  # fmt: skip
            write_text(path, json.dumps(rows, indent=1) + "\n")
            log.info("%s seed %d: %s", variant.title, seed, figures)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every variant's mean over the seeds, with the smallest and largest in brackets."""
    lines = [f"| variant | seeds | {' | '.join(KEYS)} | calls |", "|" + "---|" * (len(KEYS) + 3)]
    for variant in VARIANTS:
        found = [r for r in rows if r["variant"] == variant.name]
        if not found:
            continue
        cells = []
        for key in KEYS:
            values = [r[key] for r in found]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.4g} ({min(values):.4g} to {max(values):.4g})")
        calls = f"{found[0]['calls']:g}"
        lines.append(f"| {variant.title} | {len(found)} | {' | '.join(cells)} | {calls} |")
    return "\n".join(lines)


def sheet(a: argparse.Namespace, count: int = 8, seed: int = 2026) -> None:
    """A row of unpicked pictures for every variant, and the training pictures of the prompts."""
    chosen = random.Random(seed).sample(range(len(catalogue())), count)
    rows = []
    for variant in [v for v in VARIANTS if v.name in a.variants]:
        way = way_of(variant, name_of(variant, a.train_seeds[0], a.steps))
        model = load(a.run, way.lora)
        text = model.encode([catalogue()[i]["name"] for i in chosen])
        made = model.decode(generate(model, way, text, seed, range(count)))
        rows.append((variant.title, rearrange(made, "b h w c -> b c h w")))
    rows.append(("training picture", load_images(a.assets)[chosen] / 255))
    picture = Image.new("RGB", (LABEL + count * TILE, len(rows) * TILE), "white")
    draw = ImageDraw.Draw(picture)
    for y, (title, pictures) in enumerate(rows):
        draw.multiline_text((8, y * TILE + TILE // 3), "\n".join(wrap(title, 22)), "black")
        for x, tile in enumerate(F.interpolate(pictures, (TILE, TILE), mode="area")):
            picture.paste(picture_of(tile.permute(1, 2, 0)), (LABEL + x * TILE, y * TILE))
    picture.save(a.sheet, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=250, help="of training for each student")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, default=2, help="of sampling")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of training")
    parser.add_argument("--out", type=Path, help="the table's file; RUN/ablation.json by default")
    parser.add_argument("--sheet", type=Path, help="PNG of what the first seed's students make")
    parser.add_argument("--batch", type=int, default=16)
    names = [v.name for v in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info(table(run_ablation(a)))
    if a.sheet:
        sheet(a)


if __name__ == "__main__":
    main()
