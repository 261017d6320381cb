"""Drafts with the embedded student, without a host."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..contact import contact_sheet
from ..drafts import Drafts, join
from ..noise import NOISE_VERSION
from ..pictures import write_png
from ..sampling import sample_scalewise
from .generate import to_picture
from .student import SceneStudent, TextConditioning


def advance(
    student: SceneStudent, text: TextConditioning, drafts: Drafts, until: int
) -> tuple[Drafts, float]:
    """Goes on to the end of step `until`, and the seconds that took.

    One picture at a time: its bits can't depend on how many others there are.
    """
    sizes = drafts.schedule.sizes(*drafts.size)
    like = torch.zeros(1, student.model.channels, *drafts.size, device=student.device)
    done, start = [], time.perf_counter()
    for part in tqdm(list(drafts.batches(1)), unit="picture", leave=False):
        made: list[torch.Tensor] = []
        state = sample_scalewise(
            student.denoiser(text),
            part.schedule.sigmas,
            sizes,
            part.state,
            part.noise,
            process=student.process,
            like=like,
            until=until,
            on_step=lambda step, x_t, x0, made=made: made.append(x0),
            eta=part.schedule.eta,
        )
        samples = made[-1] / student.vae.vae_scale + student.vae.vae_shift
        scales = (*part.scales, *made)
        done.append(replace(part, scales=scales, samples=samples, x_t=state.predicted))
    return join(done), time.perf_counter() - start


def write_sheet(student: SceneStudent, drafts: Drafts, path: Path, overwrite: bool) -> None:
    """Raises OSError if it can't be written."""
    pictures = [to_picture(student, part.scales[-1]) for part in drafts.batches(1)]
    sheet = contact_sheet(pictures, drafts.labels())
    write_png(sheet.picture, path, metadata(drafts), overwrite)


def write_pictures(
    student: SceneStudent, drafts: Drafts, paths: Sequence[Path], overwrite: bool
) -> None:
    """Raises OSError if one can't be written."""
    for part, path in zip(drafts.batches(1), paths, strict=True):
        image = part.images[0]
        text = {"picture": str(image.index + 1), "detail_seed": str(image.detail)}
        write_png(to_picture(student, part.scales[-1]), path, metadata(part) | text, overwrite)


def metadata(drafts: Drafts) -> dict[str, str]:
    """What makes them again."""
    return {
        "Software": "ComfyUI-SwD",
        "prompt": drafts.prompt,
        "seed": str(drafts.images[0].seed),
        "noise_version": str(NOISE_VERSION),
        "schedule": json.dumps(drafts.schedule.to_dict()),
    }
