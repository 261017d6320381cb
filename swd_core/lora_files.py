"""Students' files: read in PEFT's layout, as published, and other tools'; written in PEFT's."""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import written_whole
from .lora import LoraLayer, SwDLora, widths
from .lora_config import CONFIG_NAME, LoraConfig, header_config, read_config
from .lora_names import (
    adapter_of,
    architecture_of,
    is_text_encoder,
    kind_of,
    part_of,
)
from .tensor_files import read_tensors, write_tensors

log = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
HOSTS_NAME = "comfyui.safetensors"  # the same for ComfyUI's own Load LoRA
PEFT_PREFIX = "base_model.model."
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def weights_path(path: Path) -> Path:
    """The weights file that `path`, a file or a folder in PEFT's layout, means.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no LoRA file {file}. Give a .safetensors file or a PEFT folder."
        )
    return file


def _read_parts(file: Path) -> tuple[dict[tuple[str, str], Tensor], dict[str, str], bool]:
    """LoRA tensors by (module, part), the header, and whether PEFT wrote the file; all checked."""
    try:
        tensors, metadata = read_tensors(file)
    except ValueError as error:
        raise ValueError(f"{error} Download it again.") from error
    parts = {key: part for key in tensors if (part := part_of(key)) is not None}
    pairs = "" if parts else " holds no LoRA layers (no lora_A/lora_B or lora_down/lora_up pairs)"
    strange = next((key for key in tensors if key not in parts), None)
    if strange is not None:
        raise ValueError(
            f"{file.name}{pairs}: {strange[:120]} is {kind_of(strange)}, so the file can't be "
            "applied as a whole. SwD students are plain LoRAs; for other kinds take ComfyUI's own "
            "Load LoRA node."
        )
    if not parts:
        raise ValueError(f"{file.name}{pairs}. Download it again.")
    adapters = sorted({name for key in parts if (name := adapter_of(key)) is not None})
    if len(adapters) > 1:
        raise ValueError(
            f"{file.name} holds two adapters ({', '.join(adapters[:2])}); which of them is the "
            "student can't be known. Save one of them alone."
        )
    found: dict[tuple[str, str], Tensor] = {}
    for key, part in parts.items():
        _check_tensor(file, key, tensors[key])
        if part in found:
            raise ValueError(f"{file.name} holds the layer {part[0]} twice.")
        found[part] = tensors[key]
    return found, metadata, any(PEFT_PREFIX in key for key in parts)


def _check_tensor(file: Path, key: str, value: Tensor) -> None:
    if key.endswith(".alpha"):
        if value.numel() != 1 or value.is_complex():
            shape = tuple(value.shape)
            raise ValueError(f"{file.name}: {key} must be one real number, not {shape}.")
    elif value.dtype not in _DTYPES:
        raise ValueError(
            f"{file.name}: {key} holds {value.dtype}; LoRA weights are floating-point."
        )
    if not value.float().isfinite().all():
        raise ValueError(f"{file.name}: {key} holds NaN or infinite values. Download it again.")


def _is_pair(down: Tensor | None, up: Tensor | None) -> bool:
    """Whether `up @ down` is an update: 2-D, or a convolution's with a 1x1 `up`."""
    if down is None or up is None or down.ndim not in (2, 4) or up.ndim not in (2, 4):
        return False
    whole = down.numel() > 0 and up.numel() > 0
    return whole and up.shape[1] == down.shape[0] and math.prod(up.shape[2:]) == 1


