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

    Each holds for a call at least (`guarantee_steps`), so they can't be entered in the middle.

    Args:
        guider: with resolved conditioning. sigmas: of those calls, at their own size. level: what a
            level of the full size is there. model_options: of the run.
    """
    entries = [entry for entries in guider.conds.values() for entry in entries]
    hooked = [entry for entry in entries if entry.get("hooks") is not None]
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
