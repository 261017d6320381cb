"""LoRA schedules (hook keyframes) where a run begins later or a size has levels of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import comfy.hooks
import torch


def keyframes_of(
    conds: dict[str, list[dict[str, Any]]],
) -> list[tuple[comfy.hooks.HookKeyframe, float]]:
    """Every hook keyframe of resolved conditioning, with the noise level that it begins at."""
    found = {}
    for entry in (entry for entries in conds.values() for entry in entries):
        for hook in getattr(entry.get("hooks"), "hooks", ()):
            for keyframe in hook.hook_keyframe.keyframes:
                found[id(keyframe)] = (keyframe, float(keyframe.start_t))
    return list(found.values())


def pass_keyframes(
    guider: Any,
    sigmas: Iterable[float],
    level: Callable[[float], float],
    model_options: dict[str, Any],
) -> None:
    """Has the host's hook keyframes go through model calls that a run before has made.

    Each holds for a call at least (`guarantee_steps`), so they can't be entered in the middle. A
    solver that calls the model several times a step has passed more calls than are counted here.

    Args:
        guider: with resolved conditioning. sigmas: of those calls, at their own size. level: what a
            level of the full size is there. model_options: of the run.
    """
    hooked = _asked(guider, model_options)
    for entry in hooked:
        for hook in entry["hooks"].hooks:  # the host's own reset leaves the last call's level
            hook.hook_keyframe._curr_t = -1.0
    for sigma in sigmas:
        asked = torch.tensor([sigma], dtype=torch.float32)
        for entry in hooked:
            if _holds(entry, float(asked), level):
                guider.model_patcher.prepare_hook_patches_current_keyframe(
                    asked, entry["hooks"], model_options
                )


def _asked(guider: Any, model_options: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries with hooks that the host runs: no negative at cfg 1."""
    without_negative = getattr(guider, "cfg", None) == 1.0
    without_negative &= not model_options.get("disable_cfg1_optimization", False)
    return [
        entry
        for name, entries in guider.conds.items()
        for entry in entries
        if entry.get("hooks") is not None and not (without_negative and name == "negative")
    ]


def _holds(entry: dict[str, Any], sigma: float, level: Callable[[float], float]) -> bool:
    """Whether a noise level is in an entry's own range, if it has one."""
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    if start is not None and sigma > level(float(start)):
        return False
    return end is None or sigma >= level(float(end))
