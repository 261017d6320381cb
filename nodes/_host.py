"""The one seam to ComfyUI: every host symbol that moves between versions, adapted once."""

import dataclasses
import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.v0_0_2 import ComfyExtension, io, ui
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..swd_core.lora import LoraLayer, SwDLora, to_host_state_dict
from ..swd_core.lora_names import host_names
from ..swd_core.schedule import CELL, ScaleSchedule, one_line

__all__ = ["ComfyExtension", "io", "ui"]

Schedule = io.Custom("SWD_SCHEDULE")
CATEGORY = "SwD"
# Of latent formats that don't say it themselves in ComfyUI 0.3.64.
UNTOLD_PIXELS = {
    "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "Wan22": 16, "HunyuanImage21": 32, "ChromaRadiance": 1,
}  # fmt: skip
# "control after generate" at its value for new nodes; older hosts can only say that it is there.
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)
ITS_SCHEDULE = "swd_schedule"  # a MODEL's attachment


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


def model_family(model: Any) -> str:
    """Which students a MODEL can take, by its own configuration.

    Returns:
        a family of presets.json, "sd3" for an SD3 type we have no student for, "wan-other" for a
        Wan of another width than the 1.3B's, or "".
    """
    base, config = model.model, model.model.model_config.unet_config
    if isinstance(base, comfy.model_base.SD3):
        context = config.get("context_embedder_config", {}).get("params", {}).get("in_features")
        if context == 256 and config.get("pos_embed_max_size") is None:
            return "emoji"
        if config.get("x_block_self_attn_layers"):
            return "sd35-medium"
        return "sd35-large" if config.get("depth", 0) == 38 else "sd3"
    if isinstance(base, comfy.model_base.Flux) and config.get("image_model") == "flux":
        return "flux"
    if isinstance(base, comfy.model_base.SDXL):
        return "sdxl"
    if isinstance(base, comfy.model_base.WAN21):
        return "wan" if config.get("dim") == 1536 else "wan-other"
    return ""


def cell_pixels(model: Any) -> int:
    """Pixels of the picture along a side of a latent cell."""
    latent_format = model.get_model_object("latent_format")
    known = getattr(latent_format, "spacial_downscale_ratio", None)
    return known or UNTOLD_PIXELS.get(type(latent_format).__name__, CELL)


def patch_multiple(model: Any) -> int:
    """What the latent sides must be multiples of, so that nothing is padded or cropped inside."""
    config, net = model.model.model_config.unet_config, model.model.diffusion_model
    if "channel_mult" in config:  # a UNet halves its sides once per level but the first
        return 2 ** (len(config["channel_mult"]) - 1)
    for name in ("patch_size", "patch_spatial"):
        patch = config.get(name, getattr(net, name, None))
        if patch is not None:
            return int(patch[-1] if isinstance(patch, (tuple, list)) else patch)
    return 2


def schedule_sigmas(model: Any, schedule: ScaleSchedule) -> Tensor:
    """SIGMAS (steps + 1,) of a schedule in the model's own terms, with the final 0.

    Timesteps (SDXL) go through the model's own noise table; 1000 lies outside its 0..999 and
    means its largest sigma.

    Raises:
        ValueError: if the model's table has no falling noise levels for them.
    """
    sampling = model.get_model_object("model_sampling")
    if schedule.sigma_kind == "flow":
        return torch.tensor([*schedule.sigmas, 0.0], dtype=torch.float32)
    sigmas = [
        float(sampling.sigma_max) if t >= 999 else float(sampling.sigma(torch.tensor(float(t))))
        for t in schedule.sigmas
    ]
    if not all(math.isfinite(a) and a > b for a, b in pairwise([*sigmas, 0.0])):
        shown = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise ValueError(
            f"The timesteps of {schedule.name} give this model the sigmas {shown}, which don't "
            "fall. It is no SDXL with the usual noise table; type other timesteps under custom."
        )
    return torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def check_prediction(model: Any, schedule: ScaleSchedule) -> None:
    """Raises ValueError if the schedule's noise levels are not of the model's kind."""
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    if flow != (schedule.sigma_kind == "flow"):
        kind, other = (
            ("sigmas in 0..1", "timesteps") if flow else ("timesteps up to 1000", "flow sigmas")
        )
        raise ValueError(
            f"This model needs {kind}, but the schedule {schedule.name} has {other}. Choose auto."
        )


