"""Which schedule a node's widgets mean: the model's own, a preset by name, or as typed."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.extend import extend_schedule
from ..swd_core.presets import Preset, presets, read_presets
from ..swd_core.schedule import ScaleSchedule, parse_steps
from ._host_lora import OwnSchedule

log = logging.getLogger(__name__)
AUTO, CUSTOM = "auto", "custom"
OWN = "the student's own"
USER_FILE = "swd_presets.json"
USUAL_TARGET = 1024  # pixels


def user_presets() -> dict[str, Preset]:
    """Presets of swd_presets.json in the host's user folder; broken ones are reported."""
    path = Path(folder_paths.get_user_directory()) / USER_FILE
    if not os.path.lexists(path):
        return {}
    found, problems = read_presets(path)
    for problem in problems:
        log.warning("%s", problem)
    return found


def travelling_name(name: str, preset: Preset) -> str:
    """A user's preset as a menu entry with its values, so that a shared graph runs anywhere."""
    schedule = preset.schedule
    scales = " ".join(f"{s:.12g}" for s in schedule.scales)
    sigmas = " ".join(f"{s:.12g}" for s in schedule.sigmas)
    kind = " t" if schedule.sigma_kind == "timestep" else ""
    frames = " ".join(f"{f:.12g}" for f in schedule.frames)
    time = f" # {frames}" if frames else ""
    return f"{name} ({preset.family}): {scales} @{kind} {sigmas}{time}"


def read_travelling(value: str) -> tuple[ScaleSchedule, str]:
    """The schedule of such an entry, and the family it is for.

    Raises:
        ValueError: if it is neither a preset's name nor such an entry.
    """
    title, colon, rest = value.rpartition(": ")
    name, bracket, family = title.removesuffix(")").rpartition(" (")
    if not bracket:
        name, family = title, ""
    scales, at, levels = rest.partition(" @")
    sigmas, _, frames = levels.partition(" # ")
    if not colon or not at:
        raise ValueError(
            f"There is no preset {value!r}. Choose one of {', '.join(presets())}, or custom."
        )
    kind = "timestep" if sigmas.startswith(" t ") else "flow"
    schedule = ScaleSchedule(
        parse_steps(scales, "scales"),
        parse_steps(sigmas.removeprefix(" t"), "sigmas"),
        kind,
        name,
        parse_steps(frames, "frames"),
    )
    return schedule, family


def named_schedule(value: Any) -> tuple[ScaleSchedule, str, Preset | None]:
    """The schedule of a preset's name or a travelling entry, its family, and the preset if any.

    Raises:
        ValueError: if it is neither.
    """
    entry = presets().get(value) if isinstance(value, str) else None
    if entry is not None:
        return entry.schedule, entry.family, entry
    return *read_travelling(str(value)), None


def custom_schedule(sizes: str, sigmas: str, frames: str = "") -> ScaleSchedule:
    """A schedule typed as lists: sizes as fractions, pixels or latent sides, target last.

    Args:
        frames: of a video, as shares of time, or pictures or latent frames with the target last;
            both count from the first one, which is there at every step. Empty: all throughout.
    """
    steps = parse_steps(sizes, "custom_sizes")
    if not steps:
        raise ValueError(
            "custom_sizes is empty. Type one size per step, such as 0.5 0.75 1 or 512 768 1024."
        )
    levels = parse_steps(sigmas, "custom_sigmas")
    if levels and levels[-1] == 0:
        levels = levels[:-1]
    if not levels:
        raise ValueError("custom_sigmas is empty. Type one sigma per step, such as 1 0.8 0.6.")
    largest = steps[-1]
    scales = tuple(size / largest for size in steps) if largest > 1 else steps
    kind = "timestep" if max(levels) > 1 else "flow"
    if kind == "timestep" and levels[0] < 20:
        raise ValueError(
            f"custom_sigmas, step 1: {levels[0]:g} is no timestep to begin at. A flow model's "
            "sigmas are 0 to 1, such as 1 0.8 0.6; for SDXL type timesteps up to 1000, such as "
            "1000 800 600 400: the node works out their sigmas."
        )
    times = parse_steps(frames, "custom_frames")
    if times and times[-1] > 1:
        times = tuple((count - 1) / (times[-1] - 1) for count in times)
    return ScaleSchedule(scales, levels, kind, CUSTOM, times)


