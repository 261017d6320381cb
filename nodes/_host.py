"""The one seam to ComfyUI: every host symbol that moves between versions, adapted once.

What is of a MODEL, a LATENT or a LoRA is in _host_model, _host_latent and _host_lora beside it.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from comfy_api.v0_0_2 import ComfyExtension, io, ui
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..swd_core.noise import stream_seed

__all__ = ["ComfyExtension", "io", "ui"]

Schedule = io.Custom("SWD_SCHEDULE")
CATEGORY = "SwD"
# Their models start from a picture, not from noise; ComfyUI 0.3.64 has the first alone.
FROM_PICTURES = tuple(
    getattr(comfy.model_sampling, name)
    for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
    if hasattr(comfy.model_sampling, name)
)
NO_IMAGE = 1 << 32  # an image's number that none has: patches must not draw a picture's own noise
# "control after generate" at its value for new nodes; older hosts can only say that it is there.
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)


def supported(target: Any, **keywords: Any) -> dict[str, Any]:
    """The keywords that this host's `target` knows: a newer one would drop the whole pack."""
    if dataclasses.is_dataclass(target):
        known = {f.name for f in dataclasses.fields(target)}
    else:
        known = set(inspect.signature(target).parameters)
    return {k: v for k, v in keywords.items() if k in known}


def free_memory(model: Any, device: torch.device) -> int:
    """Bytes that `device` can give, those of other weights included which the host would evict.

    Only the MODEL itself knows the latter (dynamic VRAM); ComfyUI 0.3.64 has no such weights.
    """
    return getattr(model, "get_free_memory", comfy.model_management.get_free_memory)(device)


def seed_patches(seed: int, step: int = 0) -> None:
    """Has what draws from torch's own generator (HyperTile, ToMe, some VAEs) draw by seed and step.

    The host seeds it where a run begins; what goes on at a later step must draw as the whole run.
    """
    seed &= (1 << 64) - 1  # as torch takes it, from a NOISE of any kind
    torch.manual_seed(stream_seed(seed, NO_IMAGE, step) if step else seed)


def check_cfg(cfg: float, negative: Any, model: Any) -> None:
    """Says what guidance costs.

    Raises:
        ValueError: if it is asked for without anything to guide away from.
    """
    if cfg != 1.0 and negative is None:
        raise ValueError(
            f"cfg is {cfg:g} but there is no negative conditioning. Set cfg to 1.0 or connect one."
        )
    if cfg != 1.0:
        say(
            f"cfg is {cfg:g}: every step runs the model twice, so this costs twice as much as cfg "
            "1.0, which SwD students are trained for."
        )
    elif negative is None and _overrides_cfg(model):
        raise ValueError(
            "CFG Override guides in some of the steps, but there is no negative conditioning. "
            "Connect one, or take that node off the model."
        )
    elif model.model_options.get("disable_cfg1_optimization", False):
        nothing = "" if negative is not None else " None is connected, so it does nothing else."
        say(
            "A patch of the model, such as NAG, reads the negative conditioning at cfg 1.0 too: "
            f"every step runs the model twice.{nothing}"
        )


def _overrides_cfg(model: Any) -> bool:
    """Whether CFG Override is on a MODEL, with another value than 1."""
    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    return any(
        getattr(wrapper, "__qualname__", "").startswith("CFGOverride.")
        and inspect.getclosurevars(wrapper).nonlocals.get("cfg", 0) != 1
        for wrapper in model.get_all_wrappers(kind)
    )


def running_server() -> Any:
    """The host's server, or None where it doesn't run as one; not imported for that."""
    module = sys.modules.get("server")
    return getattr(module.PromptServer, "instance", None) if module else None


def running_node() -> str:
    """The number of the node that runs, in its graph; "" where none does."""
    context = get_executing_context()
    return "" if context is None else context.node_id


_said: dict[Any, list[str]] = {}  # by the run of a node; of the last one alone


def say(text: str) -> None:
    """Shows `text` in the node that runs, below what that has said in this run.

    Where no page watches it does nothing.
    """
    context, server = get_executing_context(), running_server()
    if context is None or server is None:
        return
    if context not in _said:
        _said.clear()
    lines = _said.setdefault(context, [])
    if text not in lines:
        lines.append(text)
    server.send_progress_text("\n".join(lines), context.node_id)


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> comfy.samplers.CFGGuider:
    """The host's own guider; at cfg 1.0 it runs the model once and needs no negative."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(cfg)
    return guider


def make_room_for(guider: comfy.samplers.CFGGuider, size: Sequence[int]) -> None:
    """Has the host ask for the memory of a latent of this size, (H, W) or (T, H, W).

    For runs that end before their latent's size: room for that would push weights off the card.
    """

    def prepare(executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **more: Any):
        return executor(model, [*noise_shape[:2], *size], *args, **more)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    comfy.patcher_extension.add_wrapper_with_key(
        kind, "swd", prepare, options, is_model_options=True
    )
    guider.model_options = options


def pbar_disabled() -> bool:
    return not comfy.utils.PROGRESS_BAR_ENABLED


# What torch says on the devices whose error has no class of its own: CUDA's asynchronous allocator
# (before AcceleratorError), MPS, DirectML, the CPU.
_NO_ROOM = (
    "out of memory", "allocate memory", "not enough gpu video memory", "invalid buffer size",
)  # fmt: skip


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has no room; some hosts know only CUDA's."""
    is_oom = getattr(comfy.model_management, "is_oom", None)  # it also clears the device's error
    if is_oom is not None and is_oom(error):
        return True
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _NO_ROOM)


def to_output_device(samples: Tensor) -> Tensor:
    return samples.to(comfy.model_management.intermediate_device())


@contextmanager
def said_to_train() -> Iterator[None]:
    """Has the host use the functions that gradients can pass; ComfyUI 0.3.64 knows no others."""
    management = comfy.model_management
    before = getattr(management, "in_training", None)
    if before is not None:
        management.in_training = True
    try:
        yield
    finally:
        if before is not None:
            management.in_training = before


def reloadable(patcher: Any, load: Callable[..., Any]) -> None:
    """Tells the host how to make the weights anew, as its own loaders do.

    It does so for LoRA hooks and torch compile where memory is dynamic, and for other devices;
    ComfyUI 0.3.64 never does.

    Args:
        load: gives such a patcher, without dynamic memory if `disable_dynamic` is True.
    """
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load, ())


def end_patches(patcher: Any) -> None:
    """What the host calls at the end of a run (Flux KV Cache); 0.3.64 has nothing of the kind."""
    clean_up = getattr(patcher, "model_patches_call_function", None)
    if clean_up is not None:
        clean_up("cleanup")


def flux2_sigmas(steps: int, cells: int) -> Tensor:
    """FLUX.2's own SIGMAS (steps + 1,) for a picture of so many latent cells.

    Only for a FLUX.2, which ComfyUI 0.3.64 has not, nor this schedule.
    """
    from comfy_extras.nodes_flux import get_schedule

    return get_schedule(steps, cells)
