"""Encodes pictures at every size of a schedule and their captions, once, into shards."""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..files import parse_json, write_text
from ..schedule import ScaleSchedule
from ..tensor_files import open_tensors, save_tensors
from .buckets import buckets, check_schedule, cut, nearest_bucket, shrink
from .sources import Sample, find_samples

log = logging.getLogger(__name__)
INDEX = "prepared.json"
SKIPPED = "skipped.txt"
SHARD = re.compile(r"[0-9]+x[0-9]+-[0-9]{5,}\.safetensors")
VERSION = 1


class Encoder(Protocol):
    """A model family's VAE and text encoders.

    family: as in the config. factor: pixels to a latent cell. multiple: cells to a patch.
    """

    family: str
    factor: int
    multiple: int

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to latents in the model's units (B, C, h, w)."""

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """context (B, T, C) and pooled (B, P)."""

    def unconditional(self) -> tuple[Tensor, Tensor]:
        """context (1, T, C) and pooled (1, P) of the teacher's guidance."""


@dataclass(frozen=True)
class Report:
    """What `prepare` did: pictures encoded now and before, and what it skipped with the reason."""

    encoded: int
    kept: int
    skipped: dict[str, str]


def prepare(
    source: Path,
    folder: Path,
    encoder: Encoder,
    schedule: ScaleSchedule,
    side: int,
    *,
    shard_size: int = 64,
    batch: int = 4,
    most_oblong: float = 2.0,
    skip_small: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
) -> Report:
    """Fills `folder` with shards of latents and text; goes on where it was stopped.

    Args:
        source: see `find_samples`. side: of the square finished picture, in pixels.
        most_oblong: of the aspect-ratio buckets; 1 cuts everything square.
        skip_small: leave out too small pictures instead of refusing all.
        on_shard: called with (shards done, shards in all).

    Raises:
        ValueError: if captions are missing, pictures are smaller than the smallest scale, nothing
            is usable, or the schedule doesn't fit the VAE. OSError: if the disk is full.
    """
    check_schedule(schedule, side, encoder.factor, encoder.multiple)
    samples = find_samples(source)
    step = max(encoder.factor * encoder.multiple, side // 16 // 8 * 8)
    step = -(-step // (encoder.factor * encoder.multiple)) * encoder.factor * encoder.multiple
    plan, skipped = _plan(samples, buckets(side, step, most_oblong), schedule, skip_small)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [
        (size, group[i : i + shard_size], i // shard_size)
        for size, group in sorted(plan.items())
        for i in range(0, len(group), shard_size)
    ]
    settings = {"schedule": schedule.to_dict(), "family": encoder.family, "version": VERSION}
    encoded = kept = 0
    files = []
    for done, (size, group, number) in enumerate(chunks):
        path = folder / f"{size[0]}x{size[1]}-{number:05}.safetensors"
        key = _key(settings, group)
        header = _header(path)
        if header.get("key") == key:
            kept += int(header["count"])
        else:
            header = _encode_shard(path, group, size, encoder, schedule, key, batch)
            encoded += int(header["count"])
        skipped |= parse_json(header["skipped"], path.name)
        if int(header["count"]):
            count = int(header["count"])
            files.append({"file": path.name, "size": size, "count": count, "key": key})
        if on_shard:
            on_shard(done + 1, len(chunks))
    if not files:
        raise ValueError(f"None of the {len(samples)} pictures in {source} could be used.")
    kept_names = {f["file"] for f in files}
    for old in folder.iterdir():
        if SHARD.fullmatch(old.name) and old.name not in kept_names and _header(old):
            old.unlink()
    empty = encoder.unconditional()
    _write(folder / "empty.safetensors", {"context": empty[0].half(), "pooled": empty[1].half()})
    index = {**settings, "side": side, "factor": encoder.factor, "multiple": encoder.multiple}
    write_text(folder / INDEX, json.dumps({**index, "shards": files}, indent=1))
    lines = "".join(f"{name}\t{reason}\n" for name, reason in sorted(skipped.items()))
    write_text(folder / SKIPPED, lines)
    return Report(encoded, kept, skipped)


def _plan(
    samples: list[Sample],
    choices: list[tuple[int, int]],
    schedule: ScaleSchedule,
    skip_small: bool,
) -> tuple[dict[tuple[int, int], list[Sample]], dict[str, str]]:
    """Samples by bucket, and what is left out with the reason."""
    plan, skipped, small = defaultdict(list), {}, {}
    for sample in samples:
        try:
            width, height = sample.size()
        except (OSError, SyntaxError, ValueError) as error:
            skipped[sample.name] = f"broken: {error}".replace("\n", " ")
            continue
        size = nearest_bucket(width, height, choices)
        least = [round(s * schedule.scales[0]) for s in size]
        if height < least[0] or width < least[1]:
            small[sample.name] = f"{width}x{height} px, smallest scale {least[1]}x{least[0]} px"
        else:
            plan[size].append(sample)
    if small and not skip_small:
        shown = "; ".join(f"{name} ({why})" for name, why in list(small.items())[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        raise ValueError(
            f"{len(small)} of {len(samples)} pictures are smaller than the smallest scale: {shown}"
            f"{more}. Replace them, train at a smaller size, or leave them out with --skip-small."
        )
    return plan, skipped | {name: f"too small: {why}" for name, why in small.items()}


def _key(settings: dict, group: list[Sample]) -> str:
    """Changes with anything that a shard's content depends on."""
    parts = []
    for s in group:
        picture = s.picture
        stat = picture.stat() if s.tar is None else picture
        parts.append([s.name, s.caption, getattr(stat, "st_size", None) or stat.size])
    return hashlib.sha256(json.dumps([settings, parts]).encode()).hexdigest()[:24]


def _header(path: Path) -> dict[str, str]:
    """The header of a whole shard; empty for what is missing, damaged or no shard."""
    try:
        with open_tensors(path) as file:
            header = dict(file.metadata() or {})
    except (OSError, ValueError):
        return {}
    return header if {"key", "count", "skipped"} <= header.keys() else {}


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """A shard is whole or not there."""
    try:
        save_tensors(path, tensors, header)
    except OSError as error:
        raise OSError(
            f"{path} can't be written ({error}). What is finished stays: make room and start "
            "the same command again."
        ) from error


@torch.inference_mode()
def _encode_shard(
    path: Path,
    group: list[Sample],
    size: tuple[int, int],
    encoder: Encoder,
    schedule: ScaleSchedule,
    key: str,
    batch: int,
) -> dict[str, str]:
    sizes = schedule.sizes(size[0] // encoder.factor, size[1] // encoder.factor, encoder.multiple)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    names, captions, skipped = [], [], {}
    for start in range(0, len(group), batch):
        pictures, prompts = [], []
        for sample in group[start : start + batch]:
            try:
                pictures.append(cut(sample.read(), size))
            except (OSError, ValueError) as error:
                skipped[sample.name] = f"broken: {error}".replace("\n", " ")
                continue
            prompts.append(sample.caption)
            captions.append(sample.caption)
            names.append(sample.name)
        if not pictures:
            continue
        whole = torch.stack(pictures)
        for h, w in dict.fromkeys(sizes):
            small = shrink(whole, (h * encoder.factor, w * encoder.factor))
            parts[f"latent_{h}x{w}"].append(encoder.latents(small).half())
        context, pooled = encoder.text(prompts)
        parts["context"].append(context.half())
        parts["pooled"].append(pooled.half())
    header = {
        "key": key,
        "count": str(len(names)),
        "names": json.dumps(names),
        "captions": json.dumps(captions),
        "skipped": json.dumps(skipped),
    }
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    _write(path, tensors or {"none": torch.zeros(1)}, header)
    return header
