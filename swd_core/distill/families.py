"""What each model family brings: the teacher for the trainer, encoders, published layer names."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora import LoraLayer
from .adapters import add_adapters
from .config import Settings
from .diffusers_models import SDXL_BETAS, wrap
from .interface import DistillModel

Pairs = dict[str, tuple[Tensor, Tensor]]
PIPELINES = {
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", "transformer"),
    "flux": ("FluxPipeline", "FluxTransformer2DModel", "transformer"),
    "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", "unet"),
}


def device_of(settings: Settings) -> torch.device:
    """Where to compute: this process's own graphics card where there is one."""
    if settings.model.device == "cpu" or not torch.cuda.is_available():
        if settings.model.device == "cuda":
            raise ValueError("[model] device is 'cuda', but torch finds no such device here.")
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            "This model family needs diffusers: pip install diffusers transformers accelerate peft."
        ) from error
    return diffusers


def pretrained(kind: str, base: str, **options: Any) -> Any:
    """A diffusers class loaded from `base`; one ValueError where that isn't possible."""
    try:
        return getattr(_diffusers(), kind).frompretrained(base, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"[model] base {base!r} can't be loaded as a {kind} ({str(error).splitlines()[0]}). "
            "Give a folder in diffusers' layout or a hub id that you have access to."
        ) from error


def load_model(settings: Settings, device: torch.device) -> DistillModel:
    """The teacher with both adapters in it.

    Raises:
        ValueError: if it can't be loaded. FileNotFoundError: if a file is missing.
    """
    m = settings.model
    torch.manual_seed(settings.train.seed)
    if settings.kind == "emoji":
        return _emoji_model(settings, device)
    _, kind, part = PIPELINES[settings.kind]
    dtype = getattr(torch, m.dtype if device.type != "cpu" else "float32")
    module = pretrained(kind, m.base, subfolder=part, torch_dtype=dtype).to(device)
    options: dict[str, Any] = {"rank": m.rank, "checkpointing": m.checkpointing}
    options["block"] = None if m.block < 0 else m.block
    if settings.kind == "flux":
        options["guidance"] = m.embedded_guidance
    module.train()  # dropout is 0 in all three; diffusers checkpoints in this mode only
    return wrap(module, **options)


def _emoji_model(settings: Settings, device: torch.device) -> DistillModel:
    from ..emoji.model import MMDiT
    from ..emoji.student import MODEL_FILE, WEIGHTS, read_weights
    from ..emoji.train_student import TARGETS, EmojiModel

    folder = Path(settings.model.base) if settings.model.base else WEIGHTS
    state = {k: v.float() for k, v in read_weights(folder / MODEL_FILE).items()}
    module = MMDiT.from_state_dict(state).to(device)
    add_adapters(module, TARGETS, ("student", "fake"), settings.model.rank)
    return EmojiModel(module)


def publisher(settings: Settings) -> Callable[[DistillModel, Pairs], dict[str, LoraLayer]]:
    """From the trained matrices to the layers under their published names."""
    if settings.kind == "emoji":
        from ..emoji.train_student import published_layers

        return lambda _, pairs: published_layers(pairs)
    return lambda model, pairs: model.layers(pairs)


def schedule_sigmas(settings: Settings) -> tuple[float, ...]:
    """The schedule's noise levels in the process's own terms; SDXL's timesteps by its table."""
    schedule = settings.scale_schedule()
    if schedule.sigma_kind == "flow":
        return schedule.sigmas
    start, end, count = SDXL_BETAS
    betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    steps = [min(round(t), count - 1) for t in schedule.sigmas]
    return tuple(float(((1 - kept[t]) / kept[t]).sqrt()) for t in steps)


class EmojiEncoder:
    """The embedded autoencoder and text encoder."""

    family, factor, multiple = "emoji", 8, 2

    def __init__(self, folder: Path | None = None):
        from ..emoji.student import EmojiStudent

        self.student = EmojiStudent.load(folder, lora=None)

    def latents(self, pictures: Tensor) -> Tensor:
        return self.student.vae.encode(pictures.to(memory_format=torch.channels_last))

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        text = self.student.encode(list(prompts))
        return text.context, text.pooled

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents to pictures (B, H, W, 3) in [0, 1]."""
        return self.student.decode(latents)


class DiffusersEncoder:
    """VAE and text encoders of a diffusers pipeline, without its transformer or UNet."""

    factor = 8

    def __init__(self, settings: Settings, device: torch.device):
        kind, _, part = PIPELINES[settings.kind]
        self.family = settings.kind
        self.multiple = 4 if self.family == "sdxl" else 2
        dtype = getattr(torch, settings.model.dtype if device.type != "cpu" else "float32")
        self.pipe = pretrained(kind, settings.model.base, torch_dtype=dtype, **{part: None})
        self.pipe.to(device)
        self.factor = self.pipe.vae_scale_factor
        self.vae = self.pipe.vae
        if getattr(self.vae.config, "force_upcast", False):
            self.vae.to(torch.float32)

    def latents(self, pictures: Tensor) -> Tensor:
        like = next(self.vae.parameters())
        coded = self.vae.encode(pictures.to(like.device, like.dtype) * 2 - 1).latent_dist.mode()
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (coded.float() - shift) * self.vae.config.scaling_factor

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        prompts = list(prompts)
        if self.family == "sd3":
            context, _, pooled, _ = self.pipe.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False
            )
        elif self.family == "flux":
            context, pooled, _ = self.pipe.encode_prompt(prompts, None)
        else:
            context, _, pooled, _ = self.pipe.encode_prompt(
                prompts, do_classifier_free_guidance=False
            )
        return context, pooled

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents to pictures (B, H, W, 3) in [0, 1]."""
        like = next(self.vae.parameters())
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = latents / self.vae.config.scaling_factor + shift
        decoded = self.vae.decode(scaled.to(like.device, like.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def load_encoder(settings: Settings, device: torch.device) -> EmojiEncoder | DiffusersEncoder:
    """The family's encoders for `prepare`."""
    if settings.kind == "emoji":
        return EmojiEncoder(Path(settings.model.base) if settings.model.base else None)
    return DiffusersEncoder(settings, device)
