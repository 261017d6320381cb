"""The embedded student, ready to use without a host: text in, latents and pictures out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from ..files import parse_json
from ..lora import SwDLora
from ..lora_files import read_lora
from ..lora_sd3 import merge_sd3
from ..process import FlowMatching
from ..tensor_files import read_tensors
from .autoencoder import FACTOR, Autoencoder
from .model import MMDiT
from .text import SceneTextEncoder, SceneTokenizer, encode_batch

MODEL_FILE, VAE_FILE, TEXT_FILE = (
    "scenes_mmdit.safetensors",
    "scenes_vae.safetensors",
    "scenes_text.safetensors",
)
LORA_FOLDER = "scenes_swd_lora"
PRESET = "scenes-4"
WEIGHTS = Path(__file__).with_name("weights")
INSTALL = (
    "Install the pack again, with ComfyUI's manager or by checking it out anew: its weights come "
    "with it."
)
ELSEWHERE = f"A folder of weights has {MODEL_FILE}, {VAE_FILE}, {TEXT_FILE} and {LORA_FOLDER}."


@dataclass(frozen=True)
class TextConditioning:
    """context (B, T, C), pooled (B, P) and what the tokenizer had to change."""

    context: Tensor
    pooled: Tensor
    messages: tuple[str, ...] = ()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it is damaged.
    """
    return _read(path)[0]


def _way_out(path: Path, elsewhere: str = ELSEWHERE) -> str:
    """What to do about weights that are missing or damaged, the pack's own or others."""
    return INSTALL if path.parent == WEIGHTS else elsewhere


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a weights file."""
    try:
        return read_tensors(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The weights file {path} is missing. {_way_out(path)}") from error
    except ValueError as error:
        way_out = _way_out(path, "Make it again, or copy it anew.")
        raise ValueError(f"The weights file {path} is damaged ({error}). {way_out}") from error


def read_student(folder: Path) -> SwDLora:
    """The student's LoRA.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it is damaged.
    """
    try:
        return read_lora(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The weights in {folder} are missing. {_way_out(folder)}"
        ) from error


def load_text_encoder(path: Path) -> tuple[SceneTokenizer, SceneTextEncoder]:
    """The tokenizer and text encoder of a file whose header holds the vocabulary.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it is damaged or something else.
    """
    state, metadata = _read(path)
    if "vocabulary" not in metadata:
        raise ValueError(
            f"{path} has no vocabulary in its header: it is not the student's text encoder."
        )
    try:
        vocabulary = tuple(parse_json(metadata["vocabulary"], "its vocabulary"))
        encoder = SceneTextEncoder(len(vocabulary), state["words.weight"].shape[1])
        encoder.load_state_dict(state)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not the student's text encoder: {reason}") from error
    return SceneTokenizer(vocabulary), encoder.eval()


class SceneStudent:
    """The student: text encoder, MMDiT (scale-wise LoRA merged in) and autoencoder."""

    process = FlowMatching()
    factor = FACTOR

    def __init__(
        self, tokenizer: SceneTokenizer, text: SceneTextEncoder, model: MMDiT, vae: Autoencoder
    ):
        self.tokenizer, self.text, self.model, self.vae = tokenizer, text, model, vae

    @classmethod
    def load(
        cls,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lora: str | None = LORA_FOLDER,
    ) -> Self:
        """Loads the weights of `folder` (the embedded ones by default).

        Args:
            lora: the student's folder within `folder`; None gives the teacher.

        Raises:
            FileNotFoundError: if a file is missing. ValueError: if one is damaged.
        """
        folder = Path(folder) if folder is not None else WEIGHTS
        tokenizer, text = load_text_encoder(folder / TEXT_FILE)
        state = {k: v.float() for k, v in read_weights(folder / MODEL_FILE).items()}
        if lora:
            state = merge_sd3(state, read_student(folder / lora))
        vae = Autoencoder.from_state_dict(
            {k: v.float() for k, v in read_weights(folder / VAE_FILE).items()}
        )
        modules = [
            m.to(device, dtype).eval().requires_grad_(False)
            for m in (text, MMDiT.from_state_dict(state))
        ]
        vae = vae.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        return cls(tokenizer, *modules, vae)

    @property
    def device(self) -> torch.device:
        return self.text.words.weight.device

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextConditioning:
        """Prompts to conditioning; an empty prompt is the unconditional one."""
        ids, messages = encode_batch(self.tokenizer, prompts)
        context, pooled = self.text(ids.to(self.device))
        return TextConditioning(context, pooled, tuple(m for part in messages for m in part))

    def denoiser(
        self,
        conditioning: TextConditioning,
        negative: TextConditioning | None = None,
        guidance: float = 1.0,
    ) -> Callable[[Tensor, float | Tensor], Tensor]:
        """`denoise(x_t, sigma) -> x0`; with guidance other than 1 the model runs twice."""
        away = None if guidance == 1.0 else negative or self.encode([""])

        def velocity(x: Tensor, sigma: Tensor, text: TextConditioning) -> Tensor:
            rows = (x.shape[0], -1)
            context = text.context.expand(x.shape[0], -1, -1)
            return self.model(x, sigma, context, text.pooled.expand(*rows))

        @torch.inference_mode()
        def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
            level = sigma.to(x) if isinstance(sigma, Tensor) else x.new_full((), sigma)
            level = level.expand(x.shape[0])
            v = velocity(x, level, conditioning)
            if away is not None:
                empty = velocity(x, level, away)
                v = empty + guidance * (v - empty)
            return self.process.to_x0(x, v, sigma)

        return denoise

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, H, W) to images (B, 8H, 8W, 3) in [0, 1]."""
        images = torch.cat([self.vae.decode(z[None].to(self.vae.vae_scale.dtype)) for z in latents])
        return rearrange(images.float().clamp(0, 1), "b c h w -> b h w c")
