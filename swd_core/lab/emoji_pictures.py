"""The embedded student's training pictures: Microsoft Fluent emoji (MIT)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..emoji.catalogue import catalogue

IMAGE_SIZE = 256


def load_image(path: Path) -> Image.Image:
    """Opens a picture and lays it on white, as RGB."""
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def load_images(assets: Path) -> Tensor:
    """Loads every emoji of the catalogue.

    Returns:
        uint8 tensor (N, 3, 256, 256) on white.

    Raises:
        FileNotFoundError: if `assets` lacks one of the pictures.
    """
    pictures = []
    for entry in catalogue():
        path = assets / f"{entry['code']}.webp"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. Unpack the npm package @lobehub/fluent-emoji-3d and give its "
                "assets folder (`make emoji-data` does both)."
            )
        picture = load_image(path)
        if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
            picture = picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
        pictures.append(np.asarray(picture))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # BHWC -> BCHW
