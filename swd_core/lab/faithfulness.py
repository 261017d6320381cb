"""Measures how faithful drafts are: does the finished picture show what its draft promised?"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import write_text
from ..noise import SeededNoise
from ..pictures import in_bytes
from ..sampling import ScaleState, sample_scalewise
from ..scenes.autoencoder import FACTOR
from ..scenes.captions import plain_caption
from ..scenes.catalogue import Scene
from ..scenes.student import LORA_FOLDER, WEIGHTS, SceneStudent
from .classifier import CLASSIFIER_FILE, Labels, SceneClassifier, load_classifier
from .evaluate import asked
from .measures import examined, mean
from .ways import STUDENTS

log = logging.getLogger(__name__)
SIDES, SIGMAS = STUDENTS["scalewise4"]
SEED = 0


@torch.inference_mode()
def grow(model: SceneStudent, prompts: Sequence[str], first: int) -> list[Tensor]:
    """Pictures of every step, uint8 (B, 3, H, W); row k is image `first` + k of the seed."""
    kept: list[Tensor] = []
    sample_scalewise(
        model.denoiser(model.encode(prompts)),
        SIGMAS,
        [(side, side) for side in SIDES],
        ScaleState(),
        SeededNoise(SEED, tuple(range(first, first + len(prompts)))),
        process=model.process,
        like=torch.zeros(
            len(prompts), model.model.channels, SIDES[-1], SIDES[-1], device=model.device
        ),
        on_step=lambda step, x_t, x0: kept.append(x0),
    )
    return [in_bytes(model.decode(x0)).permute(0, 3, 1, 2).cpu() for x0 in kept]


def likeness(drafts: Tensor, finished: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR (B,) in dB and SSIM (B,) of uint8 pictures (B, 3, H, W), at the drafts' size."""
    a = drafts.float() / 255
    b = F.interpolate(finished.float() / 255, size=drafts.shape[-2:], mode="area")
    psnr = -10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-8).log10()
    return psnr, kornia.metrics.ssim(a, b, 11).mean((1, 2, 3))


def measure(
    student: SceneStudent, model: SceneClassifier, scenes: Sequence[Scene], batch: int = 16
) -> dict[str, dict[str, float | list[float]]]:
    """By the step, from 1, that a run may stop after: how like its end it is then.

    The shares of pictures whose draft shows the same as the finished one, by the classifier: each
    part, and everything at once.
    """
    rows: dict[str, dict[str, list[Tensor]]] = {}
    for first in range(0, len(scenes), batch):
        prompts = [plain_caption(scene) for scene in scenes[first : first + batch]]
        *drafts, finished = grow(student, prompts, first)
        seen, _ = examined(model, finished)
        end = Labels(seen.things.round(), seen.count, seen.place, seen.time)
        for stop, draft in enumerate(drafts, start=1):
            psnr, ssim = likeness(draft, finished)
            same = examined(model, draft)[0].right(end)
            row = rows.setdefault(str(stop), {})
            for name, values in {"psnr": psnr, "ssim": ssim, **same}.items():
                row.setdefault(name, []).append(values)
    joined = {stop: {name: torch.cat(v) for name, v in row.items()} for stop, row in rows.items()}
    return {
        stop: {"side": FACTOR * SIDES[int(stop) - 1], "images": len(scenes)}
        | {name: mean(values).rounded() for name, values in row.items()}
        for stop, row in joined.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=Path, default=Path("runs/scenes"), help="the classifier's")
    parser.add_argument("--run", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--lora", default=LORA_FOLDER, help="the student's folder in it")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--out", type=Path, help="JSON for the figures")
    parser.add_argument("--device", default="cpu", help="that draws, such as cuda")
    parser.add_argument("--batch", type=int, default=16)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    student = SceneStudent.load(a.run, a.device, lora=a.lora)
    scenes = asked(a.prompts, 0, held=False)
    model = load_classifier(a.scenes / CLASSIFIER_FILE, a.device)
    rows = measure(student, model, scenes, a.batch)
    if a.out:
        write_text(a.out, json.dumps(rows, indent=1) + "\n")
    for stop, row in rows.items():
        log.info("after step %s: %s", stop, json.dumps(row))


if __name__ == "__main__":
    main()
