"""The seam to ComfyUI: how the host holds the models of each architecture, a class each.

What is data about a family is in swd_core/families.py; this is what takes the host's own code.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.conds
import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.openaimodel as unet
import comfy.model_base
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn

from ..swd_core.families import (
    FLUX,
    FLUX2,
    KREA2,
    QWEN_IMAGE,
    SD3,
    SDXL,
    WAN,
    ZIMAGE,
    Architecture,
)
from ..swd_core.transfer import sent


class Held:
    """The MODELs of one class of the host's.

    `config` is a MODEL's unet_config, `net` its diffusion_model or a copy of it.

    kind: the host's class; None where this version of it has none.
    middle_alone: whether the losses can look at the middle of the model and nowhere else.
    """

    architecture: Architecture
    kind: type | None
    middle_alone = False

    def family(self, config: dict[str, Any]) -> str:
        """The name of its family; "" if no student is known for it."""
        return self.architecture.name

    def context_width(self, config: dict[str, Any]) -> int:
        """How wide the text tokens are that it reads. Raises KeyError where that isn't known."""
        raise KeyError("context")

    def pooled_width(self, config: dict[str, Any]) -> int:
        """How wide the pooled text is that it reads; 0 if it reads none."""
        return 0

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        """The host's own map from the names of diffusers' weights to places among its own."""
        return {}

    def conds(self, base: Any, pooled: Tensor | None, **told: Any) -> dict[str, Any]:
        """What the host's class makes of the pooled text and of what else it is told."""
        return base.extra_conds(pooled_output=pooled, **told)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """Whose activations may be computed again in the backward pass."""
        raise NotImplementedError

    def watched(self, net: nn.Module) -> list[nn.Module]:
        """The blocks whose tokens the losses may compare."""
        raise NotImplementedError

    def tokens(self, output: Any, count: int) -> Tensor:
        """The picture's `count` tokens (B, N, width) of what such a block returns."""
        raise NotImplementedError

    def width(self, net: nn.Module) -> int:
        """Of these tokens."""
        raise NotImplementedError

    def trainable(self, forward: Callable) -> Callable:
        """A block's forward as gradients and adapters can pass it."""
        return forward


class HeldSD3(Held):
    architecture, kind = SD3, comfy.model_base.SD3

    def family(self, config: dict[str, Any]) -> str:
        context = config.get("context_embedder_config", {}).get("params", {}).get("in_features")
        if context == 256 and config.get("pos_embed_max_size") is None:
            return "scenes"
        if config.get("x_block_self_attn_layers"):
            return "sd35-medium"
        return "sd35-large" if config.get("depth", 0) == 38 else "sd3"

    def context_width(self, config: dict[str, Any]) -> int:
        return config["context_embedder_config"]["params"]["in_features"]

    def pooled_width(self, config: dict[str, Any]) -> int:
        return config["adm_in_channels"]

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        return comfy.utils.mmdit_to_diffusers(config)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return list(net.joint_blocks)

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return list(net.joint_blocks)

    def tokens(self, output: tuple[Tensor, Tensor], count: int) -> Tensor:
        return output[1]  # (text, picture)

    def width(self, net: nn.Module) -> int:
        return net.final_layer.linear.in_features

    def trainable(self, forward: Callable) -> Callable:
        return partial(forward, use_checkpoint=False)  # the host's know nothing of adapters


class HeldFlux(Held):
    architecture, kind = FLUX, comfy.model_base.Flux

    def family(self, config: dict[str, Any]) -> str:
        return "flux" if config.get("image_model") == "flux" else ""

    def context_width(self, config: dict[str, Any]) -> int:
        return config["context_in_dim"]

    def pooled_width(self, config: dict[str, Any]) -> int:
        return config["vec_in_dim"]

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        return comfy.utils.flux_to_diffusers(config)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return [*net.double_blocks, *net.single_blocks]

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return list(net.double_blocks)

    def tokens(self, output: tuple[Tensor, Tensor], count: int) -> Tensor:
        return output[0]  # (picture, text)

    def width(self, net: nn.Module) -> int:
        return net.hidden_size

    def trainable(self, forward: Callable) -> Callable:
        """It keeps its inputs; the host's adds to them in place."""

        def unshared(*args: Any, **kwargs: Any) -> Any:
            own = {key: kwargs[key].clone() for key in ("img", "txt") if key in kwargs}
            return forward(*(tokens.clone() for tokens in args), **{**kwargs, **own})

        return unshared


