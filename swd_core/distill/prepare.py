"""Encodes pictures at every size of a schedule and their captions, once, into shards."""

import hashlib
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..files import parse_json, write_text
from ..schedule import ScaleSchedule
from ..tensor_files import open_tensors, save_tensors
from .buckets import buckets, check_schedule, cut, nearest_bucket, shrink
from .conditioning import Conditioning
from .sources import Sample, find_prompts, find_samples, prompts_alone
from .world import World

log = logging.getLogger(__name__)
INDEX = "prepared.json"
EMPTY = "empty.safetensors"  # the prompt that is none
SKIPPED = "skipped.txt"
SHARD = re.compile(r"[0-9]+x[0-9]+-[0-9]{5,}\.safetensors")
VERSION = 2
LOOK_AGAIN = 2.0  # seconds
SAY_AGAIN = 60  # looks
# What a shard depends on beside its pictures and captions, as a user knows it.
CAUSES = {
    "schedule": "the schedule",
    "family": "the model's family",
    "encoder": "the model's VAE or text encoders",
    "version": "what prepare writes",
}


class Encoder(Protocol):
    """A model family's VAE and text encoders.

    family: as in the config. factor: pixels to a latent cell. multiple: cells to a patch.
    fingerprint: changes with anything that latents and text depend on; see `fingerprint`.
    """

    family: str
    factor: int
    multiple: int
    fingerprint: str

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to latents in the model's units (B, C, h, w)."""

    def text(self, prompts: Sequence[str]) -> Conditioning:
        """What the model reads of the prompts, in as many tokens for any of them."""

    def unconditional(self) -> Conditioning:
        """What the teacher's guidance compares with, of one picture."""


