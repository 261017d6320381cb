"""Read by the tests' server from its custom_nodes: a small random video model, its VAE a clock."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "host"))  # for `small_models`
FRAMES, HEIGHT, WIDTH = 9, 24, 36


class ClockVAE:
    """Every picture of a video (B, C, T, H, W) is as bright as its time, from black to white."""

    def decode(self, samples: Tensor) -> Tensor:
        count, _, frames, height, width = samples.shape
        time = torch.linspace(0, 1, frames)[None, :, None, None, None]
        return time.expand(count, frames, 8 * height, 8 * width, 3).contiguous()


class SmallVideo:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    RETURN_TYPES = ("MODEL", "CONDITIONING", "VAE", "LATENT")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self) -> tuple:
        import small_models

        text = torch.zeros(1, 7, small_models.WAN["text_dim"])
        empty = torch.zeros(1, 16, FRAMES, HEIGHT, WIDTH)
        return small_models.wan_model(), [[text, {}]], ClockVAE(), {"samples": empty}


NODE_CLASS_MAPPINGS = {"SmallVideo": SmallVideo}
