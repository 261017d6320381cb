"""Which loaded models can be distilled, and which of their layers get an adapter."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..swd_core.families import FAMILIES, TRAINABLE, Family
from . import _host_model
from ._host_families import held

_TEACHERS = [FAMILIES[name] for name in TRAINABLE]


def check_trainable(model: Any) -> Family:
    """The family of a MODEL that can be distilled.

    Raises:
        ValueError: if it is of another family, changed by other nodes, or quantised.
    """
    family, base = FAMILIES.get(_host_model.model_family(model)), model.model
    if family is None or not family.adapted:
        raise ValueError(
            f"A {type(base).__name__} model can't be distilled; load "
            f"{', '.join(dict.fromkeys(each.architecture.title for each in _TEACHERS))} or the "
            "embedded scene teacher."
        )
    if model.patches or getattr(model, "injections", None):
        raise ValueError(
            "The model has a LoRA on it; distillation starts from the bare teacher. Take LoRAs "
            "off; for the scene teacher set strength to 0 in Load SwD Scene Student."
        )
    options = {**model.model_options, **model.model_options.get("transformer_options", {})}
    changes = {key for key, value in options.items() if value and key != "transformer_options"}
    changes |= model.object_patches.keys() - {"model_sampling"}
    if changes:
        raise ValueError(
            f"Another node changes how this model runs ({', '.join(sorted(changes)[:3])}). "
            "Distillation starts from the bare teacher: connect its loader."
        )
    channels, config = base.latent_format.latent_channels, base.model_config.unet_config
    packed = channels * family.architecture.multiple**2  # as Qwen-Image counts
    if config.get("in_channels", channels) not in (channels, packed):
        raise ValueError(
            f"This model reads {config['in_channels']} channels, {channels} of them a latent: an "
            "inpainting or control model can't be distilled. Load the base for text to image."
        )
    parts, adapted = base.diffusion_model.named_modules(), adapted_layers(model)
    for name, part in parts:
        if name in adapted or isinstance(part, nn.Linear):
            _check_layer(name, part)
    return family


def _check_layer(name: str, layer: nn.Module) -> None:
    """Raises ValueError if gradients can't go through a layer's weight as it is stored."""
    weight = getattr(layer, "weight", None)
    scaled = getattr(layer, "scale_weight", None) is not None
    plain = type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
    if not isinstance(layer, nn.Linear) or not plain or weight.is_meta or scaled:
        kind = "scaled fp8" if scaled else type(weight if weight is not None else layer).__name__
        raise ValueError(
            f"The model is quantised ({name} holds {kind}), which can't be trained through. Load "
            "it in bf16, fp16 or plain fp8 (no GGUF, no scaled or 4-bit weights)."
        )


def adapted_layers(model: Any) -> dict[str, list[tuple[str, int, int]]]:
    """The host's layers that get an adapter, and what each is to diffusers.

    Returns:
        host layer -> (diffusers module, first row, number of rows) of its parts. A fused layer
        (qkv) has several parts.
    """
    ends = FAMILIES[_host_model.model_family(model)].adapted
    found: dict[str, dict[int, tuple[str, int, int]]] = {}
    for module, layer, first, rows in _published_names(model):
        if layer.endswith(ends):
            found.setdefault(layer, {}).setdefault(first, (module, first, rows))
    return {layer: list(parts.values()) for layer, parts in found.items()}


def weights_mark(model: Any) -> str:
    """What is another text for another teacher: some of the numbers of every adapted layer."""
    layers, mark = dict(model.model.diffusion_model.named_modules()), hashlib.sha256()
    for name in sorted(adapted_layers(model)):  # the host's map has another order in every process
        some = layers[name].weight.detach().flatten()[:64].cpu().contiguous()
        mark.update(some.view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()


def context_width(model: Any) -> int:
    """How wide the text tokens are that a MODEL which can be trained reads."""
    return held(model).context_width(model.model.model_config.unet_config)


def pooled_width(model: Any) -> int:
    """How wide the pooled text is that a MODEL which can be trained reads; 0 if it reads none."""
    return held(model).pooled_width(model.model.model_config.unet_config)


def _published_names(model: Any) -> Iterator[tuple[str, str, int, int]]:
    """The weights of a MODEL under diffusers' names, by the host's own map.

    Yields:
        (diffusers module, the host's layer, its first row there, number of rows).
    """
    names = held(model).published(model.model.model_config.unet_config)
    layers = dict(model.model.diffusion_model.named_modules())
    for key, place in names.items():
        name, part = (place, None) if isinstance(place, str) else place[:2]
        module, _, kind = key.rpartition(".")
        layer = layers.get(name.removesuffix(".weight"))
        if kind == "weight" and layer is not None:
            first, rows = part[1:] if part else (0, getattr(layer, "out_features", 0))
            yield module, name.removesuffix(".weight"), first, rows
