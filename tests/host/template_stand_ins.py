"""Read by a test's server from its custom_nodes: every loader of the templates gives small ones.

Adds to stand_ins.py what the templates want beyond our own graphs: pictures in, models with more
input channels, ControlNets, and encoders of pictures.
"""

import sys
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_patcher
import comfy.supported_models
import torch
import torch.nn.functional as F
from torch import Tensor

import nodes

sys.path.append(str(Path(__file__).resolve().parent))  # for the modules beside this one

from stand_ins import PlainVAE, RandomText, small_model

MORE_INPUTS = {"-fill-": (96, "FluxInpaint"), "-canny-": (32, "Flux")}  # latent channels in


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


class PictureVAE(PlainVAE):
    """A fixed linear map of 8 x 8 pixels to a latent cell."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        cells = F.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8) - 0.5
        return F.conv2d(cells, random(self.channels, 3, 1, 1))


class PictureTokens:
    """What the nodes ask of a CLIP vision model: numbers that follow from the picture."""

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        cells = F.adaptive_avg_pool2d(image[..., :3].movedim(-1, 1), 4).flatten(1) - 0.5
        found = comfy.clip_vision.Output()
        found.image_embeds = cells @ random(48, 1280)
        found.last_hidden_state = (cells @ random(48, 4 * 64)).view(-1, 4, 64)
        found.all_hidden_states = (cells @ random(48, 24 * 4 * 64)).view(-1, 24, 4, 64)
        found.penultimate_hidden_states = found.all_hidden_states[:, -2]
        return found


class Style:
    """What StyleModelApply asks of a style model."""

    def get_cond(self, tokens: comfy.clip_vision.Output) -> Tensor:
        return tokens.last_hidden_state


def widened(model: Any, channels: int, kind: str) -> Any:
    """The small FLUX with more input channels: its weights, and random ones for the new ones."""
    import small_models

    state = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    weight = state["img_in.weight"]
    added = random(weight.shape[0], 4 * channels - weight.shape[1]) / (4 * channels) ** 0.5
    state["img_in.weight"] = torch.cat([weight, added], 1)
    config = {**model.model.model_config.unet_config, "in_channels": channels}
    built = getattr(comfy.supported_models, kind)(config)
    return small_models.patcher(built, state, torch.float32)


def load_unet(self: Any, unet_name: str, weight_dtype: str) -> tuple:
    _, model = small_model(unet_name)
    for mark, (channels, kind) in MORE_INPUTS.items():
        if mark in unet_name:
            model = widened(model, channels, kind)
    return (model,)


def load_checkpoint(self: Any, ckpt_name: str) -> tuple:
    import small_models

    family, model = small_model(ckpt_name)
    return model, RandomText(family), PictureVAE(small_models.KINDS[family].channels)


def load_vae(self: Any, vae_name: str) -> tuple:
    return (PictureVAE(16),)


def load_controlnet(self: Any, control_net_name: str) -> tuple:
    import small_controls

    return (small_controls.control_of("sd35-large")[0],)


def load_patch(self: Any, name: str) -> tuple:
    """The host's own network behind USO's style pictures, small."""
    import small_models
    from comfy_extras.nodes_model_patch import SigLIPMultiFeatProjModel

    net = SigLIPMultiFeatProjModel(4, 2, 64, 256, operations=torch.nn)
    net.load_state_dict(small_models.random_weights(net))
    cpu = torch.device("cpu")
    return (comfy.model_patcher.ModelPatcher(net, load_device=cpu, offload_device=cpu),)


nodes.UNETLoader.load_unet = load_unet
nodes.CheckpointLoaderSimple.load_checkpoint = load_checkpoint
nodes.VAELoader.load_vae = load_vae
nodes.ControlNetLoader.load_controlnet = load_controlnet
nodes.CLIPVisionLoader.load_clip = lambda self, clip_name: (PictureTokens(),)
nodes.StyleModelLoader.load_style_model = lambda self, style_model_name: (Style(),)
nodes.NODE_CLASS_MAPPINGS["ModelPatchLoader"].load_model_patch = load_patch
