"""The embedded students' MMDiT behind the trainer's interface, and its layers' published names."""

from dataclasses import dataclass

from torch import Tensor

from ..emoji.model import MMDiT
from ..lora import LoraLayer, sd3_modules
from ..process import FlowMatching
from .interface import Conditioning

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass
class MMDiTModel:
    """The MMDiT of an embedded student, with adapters in its TARGETS."""

    module: MMDiT

    def __post_init__(self) -> None:
        self.middle = len(self.module.joint_blocks) // 2
        self.width = self.module.final_layer.linear.in_features
        self.process = FlowMatching()

    def _walk(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool):
        context, tokens, c = self.module.embed(x, sigma, *text[:2])
        middle = tokens
        for i, block in enumerate(self.module.joint_blocks):
            context, tokens = block(context, tokens, c)
            if i + 1 == self.middle:
                middle = tokens
                if not to_end:
                    return None, middle
        velocity = self.module.head(tokens, c, x.shape[-2])
        return self.process.to_x0(x, velocity, sigma.view(-1, 1, 1, 1)), middle

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        return self._walk(x, sigma, text, to_end=True)[0]

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        return self._walk(x, sigma, text, to_end=False)[1]

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        return self._walk(x, sigma, text, to_end=True)


def published_layers(layers: dict[str, tuple[Tensor, Tensor]]) -> dict[str, LoraLayer]:
    """Host-named adapters with a fused qkv -> the layers of a published SD3.5 student."""
    published = {}
    for layer, (down, up) in layers.items():
        names = sd3_modules(layer)
        for name, part in zip(names, up.chunk(len(names)), strict=True):
            published[name] = LoraLayer(down=down.half(), up=part.half().contiguous(), scale=1.0)
    return published
