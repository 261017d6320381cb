"""What each model family brings: the teacher for the trainer, encoders, published layer names."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..families import SD3, SDXL
from ..lora import LoraLayer
from .adapters import add_adapters
from .conditioning import Conditioning
from .config import Settings
from .diffusers_models import noise_table, wrap
from .encoders import DiffusersVae, read_prompts, vae_of
from .interface import DistillModel
from .prepare import fingerprint
from .sharding import shard, wants_sharding

Pairs = dict[str, tuple[Tensor, Tensor]]


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


@contextmanager
def _loading(kind: str, base: str) -> Iterator[None]:
    """Turns diffusers' many errors into one ValueError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"[model] base {base!r} can't be loaded as a {kind} ({str(error).splitlines()[0]}). "
            "Give a folder in diffusers' layout, or a hub id that you have access to from here."
        ) from error


def pretrained(kind: str, base: str, **options: Any) -> Any:
    """A diffusers class loaded from `base`.

    Raises:
        ValueError: if that isn't possible.
    """
    with _loading(kind, base):
        return getattr(_diffusers(), kind).from_pretrained(base, **options)


def shape_of(settings: Settings) -> dict[str, Any]:
    """The config of the base's transformer or UNet, read without its weights.

    Raises:
        ValueError: if there is none, or it is one of another family.
    """
    names = settings.family.architecture.diffusers
    with _loading(names.pipeline, settings.model.base):
        network = getattr(_diffusers(), names.network)
        config = network.load_config(settings.model.base, subfolder=names.part)
    if config["_class_name"] != names.network:
        raise ValueError(
            f"[model] base {settings.model.base!r} has a {config['_class_name']}, but family "
            f"{settings.model.family} needs a {names.network}. Change one of them."
        )
    return config


def empty_module(settings: Settings) -> Any:
    """The base's transformer or UNet on the meta device: its layers, no weights.

    Raises:
        ValueError: as `shape_of`.
    """
    shape, network = shape_of(settings), settings.family.architecture.diffusers.network
    with torch.device("meta"):
        return getattr(_diffusers(), network).from_config(shape)


def dtype_of(settings: Settings, device: torch.device) -> torch.dtype:
    """The teacher's number format; float32 on a processor."""
    return getattr(torch, settings.model.dtype if device.type != "cpu" else "float32")


def load_pipeline(settings: Settings, device: torch.device, **parts: Any) -> Any:
    """The family's diffusers pipeline, on the CPU. SD3's third text encoder may be absent.

    Args:
        parts: components to take instead of the base's own; None leaves one out.

    Raises:
        ValueError: if it can't be loaded, or is of another family.
    """
    shape_of(settings)
    base = Path(settings.model.base)
    whole = not base.is_dir() or (base / "text_encoder_3").is_dir()
    if settings.family.architecture is SD3 and not whole:
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    kind, dtype = settings.family.architecture.diffusers.pipeline, dtype_of(settings, device)
    return pretrained(kind, settings.model.base, torch_dtype=dtype, **parts)


def load_model(settings: Settings, device: torch.device) -> DistillModel:
    """The teacher with both adapters in it; its weights spread where FSDP is asked for.

    Raises:
        ValueError: if it can't be loaded. FileNotFoundError: if a file is missing.
    """
    torch.manual_seed(settings.train.seed)
    build = _scene_model if settings.family.embedded else _diffusers_model
    if not wants_sharding():
        return build(settings, device, device)
    # Block by block onto the graphics card, which may be too small for all of them.
    model = build(settings, device, torch.device("cpu"))
    shard(model.module, device)
    return model


def _diffusers_model(settings: Settings, device: torch.device, first: torch.device) -> DistillModel:
    """Loaded onto `first`, in the number format for `device`."""
    m = settings.model
    shape_of(settings)
    names, dtype = settings.family.architecture.diffusers, dtype_of(settings, device)
    module = pretrained(names.network, m.base, subfolder=names.part, torch_dtype=dtype).to(first)
    options = {"rank": m.rank, "checkpointing": m.checkpointing, "compile": m.compile}
    options["block"] = watched_block(settings, module)
    if settings.family.architecture.guided:
        options["guidance"] = m.embedded_guidance
    module.train()  # dropout is 0 in all of them; diffusers checkpoints in this mode only
    return wrap(module, **options)


def watched_block(settings: Settings, module: Any) -> int | None:
    """The block whose tokens the losses compare; None for the middle one."""
    count = len(getattr(module, "transformer_blocks", getattr(module, "layers", ())))
    chosen = None if settings.model.block < 0 else settings.model.block
    return settings.family.watched_block(count, chosen)


