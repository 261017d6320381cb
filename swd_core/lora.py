"""SwD students as published (PEFT LoRA files) -> the host's keys, or merged into SD3-type weights."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
FAMILIES = {"sd3": "SD3.5", "flux": "FLUX.1", "sdxl": "SDXL"}

_DOWN = re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.default)?\.weight$")
_UP_OF = {
    "lora_A": "lora_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
}
_PREFIXES = ("base_model.model.", "transformer.", "unet.", "diffusion_model.")

# diffusers' SD3 module -> the host's layer and which part of it (a fused layer has several).
_SD3_LAYERS = {
    "attn.to_q": ("x_block.attn.qkv", 0, 3),
    "attn.to_k": ("x_block.attn.qkv", 1, 3),
    "attn.to_v": ("x_block.attn.qkv", 2, 3),
    "attn.to_out.0": ("x_block.attn.proj", 0, 1),
    "attn.add_q_proj": ("context_block.attn.qkv", 0, 3),
    "attn.add_k_proj": ("context_block.attn.qkv", 1, 3),
    "attn.add_v_proj": ("context_block.attn.qkv", 2, 3),
    "attn.to_add_out": ("context_block.attn.proj", 0, 1),
    "attn2.to_q": ("x_block.attn2.qkv", 0, 3),
    "attn2.to_k": ("x_block.attn2.qkv", 1, 3),
    "attn2.to_v": ("x_block.attn2.qkv", 2, 3),
    "attn2.to_out.0": ("x_block.attn2.proj", 0, 1),
    "ff.net.0.proj": ("x_block.mlp.fc1", 0, 1),
    "ff.net.2": ("x_block.mlp.fc2", 0, 1),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", 0, 1),
    "ff_context.net.2": ("context_block.mlp.fc2", 0, 1),
    "norm1.linear": ("x_block.adaLN_modulation.1", 0, 1),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", 0, 1),
}


@dataclass(frozen=True)
class LoraLayer:
    """One low-rank update: weight += strength * scale * up @ down.

    down: (rank, in) or (rank, in, kh, kw). up: (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The full update in float32, shaped as the weight it belongs to."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return self.scale * product.reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class SwDLora:
    """A student: its layers by diffusers module name, the family it was made for, its header."""

    layers: dict[str, LoraLayer]
    family: str
    metadata: dict[str, str] = field(default_factory=dict)


def weights_path(path: Path) -> Path:
    """The weights file that `path`, a file or a folder in PEFT's layout, means.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no LoRA file {file}. Give a .safetensors file or a PEFT folder.")
    return file


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file, checked."""
    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{file.name} is not a whole safetensors file ({error}). Download it again."
        ) from error
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{file.name}: {key} holds {value.dtype}; LoRA weights are floating-point.")
        if not value.float().isfinite().all():
            raise ValueError(f"{file.name}: {key} holds NaN or infinite values. Download it again.")
    return tensors, metadata


def _read_config(file: Path) -> dict[str, Any]:
    """adapter_config.json beside a PEFT file; {} where there is none."""
    path = file.with_name(CONFIG_NAME)
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} beside {file.name} can't be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} beside {file.name} must be a JSON object.")
    return config