def choose(
    preset: str,
    family: str,
    sizes: str,
    sigmas: str,
    own: OwnSchedule | None = None,
    frames: str = "",
) -> tuple[ScaleSchedule, Preset | None]:
    """The schedule a node's widgets mean for a model of `family`.

    Args:
        own: auto is this one where there is one.

    Raises:
        ValueError: for an unknown model, a preset of another family, or broken values.
    """
    known = presets()
    if preset == CUSTOM:
        return custom_schedule(sizes, sigmas, frames), None
    if preset == AUTO:
        usual = next((e for e in known.values() if e.auto and e.family == family), None)
        if own is not None:
            return replace(own.schedule, name=own.schedule.name or OWN), usual
        if usual is not None:
            return usual.schedule, usual
        raise ValueError(
            "There is no SwD preset for this model. Choose one of "
            f"{', '.join(known)} if the model is one of these students, or custom; for a model "
            "that is no student put SwD Growth Schedule in this node's place."
        )
    schedule, meant, entry = named_schedule(preset)
    unknown = (family, meant) == ("wan-other", "wan")
    unknown |= family == "sd3" and meant.startswith("sd35-")
    if meant not in ("", family) and not unknown:
        students = any(entry.auto and entry.family == family for entry in known.values())
        raise ValueError(
            f"The preset {schedule.name} is for {meant} models; the loaded model is "
            f"{family or 'of no family that has SwD students'}. "
            + ("Choose auto." if students else "Put SwD Growth Schedule in this node's place.")
        )
    return schedule, entry


def origin(preset: str, family: str, schedule: ScaleSchedule, own: OwnSchedule | None) -> str:
    """Where the chosen schedule comes from."""
    if preset == AUTO:
        if own is not None:
            return f"auto: {own.text}"
        return f"auto: the preset for {family} models; the model has no schedule of its own"
    chosen = "custom: as typed" if preset == CUSTOM else "preset: as chosen"
    if own is None or (own.schedule.scales, own.schedule.sigmas) == (
        schedule.scales,
        schedule.sigmas,
    ):
        return chosen
    return f"{chosen}; auto would take {own.text}"


def eta_note(eta: float, sizes: Sequence[tuple[int, ...]]) -> list[str]:
    """Which of the steps an eta means, for the table."""
    if not eta:
        return []
    staying = [str(i) for i, (a, b) in enumerate(pairwise(sizes), 2) if a == b]
    if not staying:
        return [f"eta {eta:g} changes nothing here: every step grows, and gets fresh noise"]
    return [f"eta {eta:g} at step {', '.join(staying)}, whose size stays"]


def longer(
    schedule: ScaleSchedule, entry: Preset | None, samples: Any, pixels: int
) -> ScaleSchedule:
    """The schedule with steps added beyond its trained size, for a larger target.

    Args:
        samples: the target-size latent (B, C, H, W), if one is connected.
        pixels: along a side of a latent cell.

    Raises:
        ValueError: without a latent, or for video.
    """
    if samples is None:
        raise ValueError(
            "large_targets is extend, but latent_image is not connected: the steps that are added "
            "depend on the finished size. Connect the latent that is sampled, or choose stretch."
        )
    if samples.ndim != 4:
        raise ValueError(
            "large_targets is extend, which is for pictures; a video can only stretch its sizes. "
            "Choose stretch."
        )
    trained = (entry.target if entry else USUAL_TARGET) // pixels
    return extend_schedule(schedule, *samples.shape[-2:], trained)