@dataclass(frozen=True)
class Report:
    """What `prepare` did: pictures encoded now and before, and what it skipped with the reason.

    anew: of those encoded now, how many had been before, by what has changed since.
    """

    encoded: int
    kept: int
    skipped: dict[str, str]
    anew: dict[str, int] = field(default_factory=dict)


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """Changes with the weights of any of the named modules, wherever they were loaded from.

    Of each tensor some numbers are read, not all: a text encoder has billions.
    """
    digest = hashlib.sha256()
    for part, module in sorted(parts.items()):
        for name, value in module.state_dict().items():
            flat = value.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // 64)].float().cpu()
            digest.update(f"{part} {name} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:24]


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
    world: World | None = None,
) -> Report | None:
    """Fills `folder` with shards of latents and text; goes on where it was stopped.

    Shards are kept as long as their pictures, captions, schedule and encoders are the same; what is
    made anew is told before it is begun.

    Args:
        source: see `find_samples`; or a .txt of prompts, a line each, without pictures.
        side: of the square finished picture, in pixels.
        most_oblong: of the aspect-ratio buckets; 1 cuts everything square.
        skip_small: leave out too small pictures instead of refusing all.
        on_shard: called with (shards done, shards in all), of this process's.
        world: the processes, of several machines too, that share the work and the folder. The first
            one waits for the shards of all and writes the list of them.

    Returns:
        the report, None in all but the first process.

    Raises:
        ValueError: if captions are missing, pictures are smaller than the smallest scale, nothing
            is usable, the schedule doesn't fit the VAE, or what is encoded isn't finite.
        OSError: if the disk is full.
    """
    check_schedule(schedule, side, encoder.factor, encoder.multiple)
    alone = prompts_alone(source)
    samples = [] if alone else find_samples(source)
    step = max(encoder.factor * encoder.multiple, side // 16 // 8 * 8)
    step = -(-step // (encoder.factor * encoder.multiple)) * encoder.factor * encoder.multiple
    if alone:
        plan, skipped = {(side, side): [(prompt, "") for prompt in find_prompts(source)]}, {}
    else:
        plan, skipped = _plan(samples, buckets(side, step, most_oblong), schedule, skip_small)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [
        (size, group[i : i + shard_size], i // shard_size)
        for size, group in sorted(plan.items())
        for i in range(0, len(group), shard_size)
    ]
    settings = {
        "schedule": schedule.to_dict(), "family": encoder.family, "version": VERSION,
        "encoder": encoder.fingerprint,
    }  # fmt: skip
    paths = [folder / f"{h}x{w}-{number:05}.safetensors" for (h, w), _, number in chunks]
    keys = [_key(settings, group) for _, group, _ in chunks]
    world = world or World()
    anew = _anew(paths, keys, settings, alone) if world.is_first else {}
    there = {i for i, path in enumerate(paths) if _header(path).get("key") == keys[i]}
    own = [i for i in range(len(chunks)) if world.has(i)]
    for done, i in enumerate(own):
        if i not in there:
            size, group, _ = chunks[i]
            identity = {"key": keys[i], "made_with": json.dumps(settings)}
            pictures = [sample for sample, _ in group]
            _encode_shard(paths[i], pictures, size, encoder, schedule, identity, batch)
        if on_shard:
            on_shard(done + 1, len(own))
    if not world.is_first:
        return None
    headers = _all_headers(paths, keys)
    files, counts = [], [int(header["count"]) for header in headers]
    for i, header in enumerate(headers):
        skipped |= parse_json(header["skipped"], paths[i].name)
        if counts[i]:
            size = chunks[i][0]
            files.append({"file": paths[i].name, "size": size, "count": counts[i], "key": keys[i]})
    kept = sum(counts[i] for i in there)
    encoded = sum(counts) - kept
    if not files:
        name, why = next(iter(skipped.items()))
        raise ValueError(
            f"None of the {len(samples)} pictures in {source} could be used ({name}: {why}, and so "
            "on). Name another folder in [data] source, or a smaller [data] size for small ones."
        )
    kept_names = {f["file"] for f in files}
    for old in folder.iterdir():
        if SHARD.fullmatch(old.name) and old.name not in kept_names and _header(old):
            old.unlink()
    empty = encoder.unconditional().map(_halved).parts
    for part in empty.values():
        _check_finite(part, "encoding", ["the empty prompt"])
    _write(folder / EMPTY, empty)
    if alone:
        settings["pictures"] = False
    index = {**settings, "side": side, "factor": encoder.factor, "multiple": encoder.multiple}
    write_text(folder / INDEX, json.dumps({**index, "shards": files}, indent=1))
    lines = "".join(f"{name}\t{reason}\n" for name, reason in sorted(skipped.items()))
    write_text(folder / SKIPPED, lines)
    return Report(encoded, kept, skipped, anew)


def _all_headers(paths: list[Path], keys: list[str]) -> list[dict[str, str]]:
    """The headers of all shards, once the other processes have written theirs."""
    found: list[dict[str, str]] = []
    looked = 0
    while len(found) < len(paths):
        header = _header(paths[len(found)])
        if header.get("key") == keys[len(found)]:
            found.append(header)
            continue
        if looked % SAY_AGAIN == 0:
            log.info(
                "waiting for other processes: %s is the first of %d files that isn't there yet. If "
                "one has ended, start the same command again",
                paths[len(found)].name, len(paths),
            )  # fmt: skip
        looked += 1
        time.sleep(LOOK_AGAIN)
    return found


def _anew(paths: list[Path], keys: list[str], settings: dict, alone: bool) -> dict[str, int]:
    """How many pictures, or prompts `alone`, must be encoded again, by the reason."""
    kind, content = ("prompts", "prompts") if alone else ("pictures", "pictures or captions")
    found: dict[str, int] = defaultdict(int)
    settings = json.loads(json.dumps(settings))  # lists, as they are read again
    for path, key in zip(paths, keys, strict=True):
        header = _header(path)
        if not header or header["key"] == key:
            continue
        before = parse_json(header.get("made_with", "{}"), path.name)
        if not isinstance(before, dict) or "version" not in before:
            before = {**settings, "version": None}
        changed = [cause for part, cause in CAUSES.items() if before.get(part) != settings[part]]
        found[" and ".join(changed) or content] += int(header["count"])
    for cause, count in found.items():
        log.info("%d %s are encoded anew: %s changed since they were", count, kind, cause)
    return dict(found)


def _plan(
    samples: list[Sample],
    choices: list[tuple[int, int]],
    schedule: ScaleSchedule,
    skip_small: bool,
) -> tuple[dict[tuple[int, int], list[tuple[Sample, str]]], dict[str, str]]:
    """Samples with their fingerprints by bucket, and what is left out with the reason."""
    plan, skipped, small = defaultdict(list), {}, {}
    for sample in samples:
        try:
            width, height, content = sample.look()
        except (OSError, SyntaxError, ValueError) as error:
            skipped[sample.name] = f"broken: {error}".replace("\n", " ")
            continue
        size = nearest_bucket(width, height, choices)
        least = [round(s * schedule.scales[0]) for s in size]
        if height < least[0] or width < least[1]:
            small[sample.name] = f"{width}x{height} px, smallest scale {least[1]}x{least[0]} px"
        else:
            plan[size].append((sample, content))
    if small and not skip_small:
        shown = "; ".join(f"{name} ({why})" for name, why in list(small.items())[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        raise ValueError(
            f"{len(small)} of {len(samples)} pictures are smaller than the smallest scale: {shown}"
            f"{more}. Replace them, train at a smaller size, or leave them out with --skip-small."
        )
    return plan, skipped | {name: f"too small: {why}" for name, why in small.items()}


def _key(settings: dict, group: list[tuple[Sample, str]]) -> str:
    """Changes with anything that a shard's content depends on."""
    parts = [[sample.name, sample.caption, content] for sample, content in group]
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


def _halved(part: Tensor) -> Tensor:
    return part.half() if part.is_floating_point() else part


def _check_finite(part: Tensor, what: str, names: list[str]) -> None:
    """Raises ValueError for the first row that isn't, in half precision as it is stored."""
    good = part.isfinite().flatten(1).all(1).tolist()
    if not all(good):
        raise ValueError(
            f"{names[good.index(False)]}: its {what} would hold NaN or infinity, from which "
            "nothing can be learned. Where [model] dtype is float16, try bfloat16; otherwise look "
            "at this picture and its caption, and whether the weights in [model] base are whole."
        )


@torch.inference_mode()
def _encode_shard(
    path: Path,
    group: list[Sample],
    size: tuple[int, int],
    encoder: Encoder,
    schedule: ScaleSchedule,
    identity: dict[str, str],
    batch: int,
) -> dict[str, str]:
    sizes = schedule.sizes(size[0] // encoder.factor, size[1] // encoder.factor, encoder.multiple)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    names, captions, in_bytes, skipped = [], [], [], {}
    for start in range(0, len(group), batch):
        pictures, prompts = [], []
        for sample in group[start : start + batch]:
            try:
                if sample.picture is not None:
                    pictures.append(cut(sample.read(), size))
            except (OSError, ValueError) as error:
                skipped[sample.name] = f"broken: {error}".replace("\n", " ")
                continue
            prompts.append(sample.caption)
            captions.append(sample.caption)
            names.append(sample.name)
            in_bytes.append(0 if sample.picture is None else sample.size)
        if not prompts:
            continue
        whole = torch.stack(pictures) if pictures else None
        encoded = names[-len(prompts) :]
        for h, w in dict.fromkeys(sizes) if pictures else ():
            small = shrink(whole, (h * encoder.factor, w * encoder.factor))
            latents = encoder.latents(small).half()
            _check_finite(latents, "latent", encoded)
            parts[f"latent_{h}x{w}"].append(latents)
        for name, part in encoder.text(prompts).map(_halved).parts.items():
            _check_finite(part, "encoded caption", encoded)
            parts[name].append(part)
    header = {
        **identity,
        "count": str(len(names)),
        "names": json.dumps(names),
        "captions": json.dumps(captions),
        "bytes": json.dumps(in_bytes),
        "skipped": json.dumps(skipped),
    }
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    if "mask" in tensors:  # no more tokens than the longest prompt has
        longest = int(tensors["mask"].sum(1).max())
        for name in ("context", "mask"):
            tensors[name] = tensors[name][:, :longest].contiguous()
    _write(path, tensors or {"none": torch.zeros(1)}, header)
    return header
