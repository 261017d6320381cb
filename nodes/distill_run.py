"""The training behind SwDDistillTrain: the loaded teacher, live plot and previews, interruption."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..swd_core.distill.adapters import adapter, add_adapters
from ..swd_core.distill.config import Settings, parse_settings
from ..swd_core.distill.memory import MemoryBatches, MemoryData
from ..swd_core.distill.scalewise import intervals
from ..swd_core.distill.session import CHECKPOINT, rate_factor, restore, seeded, write_lora
from ..swd_core.distill.trainer import Trainer
from ..swd_core.emoji.model import MMDiT
from ..swd_core.emoji.train_student import TARGETS, EmojiModel
from ..swd_core.noise import SeededNoise
from ..swd_core.process import FlowMatching
from ..swd_core.sampling import ScaleState, sample_scalewise
from ..swd_core.schedule import presets
from . import _host

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
COLOURS = ("#5ab0ff", "#ffb35a", "#7ddc7d", "#ff7a7a", "#c79bff")
WIDTH, HEIGHT, SAMPLES = 768, 320, 4


def settings_for(data: MemoryData, name: str, rank: int, train: dict[str, Any]) -> Settings:
    """The node's widgets as a config; the LoRA goes to models/loras/NAME.

    Raises:
        ValueError: if the name can't be a folder's, or a value is out of range.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(
            f"lora_name {name[:40]!r} can't name a folder: use letters, digits, _ . and -, and "
            "begin with a letter or digit."
        )
    schedule = data.schedule
    if schedule.name in presets() and presets()[schedule.name].schedule == schedule:
        chosen: dict[str, Any] = {"preset": schedule.name}
    else:
        chosen = {"scales": list(schedule.scales), "sigmas": list(schedule.sigmas)}
    loras = folder_paths.get_folder_paths("loras")[0]
    return parse_settings(
        {
            "model": {"family": "emoji", "rank": rank},
            "schedule": chosen,
            "train": train,
            "output": {"run": loras, "name": name},
        }
    )


def teacher_module(model: Any) -> MMDiT:
    """A trainable copy of the loaded teacher.

    Raises:
        ValueError: if the model is no emoji teacher, or has LoRAs on it.
    """
    if _host.model_family(model) != "emoji":
        raise ValueError(
            "Only the emoji teacher can be distilled inside ComfyUI. For SD3.5, FLUX and SDXL use "
            "python -m swd_core distill, see configs/."
        )
    if model.patches:
        raise ValueError(
            "The model has a LoRA on it; distillation starts from the bare teacher. Set strength "
            "to 0 in Load SwD Emoji Student and take other LoRAs off."
        )
    state = model.model.diffusion_model.state_dict()
    return MMDiT.from_state_dict({k: v.detach().cpu().float().clone() for k, v in state.items()})


def copied(data: MemoryData, model: Any) -> MemoryData:
    """The data in the model's own units, as tensors that may take part in training."""
    latents = {
        size: model.model.process_latent_in(x).cpu().float().clone()
        for size, x in data.latents.items()
    }
    return dataclasses.replace(
        data,
        latents=latents,
        context=data.context.cpu().float().clone(),
        pooled=data.pooled.cpu().float().clone(),
        empty=tuple(t.cpu().float().clone() for t in data.empty),
    )


def losses_plot(history: dict[str, list[float]], step: int, steps: int) -> Image.Image:
    """Every loss as a line, each on its own scale, with its last value."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "#1e2227")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row, ((name, values), colour) in enumerate(zip(history.items(), COLOURS, strict=False)):
        low, high = min(values), max(values)
        across = (WIDTH - 180) / max(1, steps - 1)
        up = (HEIGHT - 60) / ((high - low) or 1.0)
        points = [(16 + across * i, HEIGHT - 16 - up * (v - low)) for i, v in enumerate(values)]
        if len(points) > 1:
            draw.line(points, colour, 2)
        draw.text((WIDTH - 150, 40 + 22 * row), f"{name} {values[-1]:.4g}", colour, font)
    draw.text((16, 10), f"step {step} of {steps}", "#e8e8e8", ImageFont.load_default(16))
    return image


@torch.no_grad()
def student_samples(trainer: Trainer, data: MemoryData, model: Any, vae: Any) -> Image.Image:
    """Pictures of the student for the first captions, side by side."""
    count = min(SAMPLES, data.count)
    text = (data.context[:count], data.pooled[:count])

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        level = torch.full((count,), float(sigma))
        with adapter(trainer.model.module, "student"):
            return trainer.model.predict(x, level, text)

    noise = SeededNoise(0, tuple(range(count)))
    like = next(iter(data.latents.values()))[:count]
    state = sample_scalewise(
        denoise, data.schedule.sigmas, data.sizes, ScaleState(), noise,
        process=FlowMatching(), like=like,
    )  # fmt: skip
    pixels = vae.decode(model.model.process_latent_out(state.x0)).clamp(0, 1)
    return Image.fromarray(np.hstack([(p.cpu().numpy() * 255).astype(np.uint8) for p in pixels]))


def stacked(top: Image.Image, below: Image.Image | None) -> Image.Image:
    if below is None:
        return top
    below = below.resize((top.width, below.height * top.width // below.width))
    whole = Image.new("RGB", (top.width, top.height + below.height))
    whole.paste(top, (0, 0))
    whole.paste(below, (0, top.height))
    return whole


def train(
    model: Any, data: MemoryData, settings: Settings, vae: Any, resume: bool
) -> tuple[Path, Image.Image]:
    """Trains and writes models/loras/NAME; an interrupt saves first.

    Returns:
        the LoRA's folder, and the last plot with samples.
    """
    config, name = settings.train, settings.output.name
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(config.seed)
        module, data = teacher_module(model), copied(data, model)
        add_adapters(module, TARGETS, ("student", "fake"), settings.model.rank)
        steps = intervals(list(data.sizes), data.schedule.sigmas)
        trainer = Trainer(EmojiModel(module), MemoryBatches(data), steps, config)
        checkpoint = Path(folder_paths.get_output_directory()) / "swd_distill" / name / CHECKPOINT
        if resume:
            restore(trainer, checkpoint)

        def save() -> Path:
            trainer.save(checkpoint)
            return write_lora(trainer, settings)

        picture = _loop(trainer, settings, save, lambda: _samples(trainer, data, model, vae))
        return save(), picture


def _samples(trainer: Trainer, data: MemoryData, model: Any, vae: Any) -> Image.Image | None:
    return None if vae is None else student_samples(trainer, data, model, vae)


def _loop(
    trainer: Trainer,
    settings: Settings,
    save: Callable[[], Path],
    samples: Callable[[], Image.Image | None],
) -> Image.Image:
    config = settings.train
    bar, history, shown = comfy.utils.ProgressBar(config.steps), {}, None
    every = max(1, config.steps // 20)
    try:
        while trainer.step < config.steps:
            trainer.optimiser.param_groups[0]["lr"] = config.lr * rate_factor(trainer.step, config)
            trainer.student_step(seeded(config, trainer.step))
            for name, value in trainer.means().items():
                history.setdefault(name, []).append(value)
            if trainer.step % every == 0 or trainer.step == config.steps:
                shown = samples()
                save()
            picture = stacked(losses_plot(history, trainer.step, config.steps), shown)
            bar.update_absolute(trainer.step, config.steps, ("JPEG", picture, 768))
            comfy.model_management.throw_exception_if_processing_interrupted()
    except comfy.model_management.InterruptProcessingException:
        save()
        raise
    plot = losses_plot(history, trainer.step, config.steps)
    return stacked(plot, shown if history else samples())
