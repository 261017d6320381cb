"""The seam to ComfyUI: a LoRA added to a MODEL, and the schedule that travels with it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.utils

from ..swd_core.lora import LoraLayer, SwDLora, to_host_state_dict
from ..swd_core.lora_names import host_names
from ..swd_core.schedule import ScaleSchedule, one_line

ITS_SCHEDULE = "swd_schedule"  # a MODEL's attachment


@dataclass(frozen=True)
class OwnSchedule:
    """The schedule that a student's header gives, and what the student is called."""

    schedule: ScaleSchedule
    student: str

    @property
    def text(self) -> str:
        named = f" ({self.schedule.name})" if self.schedule.name else ""
        return f"the own schedule of {one_line(self.student)}{named}"


@dataclass(frozen=True)
class LoraReport:
    """How much of a LoRA found its place in a model."""

    layers: int
    unmatched: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.layers - len(self.unmatched)} of {self.layers} layers applied"

    def raise_if_partial(self) -> None:
        """Raises ValueError that names the first layers without a place."""
        if self.unmatched:
            more = f" and {len(self.unmatched) - 5} more" if len(self.unmatched) > 5 else ""
            fitting = self.layers - len(self.unmatched)
            raise ValueError(
                f"Only {fitting} of {self.layers} layers fit this model; no place for "
                f"{', '.join(self.unmatched[:5])}{more}. The file was made for another version of "
                "it, so nothing was applied."
            )


def apply_lora(model: Any, lora: SwDLora, strength: float, called: str) -> tuple[Any, LoraReport]:
    """A clone of the MODEL with the LoRA added by the host's own machinery, and what matched.

    A layer without a place, or of another shape than its place, counts as unmatched. The schedule
    of the LoRA's header goes with the clone; one that the MODEL has already stays if there is none.

    Args:
        called: the LoRA's name for people.

    Raises:
        ValueError: if that schedule is damaged.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    names: dict[str, str] = {}
    places: dict[Any, str] = {}
    for module, layer in lora.layers.items():
        name = next((n for n in host_names(lora.architecture, module) if n in known), None)
        place = known.get(name)
        if place is not None and place not in places and _fits(model.model, place, layer):
            names[module], places[place] = name, module
    fitting = {module: lora.layers[module] for module in names}
    state = to_host_state_dict(replace(lora, layers=fitting), names)
    patched = model.clone()
    patches = comfy.lora.load_lora(state, {name: known[name] for name in names.values()})
    applied = {places[place] for place in patched.add_patches(patches, strength)}
    schedule = lora.schedule
    if schedule is not None:
        patched.set_attachments(ITS_SCHEDULE, OwnSchedule(schedule, called))
    return patched, LoraReport(len(lora.layers), tuple(m for m in lora.layers if m not in applied))


def own_schedule(model: Any) -> OwnSchedule | None:
    """The schedule of the MODEL's student, if its header gives one; clones of the MODEL keep it."""
    return model.get_attachment(ITS_SCHEDULE)


def _fits(model: Any, place: Any, layer: LoraLayer) -> bool:
    """Whether a layer's update has the shape of the weight, or of the part of it, it belongs to."""
    key, part = (place, None) if isinstance(place, str) else place[:2]
    try:
        # Not the state dict's: packed weights (GGUF, 4 bit) show their own storage there.
        shape = list(comfy.utils.get_attr(model, key).shape)
    except AttributeError:
        return False
    if part is not None:
        if part[1] + part[2] > shape[part[0]]:
            return False
        shape[part[0]] = part[2]
    return shape[0] == layer.up.shape[0] and math.prod(shape[1:]) == math.prod(layer.down.shape[1:])
