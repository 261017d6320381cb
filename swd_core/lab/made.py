"""Latents as the models make them, each of a training picture: what a decoder is used on.

The teacher's are its predictions from a little noise, the student's its later steps from real
pictures of the size before. Both keep what the picture shows; the student draws its detail anew.
"""

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..distill.precision import fast_autocast
from ..process import FlowMatching
from ..resample import upscale
from ..scenes.student import LORA_FOLDER, SceneStudent, TextConditioning
from ..tensor_files import read_tensors, save_tensors
from .latents import LATENT_SIDES, latent_path, prompt_path
from .ways import STUDENTS

log = logging.getLogger(__name__)
SIDES, SIGMAS = STUDENTS["scalewise4"]
LEAST, MOST = 0.05, 0.45  # noise level that the teacher predicts from
BATCH = 16


def made_path(folder: Path, shard: int) -> Path:
    return folder / f"made_{shard:03d}.safetensors"


@torch.inference_mode()
def teacher_made(
    model: SceneStudent, real: Tensor, text: TextConditioning, generator: torch.Generator
) -> Tensor:
    """The teacher's x0 of real latents (B, C, H, W), all from one drawn noise level."""
    sigma = LEAST + (MOST - LEAST) * float(torch.rand((), generator=generator))
    noise = torch.randn(real.shape, generator=generator).to(real)
    with fast_autocast(model.device):
        return model.denoiser(text)(FlowMatching().add_noise(real, noise, sigma), sigma).float()


@torch.inference_mode()
def student_made(
    model: SceneStudent, before: Tensor, text: TextConditioning, step: int, noise: Tensor
) -> Tensor:
    """The student's x0 at a step but the first, of real latents (B, C, h, w) of the size before."""
    x_t = FlowMatching().add_noise(upscale(before, noise.shape[-2:]), noise, SIGMAS[step])
    with fast_autocast(model.device):
        return model.denoiser(text)(x_t, SIGMAS[step]).float()


def make(
    scenes: Path,
    run: Path,
    lora: str,
    shard: int,
    count: int = 1000,
    device: torch.device | str = "cpu",
) -> None:
    """Writes what the models in `run` make of the first `count` pictures of a shard: float16
    (N, C, side, side), named by whose they are and the side."""
    teacher = SceneStudent.load(run, device, lora=None)
    student = SceneStudent.load(run, device, lora=lora)
    ids = read_tensors(prompt_path(scenes, shard))[0]["prompts"][:count, 0].long().to(device)
    real = {
        side: read_tensors(latent_path(scenes, side, shard))[0]["latents"][:count]
        for side in LATENT_SIDES
    }
    generator = torch.Generator().manual_seed(shard)
    made: dict[str, list[Tensor]] = {}
    for i in range(0, len(ids), BATCH):
        with torch.inference_mode():
            text = TextConditioning(*teacher.text(ids[i : i + BATCH]))
        some = {side: latents[i : i + BATCH].float().to(device) for side, latents in real.items()}
        for step, side in enumerate(SIDES):
            parts = {f"teacher_{side}": teacher_made(teacher, some[side], text, generator)}
            if step:
                noise = torch.randn(some[side].shape, generator=generator).to(device)
                before = some[SIDES[step - 1]]
                parts[f"student_{side}"] = student_made(student, before, text, step, noise)
            for name, latents in parts.items():
                made.setdefault(name, []).append(latents.half().cpu())
    save_tensors(made_path(scenes, shard), {name: torch.cat(parts) for name, parts in made.items()})
    log.info("made of %d pictures: %s", len(ids), ", ".join(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/scenes"), help="folder of the latents"
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the models")
    parser.add_argument("--lora", default=LORA_FOLDER, help="the student's folder in it")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="pictures of the shard")
    parser.add_argument("--device", default="cpu", help="that computes, such as cuda")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(a.scenes, a.run, a.lora, a.shard, a.count, a.device)


if __name__ == "__main__":
    main()
