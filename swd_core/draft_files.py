"""Drafts in a file: written whole, read back only if all of it fits together."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .drafts import Draft, Drafts, check_count
from .files import parse_json
from .growth import MOST_SIZES, GrowthSchedule
from .noise import MAX_SEED, NOISE_VERSION
from .schedule import ScaleSchedule, one_line
from .tensor_files import open_tensors, read_tensors, save_tensors

# Of a student's drafts, which older packs read too; of growing ones; of several prompts' of either;
# of a student's with an eta.
VERSION, GROWN_VERSION, PROMPTS_VERSION, ETA_VERSION = 1, 2, 3, 4
SUFFIX = ".drafts.safetensors"
_HEADER = "swd_drafts"
_ROUNDING = 16  # latent cells; no model's patch is larger
_MOST_FINISHED = 1 << 31  # bytes of one finished latent in float32


def save_drafts(drafts: Drafts, path: Path, overwrite: bool = False) -> None:
    """Writes one safetensors file, whole or not at all.

    Raises:
        ValueError: if there are more than MAX_DRAFTS. OSError: if it can't be written.
        FileExistsError: if `path` exists and may not be replaced.
    """
    check_count(len(drafts.images), "The number of drafts to save")
    tensors = {f"x0.{i}": x0 for i, x0 in enumerate(drafts.scales, 1)}
    extra = {"samples": drafts.samples, "latent": drafts.latent, "mask": drafts.mask}
    extra["x_t"] = drafts.x_t
    tensors |= {name: value for name, value in extra.items() if value is not None}
    growing = isinstance(drafts.schedule, GrowthSchedule)
    plan = drafts.schedule.to_dict()
    several = any(d.prompt for d in drafts.images)
    version = PROMPTS_VERSION if several else GROWN_VERSION if growing else VERSION
    header = {
        "version": ETA_VERSION if not growing and drafts.schedule.eta else version,
        "noise_version": NOISE_VERSION,
        "schedule": {"growth": plan} if growing else plan,
        "step": drafts.step,
        "model": drafts.model,
        "size": list(drafts.size),
        "images": [[d.seed, d.index, d.detail] for d in drafts.images],
        "method": drafts.method,
        "prompt": drafts.prompt,
    }
    if growing:
        header["stretches"] = drafts.stretches
    if several:
        header["prompts"] = [d.prompt for d in drafts.images]
    if not all(d.known for d in drafts.images):
        header["known"] = [d.known for d in drafts.images]
    save_tensors(path, tensors, {_HEADER: json.dumps(header)}, overwrite)


def load_drafts(path: Path) -> Drafts:
    """Reads what `save_drafts` wrote.

    Raises:
        ValueError: if it is missing, damaged, no drafts, of a newer version or of another noise
            rule, or asks for more than there can be; the message says which.
    """
    header = _header_of(path)
    with _damage_named(path.name):
        empty = _read_header(header)
        check_count(len(empty.images), "the number of its images")
        return _with_tensors(empty, _whole(header["step"]), read_tensors(path)[0])


def load_images(path: Path) -> tuple[Draft, ...]:
    """Where the images of a file come from, by its header alone.

    Raises:
        ValueError: as `load_drafts`, but for what only its latents can show.
    """
    header = _header_of(path)
    with _damage_named(path.name):
        return _read_header(header).images


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"The drafts file {name} is damaged: {reason}") from error


def _header_of(path: Path) -> dict[str, Any]:
    """Of a version that can be read."""
    try:
        with open_tensors(path) as file:
            text = (file.metadata() or {}).get(_HEADER)
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no drafts file {path.name}. Name one that drafts were saved to."
        ) from error
    if not text:
        raise ValueError(f"{path.name} holds no drafts; choose a file that SwD saved drafts to.")
    header = parse_json(text, f"The header of the drafts file {path.name}")
    check_versions(header, path.name)
    return header


def check_versions(header: Any, name: str) -> None:
    """Raises ValueError for a newer format, or a noise rule that would finish another picture."""
    if not isinstance(header, dict) or not {"version", "noise_version"} <= header.keys():
        raise ValueError(f"The drafts file {name} is damaged: its header has no version.")
    if header["version"] not in range(VERSION, ETA_VERSION + 1):
        raise ValueError(
            f"{name} has the drafts format {header['version']}; this version reads {VERSION} to "
            f"{ETA_VERSION}. Update the pack."
        )
    if header["noise_version"] != NOISE_VERSION:
        raise ValueError(
            f"{name} was drafted with noise rule {header['noise_version']}; this version has rule "
            f"{NOISE_VERSION} and would finish other pictures. Draft them again."
        )


def _read_header(header: dict[str, Any]) -> Drafts:
    """Drafts without their tensors; every number is one that can be meant."""
    height, width = header["size"]
    plan, version = header["schedule"], header["version"]
    growing = version == GROWN_VERSION or (version == PROMPTS_VERSION and "growth" in plan)
    rows, texts = header["images"], header.get("prompts")
    if texts is None and version == PROMPTS_VERSION:
        raise KeyError("prompts")
    prompts = [""] * len(rows) if texts is None else [_text(text) for text in texts]
    known = [told is True for told in header.get("known", [True] * len(rows))]
    for what, of_each in (("prompts", prompts), ("marks of known prompts", known)):
        if len(of_each) != len(rows):
            raise ValueError(f"it has {len(rows)} drafts and {len(of_each)} {what}.")
    return Drafts(
        GrowthSchedule.from_dict(plan["growth"]) if growing else ScaleSchedule.from_dict(plan),
        one_line(str(header["model"])),
        (_whole(height, 1), _whole(width, 1)),
        tuple(
            Draft(*(_whole(n) for n in row), prompt=text, known=told)
            for row, text, told in zip(rows, prompts, known, strict=True)
        ),
        method=str(header["method"]),
        prompt=_text(header["prompt"]),
        stretches=_whole(header["stretches"], 1) if growing else 0,
    )


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= MAX_SEED:
        raise ValueError(f"{str(value)[:30]!r} is no number that can be meant.")
    return value


def _with_tensors(empty: Drafts, step: int, tensors: dict[str, Tensor]) -> Drafts:
    """`empty` with what its `step` steps made, once all of it fits together."""
    scales = tuple(tensors[f"x0.{i}"] for i in range(1, step + 1))
    rest = {name: tensors.get(name) for name in ("latent", "mask")}
    if empty.stretches or empty.schedule.eta:
        rest["x_t"] = tensors["x_t"]
    drafts = replace(empty, scales=scales, samples=tensors["samples"], **rest)
    if not _fits(drafts):
        raise ValueError("its images, steps and latents don't agree.")
    finished = 4 * math.prod(scales[-1].shape[1:-2]) * math.prod(drafts.size)
    if finished > _MOST_FINISHED:
        raise ValueError(f"one of its drafts would have {finished >> 30} GB when finished.")
    return drafts


def _fits(drafts: Drafts) -> bool:
    """Whether images, steps, sizes and tensors belong together."""
    if not 0 < drafts.step < drafts.last or not drafts.images:
        return False
    last, samples = drafts.scales[-1], drafts.samples
    for x0 in (*drafts.scales, samples):
        if x0.ndim not in (4, 5) or len(x0) != len(drafts.images) or not _is_plain(x0):
            return False
    if any(x0.shape[1] != last.shape[1] or x0.ndim != last.ndim for x0 in drafts.scales):
        return False
    # A VAE may lay the numbers of a latent out otherwise than its model, but it has as many.
    if samples.numel() != last.numel() or samples.ndim != last.ndim or not _start_fits(drafts):
        return False
    if drafts.stretches:
        return _grown_fits(drafts)
    for scale, x0 in zip(drafts.schedule.scales, drafts.scales, strict=False):
        sides = zip(x0.shape[-2:], drafts.size, strict=True)
        if any(abs(side - scale * full) > _ROUNDING for side, full in sides):
            return False
    return not drafts.schedule.eta or _held_fits(drafts)


def _start_fits(drafts: Drafts) -> bool:
    """Whether the picture to start from is one finished image, and the mask a mask."""
    latent, mask, samples = drafts.latent, drafts.mask, drafts.samples
    if latent is not None:
        whole = (1, samples.shape[1], *latent.shape[2:-2], *drafts.size)
        if latent.shape != whole or latent.ndim != samples.ndim or not _is_plain(latent):
            return False
    if mask is None:
        return True
    return mask.ndim >= 2 and mask.numel() > 0 and _is_plain(mask) and bool(mask.isfinite().all())


def _is_plain(value: Tensor) -> bool:
    """Whether its numbers are of a kind that a model's latents have."""
    return value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _held_fits(drafts: Drafts) -> bool:
    return drafts.x_t.shape == drafts.scales[-1].shape and _is_plain(drafts.x_t)


def _grown_fits(drafts: Drafts) -> bool:
    """Whether the sizes of a growing run rise below the finished one, and x_t is of the last."""
    if drafts.stretches > MOST_SIZES or not _held_fits(drafts):
        return False
    sizes = [*(x0.shape[-2:] for x0 in drafts.scales), drafts.size]
    return all(a <= b for old, new in pairwise(sizes) for a, b in zip(old, new, strict=True))


def latest(folder: Path) -> Path:
    """The newest drafts file of a folder.

    Raises:
        ValueError: if there is none.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime)
    if not files:
        raise ValueError(
            f"There is no drafts file (*{SUFFIX}) in {folder.resolve()}. Make one with the drafts "
            "command, or name one elsewhere."
        )
    return files[-1]
