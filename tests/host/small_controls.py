"""Small random ControlNets of the host's own classes, for small_models.py's families."""

from functools import lru_cache
from typing import Any

import comfy.cldm.cldm
import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.model_management
import comfy.ops
import torch
from small_models import SDXL_CONFIG, host_model
from torch import nn

NOT_OF_THE_NET = ("disable_unet_model_creation", "dtype", "image_model")


class HintVAE:
    """What a ControlNet asks of a VAE: a fixed linear map of 8 x 8 pixels to a latent cell."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        image = nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        weights = torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(2))
        return nn.functional.conv2d(image, weights)


def _control_model(family: str) -> nn.Module:
    torch.manual_seed(9)
    operations = comfy.ops.disable_weight_init
    if family == "sdxl":
        config = {
            k: v
            for k, v in SDXL_CONFIG.items()
            if k not in ("out_channels", "transformer_depth_output")
        }
        module = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=operations)
    elif family == "flux":
        config = dict(host_model("flux").model.model_config.unet_config)
        module = comfy.ldm.flux.controlnet.ControlNetFlux(
            latent_input=True, control_latent_channels=16, operations=operations,
            device="cpu", dtype=torch.float32,
            **{k: v for k, v in config.items() if k not in NOT_OF_THE_NET},
        )  # fmt: skip
        module.main_model_double, module.main_model_single = 2, 2
    else:
        config = dict(host_model(family).model.model_config.unet_config)
        config = {
            k: v
            for k, v in config.items()
            if k not in ("image_model", "depth", "dtype", "disable_unet_model_creation")
        }
        module = comfy.cldm.mmdit.ControlNet(
            num_blocks=1, control_latent_channels=16, operations=operations, device="cpu",
            dtype=torch.float32, **config, depth=2,
        )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():  # the host leaves them as the memory happened to be
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 400
            parameter.copy_(torch.randn(parameter.shape) / fan_in**0.5)
        for buffer in module.buffers():
            buffer.zero_()
    return module.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def control_of(family: str) -> tuple[Any, HintVAE | None]:
    """A ControlNet for models of `family`, and the VAE for its hint where it wants one."""
    more: dict[str, Any] = {"load_device": comfy.model_management.get_torch_device()}
    if family == "sdxl":
        return comfy.controlnet.ControlNet(_control_model(family), **more), None
    vae = HintVAE()
    if family == "flux":
        more |= {"latent_format": comfy.latent_formats.Flux(), "extra_conds": ["y", "guidance"]}
    else:
        more["latent_format"] = comfy.latent_formats.SD3()
    return comfy.controlnet.ControlNet(_control_model(family), compression_ratio=1, **more), vae