def _pattern_value(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    """PEFT's rule: a pattern matches the whole module name or its end after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def family_of(modules: list[str]) -> str:
    """Which base a set of diffusers module names belongs to.

    Raises:
        ValueError: if it is none of FAMILIES.
    """
    text = "\n".join(modules)
    if "single_transformer_blocks" in text:
        return "flux"
    if re.search(r"(^|\n)transformer_blocks\.\d+\.", text):
        return "flux" if re.search(r"norm1\.linear$", text) and "img_" in text else "sd3"
    if "down_blocks" in text or "mid_block" in text:
        return "sdxl"
    raise ValueError(
        f"These LoRA layers ({', '.join(modules[:3])}, ...) belong to none of "
        f"{', '.join(FAMILIES.values())}."
    )


def read_lora(path: Path) -> SwDLora:
    """Reads a published student, or a diffusers-style LoRA.

    Args:
        path: adapter_model.safetensors, the folder with it, or a renamed copy. An
            adapter_config.json beside it gives alpha and rank (patterns and rsLoRA too); without
            one, and without alpha tensors, alpha equals the rank.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it is damaged, has no LoRA
            layers, or is for none of the known families.
    """
    file = weights_path(path)
    tensors, metadata = _read_tensors(file)
    config = _read_config(file)
    layers: dict[str, LoraLayer] = {}
    for key, down in tensors.items():
        found = _DOWN.search(key)
        if found is None:
            continue
        stem = key[: found.start()]
        ending = found.group()
        for name, opposite in _UP_OF.items():
            ending = ending.replace(name, opposite) if name in found.group() else ending
        up = tensors.get(stem + ending)
        if up is None or up.ndim < 2 or down.ndim < 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{file.name}: {stem} has no matching pair of low-rank matrices.")
        module = stem
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        layers[module] = LoraLayer(down, up, _scale(tensors, config, stem, module, down.shape[0]))
    if not layers:
        raise ValueError(f"{file.name} holds no LoRA layers (no lora_A/lora_B or lora_down/lora_up pairs).")
    return SwDLora(layers, family_of(list(layers)), dict(metadata))


def _scale(tensors: dict[str, Tensor], config: dict[str, Any], stem: str, module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    if f"{stem}.alpha" in tensors:
        return float(tensors[f"{stem}.alpha"]) / rank
    alpha = _pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def host_name(family: str, module: str) -> str:
    """The name under which the host's own LoRA loader knows a diffusers module."""
    return "lora_unet_" + module.replace(".", "_") if family == "sdxl" else f"transformer.{module}"


def to_host_state_dict(lora: SwDLora) -> dict[str, Tensor]:
    """The student under the keys the host's own LoRA loader knows for its family, alpha included."""
    state = {}
    for module, layer in lora.layers.items():
        stem = host_name(lora.family, module)
        state[f"{stem}.lora_down.weight"] = layer.down
        state[f"{stem}.lora_up.weight"] = layer.up
        state[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank)
    return state


def sd3_target(module: str) -> tuple[str, int, int]:
    """Host weight, part and number of parts for a diffusers SD3 module.

    Raises:
        ValueError: if SD3 has no such module.
    """
    found = re.match(r"transformer_blocks\.(\d+)\.(.+)$", module)
    if found is None or found.group(2) not in _SD3_LAYERS:
        raise ValueError(f"{module} is not a layer of an SD3-type model.")
    layer, part, parts = _SD3_LAYERS[found.group(2)]
    return f"joint_blocks.{found.group(1)}.{layer}.weight", part, parts


def merge_sd3(state: Mapping[str, Tensor], lora: SwDLora, strength: float = 1.0) -> dict[str, Tensor]:
    """Adds a student to SD3-type weights in the host's format.

    Args:
        state: host keys (joint_blocks.*). strength: 1 is the student, 0 the base.

    Raises:
        ValueError: if the student is for another family, or a layer does not fit.
    """
    if lora.family != "sd3":
        raise ValueError(f"This LoRA was made for {FAMILIES[lora.family]}, not for an SD3-type model.")
    merged = dict(state)
    for module, layer in lora.layers.items():
        key, part, parts = sd3_target(module)
        delta = layer.delta()
        if key not in merged or merged[key].shape[0] != parts * delta.shape[0] or merged[key].shape[1:] != delta.shape[1:]:
            have = tuple(merged[key].shape) if key in merged else "nothing"
            raise ValueError(f"LoRA layer {module} {tuple(delta.shape)} does not fit the base ({have} at {key}).")
        weight = merged[key].float().clone()
        rows = delta.shape[0]
        if module.endswith("norm1_context.linear") and delta.shape[0] == 2 * delta.shape[1]:
            # The last block's context norm has (scale, shift) in diffusers, (shift, scale) in the host.
            delta = torch.cat(delta.chunk(2)[::-1])
        weight[part * rows : (part + 1) * rows] += strength * delta.to(weight.device)
        merged[key] = weight.to(merged[key].dtype)
    return merged


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
    save_file(tensors, folder / WEIGHTS_NAME, dict(metadata or {}))
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