def check_latent(latent: Any, model: Any) -> dict[str, Any]:
    """A copy of the latent whose samples fit the model; an empty one gets the model's channels.

    Raises:
        ValueError: if it has no samples, is nested, or holds a picture of another kind of model.
    """
    samples = plain_samples(latent)
    latent = dict(latent)
    extras = supported(
        comfy.sample.fix_empty_latent_channels,
        downscale_ratio_spacial=latent.pop("downscale_ratio_spacial", None),
        downscale_ratio_temporal=latent.pop("downscale_ratio_temporal", None),
    )
    samples = comfy.sample.fix_empty_latent_channels(model, samples, **extras)
    check_channels(samples, model)
    latent["samples"] = samples
    return latent


def check_channels(samples: Tensor, model: Any) -> None:
    """Raises ValueError if a latent (B, C, ...) was made for another kind of model."""
    fitting = model.get_model_object("latent_format")
    channels, dimensions = fitting.latent_channels, fitting.latent_dimensions + 2
    if samples.ndim != dimensions:
        kinds = {3: "audio", 4: "pictures", 5: "videos"}
        raise ValueError(
            f"The latent {tuple(samples.shape)} is of {kinds.get(samples.ndim)}, and this model "
            f"makes {kinds.get(dimensions)}. Connect a latent that was made for this model."
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels, this model needs {channels}: it was made "
            "for another kind of model. Encode the picture with this model's VAE."
        )


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
    elif model.model_options.get("disable_cfg1_optimization", False):
        nothing = "" if negative is not None else " None is connected, so it does nothing else."
        say(
            "A patch of the model, such as NAG, reads the negative conditioning at cfg 1.0 too: "
            f"every step runs the model twice.{nothing}"
        )


def say(text: str) -> None:
    """Shows `text` in the node that runs, where a page watches; elsewhere it does nothing."""
    context = get_executing_context()
    module = sys.modules.get("server")  # not imported: it is there if the host's server runs
    if context is not None and module is not None:
        module.PromptServer.instance.send_progress_text(text, context.node_id)


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


def image_indices(latent: dict[str, Any]) -> tuple[int, ...]:
    """Number of each image in its original batch (batch_index), 0, 1, 2 ... by default.

    Raises:
        ValueError: if there are not as many as images.
    """
    count = latent["samples"].shape[0]
    indices = latent.get("batch_index")
    if indices is None:
        return tuple(range(count))
    numbers = tuple(int(i) for i in indices)
    if len(numbers) != count or min(numbers) < 0:
        raise ValueError(
            f"The latent's batch_index is {str(list(numbers)):.60}, but it holds {count} images, "
            "each of which has its number from 0. Take the latent from before the node that "
            "changed its batch."
        )
    return numbers