def _scene_model(settings: Settings, _: torch.device, first: torch.device) -> DistillModel:
    from ..scenes.model import MMDiT
    from ..scenes.student import MODEL_FILE, WEIGHTS, read_weights
    from .mmdit import MMDiTModel

    folder = Path(settings.model.base) if settings.model.base else WEIGHTS
    state = {k: v.float() for k, v in read_weights(folder / MODEL_FILE).items()}
    module = MMDiT.from_state_dict(state).to(first)
    add_adapters(module, settings.family.adapted, ("student", "fake"), settings.model.rank)
    return MMDiTModel(module, None if settings.model.block < 0 else settings.model.block)


def publisher(settings: Settings) -> Callable[[DistillModel, Pairs], dict[str, LoraLayer]]:
    """From the trained matrices to the layers under their published names."""
    if settings.family.embedded:
        from .mmdit import published_layers

        return lambda _, pairs: published_layers(pairs)
    return lambda model, pairs: model.layers(pairs)


def schedule_sigmas(settings: Settings) -> tuple[float, ...]:
    """The schedule's noise levels in the process's own terms; SDXL's timesteps by its table."""
    schedule = settings.scale_schedule()
    if schedule.sigma_kind == "flow":
        return schedule.sigmas
    table = noise_table(settings.family.architecture.betas)
    return tuple(float(table[min(round(t), len(table) - 1)]) for t in schedule.sigmas)


class SceneEncoder:
    """The embedded autoencoder and text encoder."""

    family, factor, multiple = "scenes", 8, 2

    def __init__(self, folder: Path | None = None):
        from ..scenes.student import SceneStudent

        self.student = SceneStudent.load(folder, lora=None)
        self.fingerprint = fingerprint({"vae": self.student.vae, "text": self.student.text})

    def latents(self, pictures: Tensor) -> Tensor:
        return self.student.vae.encode(pictures.to(memory_format=torch.channels_last))

    def text(self, prompts: Sequence[str]) -> Conditioning:
        text = self.student.encode(list(prompts))
        return Conditioning(text.context, text.pooled)

    def unconditional(self) -> Conditioning:
        return self.text([""])

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents to pictures (B, H, W, 3) in [0, 1]."""
        return self.student.decode(latents.cpu())


class DiffusersEncoder:
    """VAE and text encoders of a diffusers pipeline, without its transformer or UNet."""

    def __init__(self, settings: Settings, device: torch.device):
        self.kind, self.device = settings.family.architecture, device
        self.family = settings.family.encoders
        self.text_tokens = settings.data.text_tokens
        self.multiple = self.kind.multiple
        part = self.kind.diffusers.part
        self.pipe = load_pipeline(settings, device, **{part: None}).to(device)
        if self.kind is SD3 and self.pipe.text_encoder_3 is None:
            # The pipeline asks its transformer, which needs no weights for that, for T5's width.
            self.pipe.register_modules(transformer=empty_module(settings))
        self.factor = self.kind.pixels
        self.vae = vae_of(self.kind.name)[1](self.pipe.vae, device)
        modules = {k: m for k, m in self.pipe.components.items() if isinstance(m, nn.Module)}
        modules.pop(part, None)
        tokens = "" if self.kind is SDXL else f"-{self.text_tokens}"
        self.fingerprint = fingerprint(modules) + tokens

    def latents(self, pictures: Tensor) -> Tensor:
        return self.vae.latents(pictures)

    def text(self, prompts: Sequence[str]) -> Conditioning:
        return read_prompts(self.kind.name, self.pipe, list(prompts), self.text_tokens, self.device)

    def unconditional(self) -> Conditioning:
        """What the pipeline's guidance compares with; SDXL's is zero, not the empty prompt."""
        text = self.text([self.kind.diffusers.negative or ""])
        if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
            return text.map(torch.zeros_like)
        return text


def load_encoder(settings: Settings, device: torch.device) -> SceneEncoder | DiffusersEncoder:
    """The family's encoders for `prepare`; the text encoders take most of their memory."""
    if settings.family.embedded:
        return SceneEncoder(Path(settings.model.base) if settings.model.base else None)
    return DiffusersEncoder(settings, device)


def load_decoder(settings: Settings, device: torch.device) -> SceneEncoder | DiffusersVae:
    """What makes pictures of latents; no text encoders with it."""
    if settings.family.embedded:
        return load_encoder(settings, device)
    options = {"subfolder": "vae", "torch_dtype": dtype_of(settings, device)}
    name, wrapped = vae_of(settings.family.architecture.name)
    return wrapped(pretrained(name, settings.model.base, **options), device)
