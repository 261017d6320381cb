"""A SwD student: the low-rank updates of a model's layers, and the schedule they are made for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .lora_names import (
    base_title,
    base_width,
    host_names,
)
from .schedule import ScaleSchedule


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
        return base_width(widths(self.layers))

    @property
    def title(self) -> str:
        """The base it was made for, such as "SD3.5 Medium"."""
        return base_title(self.architecture, widths(self.layers))

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


def widths(layers: Mapping[str, LoraLayer]) -> dict[str, int]:
    """How wide the input of each layer is."""
    return {module: math.prod(layer.down.shape[1:]) for module, layer in layers.items()}


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
