"""A prompt to PNG files with the embedded student."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..noise import NOISE_VERSION, SeededNoise
from ..pictures import picture_of, strip_of, write_animation, write_png
from ..sampling import ScaleState, sample_scalewise
from ..schedule import ScaleSchedule
from .student import SceneStudent, TextConditioning


@dataclass(frozen=True)
class Job:
    """What to generate and where to write it.

    width, height: of the finished pictures, in pixels. paths: one per picture. strips, animations:
    one per picture, or none at all. overwrite: whether files that exist may be replaced.
    """

    prompt: str
    seed: int
    width: int
    height: int
    schedule: ScaleSchedule
    paths: tuple[Path, ...]
    strips: tuple[Path, ...] = ()
    overwrite: bool = False
    animations: tuple[Path, ...] = ()

    def metadata(self, image: int) -> dict[str, str]:
        """What makes picture number `image`, counted from 0, again."""
        return {
            "Software": "ComfyUI-SwD",
            "prompt": self.prompt,
            "seed": str(self.seed),
            "picture": str(image + 1),
            "noise_version": str(NOISE_VERSION),
            "schedule": json.dumps(self.schedule.to_dict()),
        }


def to_picture(student: SceneStudent, latent: Tensor) -> Image.Image:
    """Decodes one latent (1, C, H, W)."""
    return picture_of(student.decode(latent)[0])


def predict_scales(
    student: SceneStudent,
    text: TextConditioning,
    job: Job,
    image: int,
    on_scale: Callable[[Tensor], None],
) -> list[Tensor]:
    """Picture number `image` as each scale predicts it, (1, C, h, w) latents; the last is final."""
    height, width = job.height // student.factor, job.width // student.factor
    like = torch.zeros(1, student.model.channels, height, width, device=student.device)
    predictions = []

    def keep(step: int, x_t: Tensor, x0: Tensor) -> None:
        predictions.append(x0)
        on_scale(x0)

    sample_scalewise(
        student.denoiser(text),
        job.schedule.sigmas,
        job.schedule.sizes(height, width),
        ScaleState(),
        SeededNoise(job.seed, (image,)),
        process=student.process,
        like=like,
        on_step=keep,
        eta=job.schedule.eta,
    )
    return predictions


def generate(student: SceneStudent, text: TextConditioning, job: Job) -> list[float]:
    """Generates and writes every picture of the job, with a progress bar.

    One picture at a time: its bits can't depend on how many others were asked for.

    Returns:
        mean seconds a picture of each scale, and of decoding, which comes last.

    Raises:
        OSError: if a file can't be written.
    """
    spent: list[list[float]] = []
    with tqdm(total=len(job.paths) * job.schedule.steps, unit="scale", leave=False) as bar:
        for image, path in enumerate(job.paths):
            times = [time.perf_counter()]

            def on_scale(x0: Tensor, times: list[float] = times) -> None:
                times.append(time.perf_counter())
                seconds = times[-1] - times[-2]
                bar.set_postfix_str(f"{x0.shape[-1] * student.factor} px in {seconds:.2f} s")
                bar.update()

            *smaller, final = predict_scales(student, text, job, image, on_scale)
            picture = to_picture(student, final)
            times.append(time.perf_counter())
            spent.append([b - a for a, b in zip(times, times[1:], strict=False)])
            write_png(picture, path, job.metadata(image), job.overwrite)
            if job.strips or job.animations:
                grown = [*(to_picture(student, x0) for x0 in smaller), picture]
            if job.strips:
                write_png(strip_of(grown), job.strips[image], job.metadata(image), job.overwrite)
            if job.animations:
                write_animation(grown, job.animations[image], job.overwrite)
    return [sum(column) / len(spent) for column in zip(*spent, strict=True)]
