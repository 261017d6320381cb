"""The training behind SwDDistillTrain: the loaded teacher, live plot and previews, interruption."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from PIL import Image, ImageDraw, ImageFont

from ..swd_core.distill import loop
from ..swd_core.distill.config import Settings, parse_settings
from ..swd_core.distill.data import PreparedBatches
from ..swd_core.distill.evaluation import grid, student_latents
from ..swd_core.distill.home import Home, alone, claim, identity
from ..swd_core.distill.interface import Shown
from ..swd_core.distill.memory import MemoryBatches, MemoryData
from ..swd_core.distill.session import CHECKPOINT, restore, save_all
from ..swd_core.distill.trainer import Trainer
from ..swd_core.families import FAMILIES
from ..swd_core.presets import presets
from . import _host, _host_latent, _host_model
from .host_model import HostModel
from .trainable import check_trainable, context_width, pooled_width, weights_mark
from .twin import training_mode

TrainingData = MemoryData | PreparedBatches
COLOURS = ("#5ab0ff", "#ffb35a", "#7ddc7d", "#ff7a7a", "#c79bff")
WIDTH, HEIGHT, SAMPLES = 768, 320, 4
LARGE, FAST = 1e9, 1e-4  # numbers of a teacher, and rates above which it learns nothing of use
MOST = 1024  # points of a line in the plot: more than it has pixels across


def settings_for(
    model: Any, data: TrainingData, name: str, options: dict[str, Any], train: dict[str, Any]
) -> Settings:
    """The node's widgets as a config; the LoRA goes to models/loras/NAME.

    Args:
        options: of ModelConfig. train: of TrainConfig.

    Raises:
        ValueError: if a value is out of range, the model can't be distilled, or the data is for
            another one.
    """
    if not any(train[name] for name in ("mmd", "dmd", "gan")):
        raise ValueError(
            "mmd, dmd and gan are all 0: there is nothing to learn from. Give one of them a weight."
        )
    family = check_trainable(model)
    check_data(model, data)
    schedule = data.schedule
    if schedule.name in presets() and presets()[schedule.name].schedule == schedule:
        chosen: dict[str, Any] = {"preset": schedule.name}
    else:
        chosen = {"scales": list(schedule.scales), "sigmas": list(schedule.sigmas)}
    # A graphics card computes in the model's own number format.
    train = {**train, "autocast": model.load_device.type == "cpu"}
    # An SD3 type that nobody has published a student for is trained as SD3.5 Medium is.
    options = {**options, "family": family.name if family.trainable else "sd35-medium"}
    loras = folder_paths.get_folder_paths("loras")[0]
    return parse_settings(
        {
            "model": {**options, "base": "" if family.embedded else family.title},
            "schedule": chosen,
            "train": train,
            "output": {"run": loras, "name": name, "save_every": max(1, train["steps"] // 20)},
        }
    )


def home_of(model: Any, data: TrainingData, settings: Settings) -> Home:
    """Where the training of this name keeps itself, if the name is free or its own.

    Raises:
        ValueError: if the name holds anything else, and what is different. OSError: if nothing can
            be written there.
    """
    name, content = settings.output.name, {**data.identity(), "teacher": weights_mark(model)}
    folders = [Path(folder) / name for folder in folder_paths.get_folder_paths("loras")]
    output = Path(folder_paths.get_output_directory()) / "swd_distill" / name
    instead = (
        "Choose another lora_name, or connect and set what it was trained with. To use the name "
        f"anew, move {output} and {folders[0]} away."
    )
    for folder in folders[1:]:
        if folder.exists():
            raise ValueError(f"There is a LoRA {name} in {folder.parent} already. {instead}")
    return claim(output / CHECKPOINT, folders[0], identity(settings, content), instead=instead)


def check_data(model: Any, data: TrainingData) -> None:
    """Raises ValueError if the data was encoded for another kind of model."""
    _host_model.check_prediction(model, data.schedule)
    if isinstance(data, PreparedBatches):
        wanted = FAMILIES[_host_model.model_family(model)].encoders
        if data.family != wanted:
            raise ValueError(
                f"{data.folder} was prepared for {data.family}, this model is {wanted}: prepare "
                "the pictures with the config of this model."
            )
        if not data.pictures:
            raise ValueError(
                f"{data.folder} holds prompts alone, which `python -m swd_core distill` trains "
                "with. Here connect pictures."
            )
        shown = data.first(1)
        latent, text = shown.real, shown.text
    else:
        latent, text = data.latents[data.sizes[-1]], data.text[0]
    _host_latent.check_channels(_host_latent.framed(latent, model), model)
    for what, part, wanted in (
        ("encoded", text.context, context_width(model)),
        ("pooled", text.pooled, pooled_width(model)),
    ):
        width = 0 if part is None else part.shape[-1]
        if wanted and part is None:
            raise ValueError(
                f"The captions have no pooled text, as T5 alone gives none; this model reads one "
                f"{wanted} wide: encode them with all text encoders of this model."
            )
        if wanted and width != wanted:
            raise ValueError(
                f"The captions are {what} {width} wide, this model reads {wanted}: "
                "encode them with the text encoder of this model."
            )
    multiple = _host_model.patch_multiple(model)
    for height, width in data.sizes:
        if height % multiple or width % multiple:
            raise ValueError(
                f"The data has a step of {width}x{height} latent cells, and this model needs "
                f"multiples of {multiple}. Give SwD Distill Data the schedule of this model."
            )


def copied(data: MemoryData, model: Any) -> MemoryData:
    """The data in the model's own units, as tensors that may take part in training."""

    def text(x: torch.Tensor) -> torch.Tensor:
        return x.detach().cpu().float().clone()

    def latents(x: torch.Tensor) -> torch.Tensor:
        inside = model.model.process_latent_in(_host_latent.framed(x, model))
        return text(inside[:, :, 0] if inside.ndim == 5 else inside)

    data = data.mapped(latents, text)
    if data.schedule.sigma_kind == "timestep":  # SDXL's guidance compares with zeros
        data = dataclasses.replace(data, empty=data.empty.map(torch.zeros_like))
    return data


