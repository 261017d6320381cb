"""Read by a test's server from its custom_nodes: the loaders give small random models.

Graphs run as they are, with their own file names; the files themselves may be empty.
"""

import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import nodes

sys.path.append(str(Path(__file__).resolve().parent))  # for `small_models`

WIDTHS = {"lumina2": 48, "qwen_image": 48, "flux2": 48}  # of a text, by the type of its CLIP
FAMILIES = {
    "sd3.5_medium": "sd35-medium", "sd3.5_large": "sd35-large", "sd_xl": "sdxl", "flux1": "flux",
}  # fmt: skip


class RandomText:
    """What the text nodes ask of a CLIP; every text has its own conditioning."""

    def __init__(self, family: str):
        self.family = family

    def tokenize(self, text: str) -> dict[str, str]:
        return {"l": text, "t5xxl": text}

    def encode_from_tokens_scheduled(
        self, tokens: dict[str, str], add_dict: dict[str, Any] | None = None
    ) -> list:
        import small_models

        more = add_dict or {}
        seed = zlib.crc32("".join(dict.fromkeys(tokens.values())).encode())
        width = {"wan": small_models.WAN["text_dim"], **WIDTHS}.get(self.family)
        if width is not None:
            generator = torch.Generator().manual_seed(seed)
            return [[torch.randn(1, 7, width, generator=generator), {**more}]]
        return small_models.conditioning(self.family, seed, **more)


class PlainVAE:
    """Shows the first three channels, 8 x 8 pixels for a cell; encodes their means, repeated."""

    def __init__(self, channels: int = 16, pixels: int = 8):
        self.channels, self.pixels = channels, pixels

    def spacial_compression_encode(self) -> int:
        return self.pixels

    def encode(self, pixels: Tensor) -> Tensor:
        means = F.avg_pool2d(pixels.movedim(-1, 1), 8) * 2 - 1
        return means.repeat(1, 6, 1, 1)[:, : self.channels]

    def decode(self, samples: Tensor) -> Tensor:
        cells = samples[:, :3].movedim(1, -1).sigmoid()
        return cells.repeat_interleave(self.pixels, -3).repeat_interleave(self.pixels, -2)


def small_model(name: str) -> tuple[str, Any]:
    """The family that a published file's name stands for, and its small MODEL."""
    import small_models

    if name.startswith("wan2.2_ti2v"):
        return "wan", small_models.wan_model("WAN22_T2V", in_dim=48, out_dim=48)
    if name.startswith("wan"):
        return "wan", small_models.wan_model()
    if name.startswith("z_image"):
        return "zimage", small_models.other_model("zimage")[0]
    if name.startswith("qwen_image"):
        return "qwen", small_models.qwen_model()
    if name.startswith("flux-2"):
        return "flux2", small_models.flux2_model()
    [family] = [f for start, f in FAMILIES.items() if name.startswith(start)]
    return family, small_models.host_model(family)


def load_checkpoint(self: Any, ckpt_name: str) -> tuple:
    family, model = small_model(ckpt_name)
    return model, RandomText(family), PlainVAE(4 if family == "sdxl" else 16)


def load_unet(self: Any, unet_name: str, weight_dtype: str) -> tuple:
    return (small_model(unet_name)[1],)


def load_clip(
    self: Any, clip_name1: str, clip_name2: str, type: str, device: str = "default"
) -> tuple:
    return (RandomText(type),)


def load_one_clip(self: Any, clip_name: str, type: str, device: str = "default") -> tuple:
    return (RandomText(type),)


def load_vae(self: Any, vae_name: str) -> tuple:
    return (PlainVAE(pixels=16 if vae_name.startswith(("flux2", "wan2.2")) else 8),)


nodes.CheckpointLoaderSimple.load_checkpoint = load_checkpoint
nodes.UNETLoader.load_unet = load_unet
nodes.CLIPLoader.load_clip = load_one_clip
nodes.DualCLIPLoader.load_clip = load_clip
nodes.VAELoader.load_vae = load_vae
