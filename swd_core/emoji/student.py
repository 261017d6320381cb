"""The embedded student of emoji: what is its own beside the student of scenes."""

from pathlib import Path

import torch

from ..scenes.student import Files, SceneStudent, load_text_encoder
from .text import EmojiTextEncoder, EmojiTokenizer

WEIGHTS = Path(__file__).with_name("weights")
MODEL_FILE, VAE_FILE, TEXT_FILE = (
    "emoji_mmdit.safetensors",
    "emoji_vae.safetensors",
    "emoji_text.safetensors",
)
LORA_FOLDER = "emoji_swd_lora"
PRESET = "emoji-4"


def load_emoji_text(path: Path) -> tuple[EmojiTokenizer, EmojiTextEncoder]:
    """As `load_text_encoder`."""
    return load_text_encoder(path, EmojiTokenizer, EmojiTextEncoder)


class EmojiStudent(SceneStudent):
    """The embedded student: text encoder, MMDiT (scale-wise LoRA merged in) and autoencoder."""

    files = Files(WEIGHTS, MODEL_FILE, VAE_FILE, TEXT_FILE, LORA_FOLDER)
    load_text = staticmethod(load_emoji_text)

    @classmethod
    def load(
        cls,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lora: str | None = LORA_FOLDER,
    ) -> "EmojiStudent":
        """As `SceneStudent.load`."""
        return super().load(folder, device, dtype, lora)