@dataclasses.dataclass
class Curve:
    """A loss over any number of steps in at most MOST points, each the mean of `stride` steps."""

    points: list[float] = dataclasses.field(default_factory=list)
    stride: int = 1
    waiting: list[float] = dataclasses.field(default_factory=list)
    last: float = 0.0

    def add(self, value: float) -> None:
        self.last = value
        self.waiting.append(value)
        if len(self.waiting) < self.stride:
            return
        self.points.append(sum(self.waiting) / self.stride)
        self.waiting = []
        if len(self.points) == MOST:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points, self.stride = [(a + b) / 2 for a, b in pairs], 2 * self.stride


def losses_plot(history: dict[str, Curve], step: int, steps: int) -> Image.Image:
    """Every loss as a line, each on its own scale, with its last value."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "#1e2227")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row, ((name, curve), colour) in enumerate(zip(history.items(), COLOURS, strict=False)):
        values = curve.points or [curve.last]
        low, high = min(values), max(values)
        across = (WIDTH - 180) / max(1, steps - 1) * curve.stride
        up = (HEIGHT - 60) / ((high - low) or 1.0)
        points = [(16 + across * i, HEIGHT - 16 - up * (v - low)) for i, v in enumerate(values)]
        if len(points) > 1:
            draw.line(points, colour, 2)
        draw.text((WIDTH - 150, 40 + 22 * row), f"{name} {curve.last:.4g}", colour, font)
    draw.text((16, 10), f"step {step} of {steps}", "#e8e8e8", ImageFont.load_default(16))
    return image


@torch.no_grad()
def student_samples(trainer: Trainer, shown: Shown, model: Any, vae: Any) -> Image.Image:
    """Pictures of the averaged student for the first captions."""
    latents = _host_latent.framed(student_latents(trainer, shown), model)
    latents = model.model.process_latent_out(latents)
    decoded = (vae.decode(latent[None]) for latent in latents)  # one by one, for the memory
    pictures = [pixels.reshape(-1, *pixels.shape[-3:])[0] for pixels in decoded]
    return grid(pictures, shown.captions)


def stacked(top: Image.Image, below: Image.Image | None) -> Image.Image:
    if below is None:
        return top
    below = below.resize((top.width, below.height * top.width // below.width))
    whole = Image.new("RGB", (top.width, top.height + below.height))
    whole.paste(top, (0, 0))
    whole.paste(below, (0, top.height))
    return whole


@dataclasses.dataclass
class Live:
    """The host's progress bar with the plot of the losses, over the last samples."""

    trainer: Trainer
    settings: Settings
    samples: Callable[[], Image.Image | None]
    history: dict[str, Curve] = dataclasses.field(default_factory=dict)
    below: Image.Image | None = None

    def __post_init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(self.settings.train.steps)

    def due(self, step: int) -> bool:
        """Whether to sample and save after a step."""
        return step % self.settings.output.save_every == 0 or step == self.settings.train.steps

    def show(self, step: int) -> None:
        for name, value in self.trainer.means().items():
            self.history.setdefault(name, Curve()).add(value)
        if self.due(step):
            self.below = self.samples()
        steps = self.settings.train.steps
        self.bar.update_absolute(step, steps, ("JPEG", self._plot(), WIDTH))

    def picture(self) -> Image.Image:
        """The last plot with samples, also where there was nothing to train."""
        if not self.history:
            self.below = self.samples()
        return self._plot()

    def _plot(self) -> Image.Image:
        plot = losses_plot(self.history, self.trainer.step, self.settings.train.steps)
        return stacked(plot, self.below)