def indices_from_noise(noise: Tensor, seed: int, most: int = 1 << 27) -> tuple[int, ...]:
    """Recovers batch_index from the host's RandomNoise, the only trace of it that a SAMPLER sees.

    With a batch_index the host draws image after image from one generator and keeps the chosen
    ones; without, it draws the batch at once. No noise at all means images 0, 1, 2 ...

    Args:
        noise: (B, C, H, W) or (B, C, T, H, W), in the latent's precision or rounded to it.
        most: how many numbers to draw before giving up.

    Raises:
        ValueError: for any other noise, and for a batch_index out of reach.
    """
    plain = tuple(range(noise.shape[0]))
    marks = noise.flatten(1)[:, :16].float().cpu()
    halves = (torch.bfloat16, torch.float16)
    precision = next((d for d in halves if torch.equal(marks.to(d).float(), marks)), torch.float32)

    def draws(shape: tuple[int, ...]) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = torch.randn(shape, generator=generator).flatten(1)[:, :16]
            yield drawn.to(precision).float()

    if not marks.any() or torch.equal(next(draws(noise.shape)), marks):
        return plain
    found: dict[int, int] = {}
    reach = most // noise[0].numel()
    for index, mark in zip(range(reach), draws((1, *noise.shape[1:])), strict=False):
        found |= {row: index for row in plain if torch.equal(marks[row], mark[0])}
        if len(found) == len(plain):
            return tuple(found[row] for row in plain)
    raise ValueError(
        f"This is not the noise of RandomNoise with seed {seed}, or that of an image beyond number "
        f"{reach} of its batch. Every scale draws its own noise by seed and image number: connect "
        "RandomNoise, or for such a batch use SwD Sample."
    )


@dataclass(frozen=True)
class HostProcess:
    """The loaded model's own forward process, in its own terms (flow, epsilon, v-prediction)."""

    sampling: Any
    # The sigma that stands for pure noise, which the host scales a little differently.
    begin: Tensor | None

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.sampling.noise_scaling(sigma, noise, x0, sigma is self.begin)


def preview_callback(model: Any, steps: int) -> Any:
    """Live preview and progress bar over the whole run; it also raises the host's interrupt."""
    return latent_preview.prepare_callback(model, steps)


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


def plain_samples(latent: Any) -> Tensor:
    """The latent's tensor (B, C, H, W) or (B, C, T, H, W).

    Raises:
        ValueError: if there is none, it is nested, of audio or empty, or its mask is.
    """
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) and not getattr(samples, "is_nested", False):
        raise ValueError(
            "The latent has no samples. Connect an Empty Latent Image or a VAE Encode node."
        )
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "Nested latents (audio with video) can't be scaled step by step; use a plain latent."
        )
    if samples.ndim not in (4, 5) or latent.get("type") == "audio":
        raise ValueError(
            f"A latent of {samples.ndim} dimensions {tuple(samples.shape)} can't be scaled step by "
            "step: audio and nested latents (audio with video) are not supported. Use one of "
            "pictures or video."
        )
    if not samples.numel():
        raise ValueError(
            f"The latent {tuple(samples.shape)} is empty: it has no images, or no size. Connect an "
            "Empty Latent Image or a VAE Encode node."
        )
    mask = latent.get("noise_mask")
    if mask is not None and not (mask.ndim >= 2 and mask.numel()):
        raise ValueError(
            f"The latent's noise mask {tuple(mask.shape)} has no size. Connect a mask of the "
            "picture's size to Set Latent Noise Mask, or leave that node out."
        )
    return samples


def noised(model: Any, samples: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A clean latent with the model's own noise of `sigma`, for a sampler whose own noise is off.

    In the host's form between two samplers: the next one scales it as if it were clean, so that is
    undone here beforehand.

    Raises:
        ValueError: if nothing of the latent would be left.
    """
    sampling = model.get_model_object("model_sampling")
    if sigma >= 1 and isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"noise_sigma is {sigma:g}, but for this model 1 is pure noise. Give less than 1, such "
            "as 0.6."
        )
    level = torch.tensor(sigma)
    clean = model.model.process_latent_in(samples)
    x_t = sampling.noise_scaling(level, noise, clean, False)
    return model.model.process_latent_out(sampling.inverse_noise_scaling(level, x_t))


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


@dataclass(frozen=True)
class OwnSchedule:
    """The schedule that a student's header gives, and what the student is called."""

    schedule: ScaleSchedule
    student: str

    @property
    def text(self) -> str:
        named = f" ({self.schedule.name})" if self.schedule.name else ""
        return f"the own schedule of {one_line(self.student)}{named}"


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
