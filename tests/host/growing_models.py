"""The models that people grow, small and random, by name; in this process and in a server's.

Read by a server from its custom_nodes it adds nodes that load them.
"""

import sys
import zlib
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent))  # for `small_models`

# Latent height and width: square, and as near as small ones come to 832 x 1216 and 1536 x 640.
SIZES = ((16, 16), (26, 38), (48, 20))
STUDENTS = ("sd35-medium", "flux", "sdxl")  # bases that have them
MODELS = (
    "zimage", "qwen-image", "flux2", "wan22-14b", "wan22-5b", "chroma", "krea2", "ernie", "hidream",
    "anima", *STUDENTS,
)  # fmt: skip


def make(name: str) -> tuple[Any, int] | None:
    """The MODEL and the width of its text; None where this ComfyUI has no class for it."""
    import comfy.supported_models
    import small_models as small

    if name in STUDENTS:
        return small.host_model(name), small.KINDS[name].context
    if name == "qwen-image":
        return small.qwen_model(), 48
    if name == "flux2":
        known = hasattr(comfy.supported_models, "Flux2")
        return (small.flux2_model(), 48) if known else None
    if name == "wan22-14b":
        return small.wan_model(), 32
    if name == "wan22-5b":
        return small.wan_model("WAN22_T2V", in_dim=48, out_dim=48), 32
    return small.other_model(name)


def text(width: int, seed: int = 1, tokens: int = 8, pooled: int = 768) -> list:
    generator = torch.Generator().manual_seed(seed)
    more = {
        "pooled_output": torch.zeros(1, pooled),  # ComfyUI 0.3.64's Chroma asks for one too
        "conditioning_llama3": torch.randn(1, 1, tokens, width, generator=generator),  # HiDream
        "t5xxl_ids": torch.arange(tokens),  # Anima
        "t5xxl_weights": torch.ones(tokens),
    }
    return [[torch.randn(1, tokens, width, generator=generator), more]]


def empty(model: Any, size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    latent = model.get_model_object("latent_format")
    frames = (3,) if latent.latent_dimensions == 3 and "WAN" in type(model.model).__name__ else (1,)
    time = frames if latent.latent_dimensions == 3 else ()
    return torch.zeros(batch, latent.latent_channels, *time, *size)


class SmallModel:
    """MODEL, two texts and an empty latent of one of MODELS."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    FUNCTION, CATEGORY = "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        sizes = {name: ("INT", {"default": 16}) for name in ("height", "width", "batch")}
        return {"required": {"name": (list(MODELS),), **sizes}}

    def load(self, name: str, height: int, width: int, batch: int) -> tuple:
        import small_models as small

        model, wide = make(name)
        pooled = small.KINDS[name].pooled if name in STUDENTS else 768
        texts = (text(wide, zlib.crc32(name.encode()) + i, pooled=pooled) for i in range(2))
        return model, *texts, {"samples": empty(model, (height, width), batch)}


NODE_CLASS_MAPPINGS = {"SmallModel": SmallModel}