def train(
    model: Any, data: TrainingData, settings: Settings, vae: Any, resume: bool
) -> tuple[Path, Image.Image]:
    """Trains and writes models/loras/NAME; an interrupt saves first.

    Returns:
        the LoRA's folder, and the last plot with samples.
    """
    # In a function of its own, so that nothing of it is left when the graphics card is tidied up.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        with training_mode():
            torch.manual_seed(settings.train.seed)
            return _train(model, data, settings, vae, resume)


def _train(
    model: Any, data: TrainingData, settings: Settings, vae: Any, resume: bool
) -> tuple[Path, Image.Image]:
    home = home_of(model, data, settings)  # the weights are the bare teacher's only by now
    name = settings.output.name
    refusal = f"Another ComfyUI trains {name} now. Wait for its end, or choose another lora_name."
    with alone(home.checkpoint.parent, refusal):
        return _train_at(home, model, data, settings, vae, resume)


def _say_if_fast(trainer: Trainer) -> None:
    """Says so where the rates, as the widgets are by default, are a small model's."""
    config = trainer.config
    rates = {"lr": config.lr} | ({"lr_fake": config.lr_fake} if trainer.fake_steps else {})
    fast = [f"{name} {rate:g}" for name, rate in rates.items() if rate > FAST]
    numbers = sum(p.numel() for p in trainer.model.module.parameters())
    if fast and numbers > LARGE:
        _host.say(
            f"{' and '.join(fast)} is much for a teacher of {numbers / 1e9:.1f} billion numbers: "
            "the paper trains such ones at 4e-6 to 5e-6."
        )


def _train_at(
    home: Home, model: Any, data: TrainingData, settings: Settings, vae: Any, resume: bool
) -> tuple[Path, Image.Image]:
    """`train` in a folder that nobody else trains in."""
    options, name = settings.model, settings.output.name
    teacher = HostModel(
        model,
        options.rank,
        None if options.block < 0 else options.block,
        options.embedded_guidance,
        options.checkpointing and model.load_device.type != "cpu",
    )
    sigmas = _host_model.schedule_sigmas(model, data.schedule)[:-1].tolist()
    if isinstance(data, PreparedBatches):  # in the model's own units
        batches = dataclasses.replace(data, sigmas=tuple(sigmas), device=model.load_device)
    else:
        batches = MemoryBatches(copied(data, model), sigmas, model.load_device)
    shown = batches.first(SAMPLES)
    trainer = Trainer(teacher, batches, settings.train, last=settings.train.steps)
    _say_if_fast(trainer)
    if resume:
        restore(trainer, home.checkpoint)
    if trainer.step >= settings.train.steps:
        _host.say(
            f"{name} has {trainer.step} steps already, {settings.train.steps} are asked for: "
            "nothing to train. More steps go on with it."
        )

    def save() -> Path:
        return save_all(trainer, settings, home, "run again with resume on")

    def samples() -> Image.Image | None:
        return None if vae is None else student_samples(trainer, shown, model, vae)

    live = Live(trainer, settings, samples)
    try:
        loop.train(
            trainer,
            lambda: trainer.step / settings.train.steps,
            settings.train.decay,
            each=live.show,
            due=live.due,
            save=save,
            between=comfy.model_management.throw_exception_if_processing_interrupted,
        )
    except comfy.model_management.InterruptProcessingException:
        if trainer.step or trainer.fake_done:
            save()
        raise
    return home.lora, live.picture()