def read_lora(path: Path) -> SwDLora:
    """Reads a published student (PEFT), or a kohya- or diffusers-style LoRA.

    Args:
        path: adapter_model.safetensors, the folder with it, or a renamed copy. An
            adapter_config.json beside a PEFT file, or beside what a link points to, gives alpha and
            rank (patterns and rsLoRA too), newer diffusers files hold the same in their header;
            without either, and without alpha tensors, alpha is unknown and taken as the rank.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it is damaged, has no LoRA
            layers or more than those, or is for none of the known families.
    """
    file = weights_path(path)
    parts, metadata, is_peft = _read_parts(file)
    modules = list(dict.fromkeys(module for module, _ in parts))
    texts = [module for module in modules if is_text_encoder(module)]
    if texts:
        raise ValueError(
            f"{file.name} also changes the text encoder ({texts[0]}), which no SwD student does. "
            "Use ComfyUI's own Load LoRA node for it."
        )
    for module in modules:
        if not _is_pair(parts.get((module, "down")), parts.get((module, "up"))):
            raise ValueError(f"{file.name}: {module} has no matching pair of low-rank matrices.")
    ranks = {module: parts[module, "down"].shape[0] for module in modules}
    if all((module, "alpha") in parts for module in modules):
        config, scaling = LoraConfig(), "alpha from the file"
    else:
        config, scaling = _config_of(file, metadata, ranks, is_peft)
    layers = {}
    for module, rank in ranks.items():
        alpha = parts.get((module, "alpha"))
        scale = config.scale(module, rank) if alpha is None else float(alpha) / rank
        layers[module] = LoraLayer(parts[module, "down"], parts[module, "up"], scale)
    try:
        architecture = architecture_of(widths(layers))
    except ValueError as error:
        raise ValueError(f"{file.name} is no LoRA for an SwD model: {error}.") from error
    return SwDLora(layers, architecture, metadata, scaling)


def _places(file: Path) -> list[Path]:
    """The file and all that it links to, first where it has the name that PEFT gives it."""
    places = [file]
    while places[-1].is_symlink():
        places.append(places[-1].parent / places[-1].readlink())
    return sorted(places, key=lambda place: place.name != WEIGHTS_NAME)


def _config_of(
    file: Path, metadata: dict[str, str], ranks: dict[str, int], is_peft: bool
) -> tuple[LoraConfig, str]:
    """What scales the layers, and where that comes from.

    A renamed file may lie beside another file's adapter_config.json: one with other ranks isn't
    its own.
    """
    for place in _places(file):
        published = place.name == WEIGHTS_NAME
        config = read_config(place) if is_peft or published else None
        if config is not None and config.fits(ranks):
            linked = "" if place == file else f" beside {place.name}, which the file links to"
            return config, f"alpha from {CONFIG_NAME}{linked}"
        if config is not None and published:
            raise ValueError(
                f"{CONFIG_NAME} beside {place.name} is for a LoRA of other ranks. Download both "
                "again."
            )
    config = header_config(metadata)
    if config is not None:
        return config, "alpha from the file"
    scaling = f"alpha = rank (unknown: no {CONFIG_NAME} of its own, none in the file)"
    log.warning("%s: %s", file.name, scaling)
    return LoraConfig(), scaling


def write_peft(
    folder: Path,
    layers: Mapping[str, LoraLayer],
    *,
    rank: int,
    alpha: float,
    base_model: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a student in the published layout: adapter_model.safetensors and adapter_config.json.

    A kill at any moment leaves the student that was there or the new one, whole.

    Args:
        layers: by diffusers module name; their scale must be alpha / rank.
        metadata: header entries, such as the schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, layer in layers.items():
        if not math.isclose(layer.scale, alpha / rank):
            raise ValueError(f"{module}: scale {layer.scale} is not alpha / rank = {alpha / rank}.")
        tensors[f"base_model.model.{module}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = layer.up.contiguous()
    config = {
        "base_model_name_or_path": base_model,
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({re.sub(r"^transformer_blocks\.\d+\.", "", m) for m in layers}),
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
    }
    text, path = (json.dumps(config, indent=2) + "\n").encode("utf-8"), folder / CONFIG_NAME
    # The weights are placed first: a kill between the two leaves a student without a config, which
    # means alpha = rank, as all of ours have it. The config of another rank would make it unusable.
    with written_whole(path) as file, written_whole(folder / WEIGHTS_NAME) as weights:
        write_tensors(weights, tensors, metadata)
        file.write(text)
        if path.is_file() and path.read_bytes() != text:
            path.unlink()


def write_hosts(
    folder: Path, layers: Mapping[str, LoraLayer], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a transformer's student once more, under the names that others look for.

    ComfyUI's Load LoRA knows PEFT's names for SD3 alone; it and diffusers' load_lora_weights know
    these.

    Args:
        layers: by diffusers module name, alpha equal to the rank.
    """
    tensors = {}
    for module, layer in layers.items():
        tensors[f"transformer.{module}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"transformer.{module}.lora_B.weight"] = layer.up.contiguous()
    with written_whole(folder / HOSTS_NAME) as file:
        write_tensors(file, tensors, metadata)
