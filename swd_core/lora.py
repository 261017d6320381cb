"""SwD students as published (PEFT LoRA) -> the host's keys, or merged into SD3-type weights."""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .families import ARCHITECTURES, SD3
from .files import written_whole
from .lora_config import CONFIG_NAME, LoraConfig, header_config, read_config
from .lora_names import (
    adapter_of,
    architecture_of,
    base_title,
    base_width,
    host_names,
    is_text_encoder,
    kind_of,
    part_of,
)
from .schedule import ScaleSchedule
from .tensor_files import read_tensors, write_tensors

log = logging.getLogger(__name__)
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)

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
    """A student: its layers by module name, the architecture it was made for, its header.

    scaling: where the layers' alpha comes from.
    """

    layers: dict[str, LoraLayer]
    architecture: str
    metadata: dict[str, str] = field(default_factory=dict)
    scaling: str = "alpha = rank"

    @property
    def width(self) -> int:
        """The base's token width; 0 if no layer tells."""
        return base_width(_widths(self.layers))

    @property
    def title(self) -> str:
        """The base it was made for, such as "SD3.5 Medium"."""
        return base_title(self.architecture, _widths(self.layers))

    @property
    def schedule(self) -> ScaleSchedule | None:
        """The schedule it was distilled for, if its header has one; our own trainer writes it.

        Raises:
            ValueError: if the header's schedule is damaged.
        """
        if "swd_scales" not in self.metadata:
            return None
        try:
            found = {
                "scales": json.loads(self.metadata["swd_scales"]),
                "sigmas": json.loads(self.metadata["swd_sigmas"]),
                "sigma_kind": self.metadata.get("swd_sigma_kind", "flow"),
                "name": self.metadata.get("swd_preset", ""),
                "frames": tuple(json.loads(self.metadata.get("swd_frames", "[]"))),
            }
            return ScaleSchedule.from_dict(found)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"The schedule in the LoRA's header is damaged ({error}). Train or download it "
                "again."
            ) from error

    @property
    def ranks(self) -> str:
        """ "rank 64", or "ranks 4 to 64" where they differ."""
        found = sorted({layer.rank for layer in self.layers.values()})
        return f"rank {found[0]}" if len(found) == 1 else f"ranks {found[0]} to {found[-1]}"


def schedule_header(schedule: ScaleSchedule) -> dict[str, str]:
    """A student's header entries that `SwDLora.schedule` reads."""
    header = {
        "swd_scales": json.dumps(schedule.scales),
        "swd_sigmas": json.dumps(schedule.sigmas),
        "swd_sigma_kind": schedule.sigma_kind,
        "swd_preset": schedule.name,
    }
    return header | ({"swd_frames": json.dumps(schedule.frames)} if schedule.frames else {})


def _widths(layers: Mapping[str, LoraLayer]) -> dict[str, int]:
    return {module: math.prod(layer.down.shape[1:]) for module, layer in layers.items()}


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
        architecture = architecture_of(_widths(layers))
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


def to_host_state_dict(lora: SwDLora, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The student under the keys the host's own LoRA loader knows, alpha included.

    Args:
        names: the host's name of each module where it isn't the architecture's usual one.
    """
    state = {}
    for module, layer in lora.layers.items():
        stem = (names or {}).get(module) or host_names(lora.architecture, module)[0]
        state[f"{stem}.lora_down.weight"] = layer.down
        state[f"{stem}.lora_up.weight"] = layer.up
        state[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank)
    return state


def sd3_modules(layer: str) -> list[str]:
    """The parts of a host layer such as joint_blocks.0.x_block.attn.qkv by diffusers' names."""
    _, block, leaf = layer.split(".", 2)
    parts = [module for module, (name, _, _) in _SD3_LAYERS.items() if name == leaf]
    return [f"transformer_blocks.{block}.{part}" for part in parts]


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


def merge_sd3(
    state: Mapping[str, Tensor], lora: SwDLora, strength: float = 1.0
) -> dict[str, Tensor]:
    """Adds a student to SD3-type weights in the host's format.

    Args:
        state: host keys (joint_blocks.*). strength: 1 is the student, 0 the base.

    Raises:
        ValueError: if the student is for another architecture, or a layer does not fit.
    """
    if lora.architecture != SD3.name:
        made_for = ARCHITECTURES[lora.architecture].title
        raise ValueError(f"This LoRA was made for {made_for}, not for an SD3-type model.")
    merged = dict(state)
    for module, layer in lora.layers.items():
        key, part, parts = sd3_target(module)
        delta = layer.delta()
        if (
            key not in merged
            or merged[key].shape[0] != parts * delta.shape[0]
            or merged[key].shape[1:] != delta.shape[1:]
        ):
            have = tuple(merged[key].shape) if key in merged else "nothing"
            raise ValueError(
                f"LoRA layer {module} {tuple(delta.shape)} does not fit the base ({have} at {key})."
            )
        weight = merged[key].float().clone()
        rows = delta.shape[0]
        if module.endswith("norm1_context.linear") and delta.shape[0] == 2 * delta.shape[1]:
            # The last context norm is (scale, shift) in diffusers, (shift, scale) in the host.
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