class HeldSDXL(Held):
    architecture, kind = SDXL, comfy.model_base.SDXL
    middle_alone = True

    def context_width(self, config: dict[str, Any]) -> int:
        return config["context_dim"]

    def pooled_width(self, config: dict[str, Any]) -> int:
        return config["adm_in_channels"] - 6 * 256  # six sizes of 256 features are not text

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        return comfy.utils.unet_to_diffusers(config)

    def conds(self, base: Any, pooled: Tensor | None, **told: Any) -> dict[str, Any]:
        """The host works out the sizes on the CPU, and would fetch the pooled text to them."""
        found = super().conds(base, torch.empty(len(pooled), 0), **told)
        sizes = sent(found["y"].cond, pooled.device)
        return {**found, "y": comfy.conds.CONDRegular(torch.cat((pooled, sizes), 1))}

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        kinds = (comfy.ldm.modules.attention.BasicTransformerBlock, unet.ResBlock)
        return [part for part in net.modules() if isinstance(part, kinds)]

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return [net.middle_block[-1]]

    def tokens(self, output: Tensor, count: int) -> Tensor:
        return rearrange(output, "b c h w -> b (h w) c")

    def width(self, net: nn.Module) -> int:
        return net.middle_block[-1].out_channels


class HeldZImage(Held):
    """Z-Image of the class that holds Lumina 2 as well."""

    architecture, kind = ZIMAGE, comfy.model_base.Lumina2
    filled = 32  # a multiple of which the tokens of picture and text are filled up to each

    def family(self, config: dict[str, Any]) -> str:
        whole = config.get("image_model") == "lumina2" and config.get("z_image_modulation")
        return "zimage" if whole and config.get("pad_tokens_multiple") == self.filled else ""

    def context_width(self, config: dict[str, Any]) -> int:
        return config["cap_feat_dim"]

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        return comfy.utils.z_image_to_diffusers(config)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return [*net.noise_refiner, *net.context_refiner, *net.layers]

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return list(net.layers)

    def tokens(self, output: Tensor, count: int) -> Tensor:
        picture = -(-count // self.filled) * self.filled  # behind the text
        return output[:, -picture:][:, :count]

    def width(self, net: nn.Module) -> int:
        return net.dim


class HeldQwenImage(Held):
    """The host calls its layers as diffusers does."""

    architecture, kind = QWEN_IMAGE, comfy.model_base.QwenImage

    def family(self, config: dict[str, Any]) -> str:
        return "qwen-image" if config.get("image_model") == "qwen_image" else ""

    def context_width(self, config: dict[str, Any]) -> int:
        return config.get("joint_attention_dim", 3584)  # the host's own, if it doesn't say

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        ends = [*self.architecture.adapted]
        ends = [f"attn{end}" if end.startswith(".") else f"{side}{end}" for end in ends
                for side in (("",) if end.startswith(".") else ("img", "txt"))]  # fmt: skip
        names = (f"transformer_blocks.{i}.{end}.weight" for i in range(config["num_layers"])
                 for end in ends)  # fmt: skip
        return {name: name for name in names}

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return list(net.transformer_blocks)

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return list(net.transformer_blocks)

    def tokens(self, output: tuple[Tensor, Tensor], count: int) -> Tensor:
        return output[1]  # (text, picture)

    def width(self, net: nn.Module) -> int:
        return net.inner_dim


class HeldFlux2(HeldFlux):
    architecture, kind = FLUX2, getattr(comfy.model_base, "Flux2", None)
    older = re.compile(r"\.net\.|^single_transformer_blocks\.\d+\.(attn\.to_[qkv]\.|proj_)")

    def family(self, config: dict[str, Any]) -> str:
        klein = config.get("image_model") == "flux2" and not config.get("guidance_embed")
        return "flux2-klein" if klein else ""

    def pooled_width(self, config: dict[str, Any]) -> int:
        return 0

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        """Without the names of FLUX.1's layers, which the host's map holds as well."""
        names = super().published(config)
        return {name: place for name, place in names.items() if not self.older.search(name)}


class HeldKrea2(Held):
    architecture, kind = KREA2, getattr(comfy.model_base, "Krea2", None)

    def context_width(self, config: dict[str, Any]) -> int:
        return config["txtlayers"] * config["txtdim"]

    def published(self, config: dict[str, Any]) -> dict[str, Any]:
        return comfy.utils.krea2_to_diffusers(config)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return list(net.blocks)

    def watched(self, net: nn.Module) -> list[nn.Module]:
        return list(net.blocks)

    def tokens(self, output: Tensor, count: int) -> Tensor:
        return output[:, -count:]  # behind the text

    def width(self, net: nn.Module) -> int:
        return net.last.linear.in_features


class HeldWan(Held):
    architecture, kind = WAN, comfy.model_base.WAN21

    def family(self, config: dict[str, Any]) -> str:
        return "wan" if config.get("dim") == 1536 else "wan-other"


_ALL = (
    *(HeldSD3(), HeldFlux2(), HeldFlux(), HeldSDXL(), HeldZImage(), HeldQwenImage()),
    *(HeldKrea2(), HeldWan()),
)
HELD = tuple(each for each in _ALL if each.kind is not None)


def held(model: Any) -> Held | None:
    """How the host holds a MODEL; None for an architecture that has no students."""
    return next((each for each in HELD if isinstance(model.model, each.kind)), None)
