"""The embedded students' MMDiT behind the trainer's interface, and its layers' published names."""

import torch
from torch import Tensor

from ..families import existing_block
from ..lora import LoraLayer
from ..lora_sd3 import sd3_modules
from ..process import FlowMatching
from ..scenes.model import MMDiT
from .conditioning import Conditioning
from .watch import Watched


class MMDiTModel(Watched):
    """The MMDiT of an embedded student, with both adapters in it.

    Args:
        block: the block, counted from 0, whose tokens the losses compare; None for the middle.

    Raises:
        ValueError: if there is no such block.
    """

    def __init__(self, module: MMDiT, block: int | None = None):
        self.module = module
        self.watched = module.joint_blocks[existing_block(len(module.joint_blocks), block)]
        self.width = module.final_layer.linear.in_features
        self.process = FlowMatching()

    def level(self, t: Tensor) -> Tensor:
        return t

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        velocity = self.module(x, sigma, text.context, text.pooled)
        return self.process.to_x0(x, velocity, sigma.view(-1, 1, 1, 1))

    def tokens(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]  # (text, picture)

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        # In two passes: attention without a graph has other last bits, and trainings go on with
        # those that they began with.
        with torch.no_grad():
            x0 = self.predict(x, sigma, text)
        return x0, self.features(x, sigma, text)


def published_layers(layers: dict[str, tuple[Tensor, Tensor]]) -> dict[str, LoraLayer]:
    """Host-named adapters with a fused qkv -> the layers of a published SD3.5 student."""
    published = {}
    for layer, (down, up) in layers.items():
        names = sd3_modules(layer)
        for name, part in zip(names, up.chunk(len(names)), strict=True):
            published[name] = LoraLayer(down=down.half(), up=part.half().contiguous(), scale=1.0)
    return published
