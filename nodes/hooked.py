"""LoRA schedules (hook keyframes) where a run begins later or a size has levels of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import comfy.hooks
import torch

Conds = dict[str, list[dict[str, Any]]]
Level = Callable[[float], float]


def keyframes_of(conds: Conds) -> list[tuple[comfy.hooks.HookKeyframe, float]]:
    """Every hook keyframe of resolved conditioning, with the noise level that it begins at."""
    found = {}
    for entry in (entry for entries in conds.values() for entry in entries):
        for hook in getattr(entry.get("hooks"), "hooks", ()):
            for keyframe in hook.hook_keyframe.keyframes:
                found[id(keyframe)] = (keyframe, float(keyframe.start_t))
    return list(found.values())


def pass_keyframes(
    guider: Any, sigmas: Iterable[float], level: Level, model_options: dict[str, Any]
) -> None:
    """Has the host's hook keyframes go through model calls that a run before has made.

    Each holds for a call at least (`guarantee_steps`), so they can't be entered in the middle. A
    solver that calls the model several times a step has passed more calls than are counted here.

    Args:
        guider: with resolved conditioning. sigmas: of those calls, at their own size. level: what a
            level of the full size is there. model_options: of the run.
    """
    # The host asks nothing of a negative at cfg 1, nor of a default that others cover.
    without = getattr(guider, "cfg", None) == 1.0
    without &= not model_options.get("disable_cfg1_optimization", False)
    hooked = [
        entry
        for name, entries in guider.conds.items()
        for entry in entries
        if not (without and name == "negative")
        and entry.get("hooks") is not None
        and not entry.get("default")
    ]
    for entry in hooked:
        for hook in entry["hooks"].hooks:  # the host's reset leaves it at the last call's
            hook.hook_keyframe._curr_t = -1.0
    for sigma in sigmas:
        asked = torch.tensor([sigma], dtype=torch.float32)
        for entry in hooked:
            start, end = entry.get("timestep_start"), entry.get("timestep_end")
            if start is not None and asked > level(float(start)):
                continue
            if end is not None and asked < level(float(end)):
                continue
            guider.model_patcher.prepare_hook_patches_current_keyframe(
                asked, entry["hooks"], model_options
            )
