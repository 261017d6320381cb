"""Reads what `prepare` wrote: latents at every size of the schedule, with their text."""

import bisect
import hashlib
import json
import random
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..families import ARCHITECTURES, FAMILIES
from ..files import parse_json, read_json
from ..schedule import ScaleSchedule, one_line
from ..tensor_files import open_tensors
from ..transfer import sent
from .conditioning import ON_CPU, PROMPT, Conditioning, as_number
from .interface import Shown
from .prepare import EMPTY, INDEX, SHARD
from .scalewise import Interval, intervals

PICTURES = "pictures"
DIMENSIONS = {"context": 3, "pooled": 2, "mask": 2}  # of a batch of prompts


@dataclass(frozen=True)
class Bucket:
    """The shards of one finished size (height, width) in pixels."""

    size: tuple[int, int]
    files: tuple[str, ...]
    ends: tuple[int, ...]  # running number of pictures

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


class Origin(NamedTuple):
    """A picture's caption and its file's size in bytes; None where that is not known."""

    caption: str | None
    size: int | None


@dataclass
class PreparedBatches:
    """Draws batches from a prepared folder; only the rows that are asked for are read.

    Args:
        folder: of `prepare`. device: where the batches go.
        sigmas: the schedule's noise levels in the process's own terms; as prepared if empty.

    Raises:
        FileNotFoundError: if there is nothing prepared. ValueError: if it is damaged, or prepare
            was stopped while it made some of it anew.
    """

    folder: Path
    sigmas: tuple[float, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        index = read_index(self.folder)
        self.schedule = ScaleSchedule.from_dict(index["schedule"])
        self.family, factor = index["family"], index["factor"]
        self.kind = kind_of(index)
        self.pictures = self.kind == PICTURES
        self.fingerprint = fingerprint(index)
        self._open: dict[str, safe_open] = {}
        self.empty = self._empty()
        groups: dict[tuple[int, int], list[dict]] = {}
        for shard in index["shards"]:
            groups.setdefault(tuple(shard["size"]), []).append(shard)
        self.buckets, self._steps = {}, {}
        for size, shards in groups.items():
            bucket = Bucket(
                size,
                tuple(s["file"] for s in shards),
                tuple(accumulate(s["count"] for s in shards)),
            )
            sizes = self.schedule.sizes(size[0] // factor, size[1] // factor, index["multiple"])
            for shard in shards:
                self._check_shard(shard, sizes)
            self.buckets[bucket.name] = bucket
            sigmas = self.sigmas or self.schedule.sigmas
            self._steps[bucket.name] = intervals(sizes, sigmas, bucket.name)
        self.count = sum(b.ends[-1] for b in self.buckets.values())

    def identity(self) -> dict[str, Any]:
        """What tells this data from other."""
        return {f"prepared {self.kind}": self.fingerprint}

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Every step's size in latent cells, of all buckets."""
        return tuple({step.size for steps in self._steps.values() for step in steps})

    @property
    def finished(self) -> tuple[int, int]:
        """The largest finished size in latent cells."""
        ends = (steps[-1].size for steps in self._steps.values())
        return max(ends, key=lambda size: size[0] * size[1])

    def steps(self, rng: random.Random) -> list[Interval]:
        """The intervals of one bucket, drawn in proportion to its pictures."""
        names = list(self.buckets)
        weights = [self.buckets[name].ends[-1] for name in names]
        return self._steps[rng.choices(names, weights)[0]]

    def draw(
        self, interval: Interval, count: int, rng: random.Random, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        """See `Batches`; of the whole batch only the rows `part` are read."""
        bucket = self.buckets[interval.bucket]
        chosen = [rng.randrange(bucket.ends[-1]) for _ in range(count)][part]
        real = self._latents(bucket, interval.size, chosen)
        previous = self._latents(bucket, interval.previous, chosen) if interval.previous else None
        return real, previous, self._text(bucket, chosen)

    def first(self, count: int) -> Shown:
        """The first pictures of the bucket that has most; `count` of them where it has as many."""
        bucket = max(self.buckets.values(), key=lambda b: b.ends[-1])
        steps, chosen = self._steps[bucket.name], list(range(min(count, bucket.ends[-1])))
        captions: list[str] = []
        for file in bucket.files:
            if len(captions) < len(chosen):
                captions += self._captions(file)
        real, text = self._latents(bucket, steps[-1].size, chosen), self._text(bucket, chosen)
        return Shown(tuple(captions[: len(chosen)]), steps, real, text, self.pictures)

    def captions(self) -> list[str]:
        """All of them, shard by shard, in the order in which they were prepared."""
        return [c for b in self.buckets.values() for file in b.files for c in self._captions(file)]

    def origins(self) -> dict[str, Origin]:
        """What every picture was prepared from, by its name in the source."""
        found: dict[str, Origin] = {}
        for file in (file for bucket in self.buckets.values() for file in bucket.files):
            header = self._file(file).metadata()
            names = parse_json(header["names"], f"{file}'s list of names")
            nothing = json.dumps([None] * len(names))  # where an earlier prepare noted none
            captions, sizes = (
                parse_json(header.get(key, nothing), f"{file}'s {key}")
                for key in ("captions", "bytes")
            )
            found |= {
                name: Origin(*known) for name, *known in zip(names, captions, sizes, strict=False)
            }
        return found

    def unconditional(self, count: int) -> Conditioning:
        return self.empty.map(as_number).expand(count)

    def _captions(self, name: str) -> list[str]:
        header = self._file(name).metadata()
        try:
            found = parse_json(header.get("captions") or header["names"], "its list of captions")
        except ValueError as error:
            raise self._damaged(name, str(error)) from error
        if not isinstance(found, list) or not found or not all(isinstance(c, str) for c in found):
            raise self._damaged(name, "its captions are no list of texts")
        return found

    def _text(self, bucket: Bucket, chosen: list[int]) -> Conditioning:
        size = torch.tensor([bucket.size] * len(chosen), dtype=torch.float32)
        prompt = {name: self._rows(bucket, name, chosen) for name in self.empty.parts}
        return Conditioning(**prompt, size=size)

    def _latents(self, bucket: Bucket, size: tuple[int, int], chosen: list[int]) -> Tensor:
        """Zeros where there are prompts alone: the place of what a student begins without."""
        if self.pictures:
            return self._rows(bucket, "latent_{}x{}".format(*size), chosen)
        known = ARCHITECTURES.get(self.family) or FAMILIES[self.family].architecture
        return torch.zeros(len(chosen), known.channels, *size, device=self.device)

    def _rows(self, bucket: Bucket, name: str, chosen: list[int]) -> Tensor:
        rows = []
        for place in chosen:
            shard = bisect.bisect_right(bucket.ends, place)
            row = place - (bucket.ends[shard - 1] if shard else 0)
            rows.append(self._file(bucket.files[shard]).get_slice(name)[row])
        # A shard has as many tokens as its longest prompt; the mask says which of them count.
        longest = max(len(row) for row in rows)
        whole = torch.zeros(len(rows), longest, *rows[0].shape[1:], dtype=rows[0].dtype)
        for place, row in enumerate(rows):  # autocast knows no torch.stack of half precision
            whole[place, : len(row)] = row
        if name in ON_CPU:
            return whole
        return as_number(sent(whole, self.device))  # half the bytes on their way there

    def _empty(self) -> Conditioning:
        """The prompt that is none; its parts are those that every prompt has here."""
        file = self._file(EMPTY)
        names = [name for name in PROMPT if name in file.keys()]
        if "context" not in names:
            raise self._damaged(EMPTY, "it has no context")
        parts = {name: file.get_tensor(name) for name in names}
        for name, part in parts.items():
            if part.ndim != DIMENSIONS[name] or len(part) != 1 or not part.numel():
                raise self._damaged(EMPTY, f"{name} is {list(part.shape)}, not of one prompt")
        mask = parts.get("mask")
        if mask is not None and (
            mask.dtype != torch.bool or mask.shape != parts["context"].shape[:2]
        ):
            raise self._damaged(EMPTY, "its mask is not of its context's tokens")
        return Conditioning(**parts).sent(self.device)

    def _file(self, name: str) -> safe_open:
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> safe_open:
        try:
            return open_tensors(self.folder / name)
        except (OSError, ValueError) as error:
            raise self._damaged(name, str(error)) from error

    def _damaged(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f"{self.folder / name} is missing or damaged ({reason}). Run prepare again: it makes "
            "only what is missing."
        )

    def _check_shard(self, shard: dict, sizes: list[tuple[int, int]]) -> None:
        """Raises ValueError unless a shard holds the rows that the index says."""
        name, count = shard["file"], shard["count"]
        with self._opened(name) as file:
            parts = {key: file.get_slice(key) for key in file.keys()}
            shapes = {key: part.get_shape() for key, part in parts.items()}
            kinds = {key: part.get_dtype() for key, part in parts.items()}
            header = file.metadata() or {}
        sizes = sizes if self.pictures else []
        wanted = {f"latent_{h}x{w}": (4, [h, w]) for h, w in sizes}
        for key, part in self.empty.parts.items():
            # As many tokens as its text has, but each as wide as everywhere.
            wanted[key] = (part.ndim, [] if key == "mask" else [part.shape[-1]])
        for key, (dimensions, ends) in wanted.items():
            shape = shapes.get(key) or [0]
            form = len(shape) == dimensions and all(shape)
            if not form or shape[0] != count or shape[len(shape) - len(ends) :] != ends:
                raise self._damaged(name, f"{key} is {shape}, not of {count} {self.kind}")
            if not kinds[key].startswith("BOOL" if key == "mask" else ("F", "BF")):
                raise self._damaged(name, f"{key} holds {kinds[key]}, which are no such numbers")
        if "mask" in wanted and shapes["mask"] != shapes["context"][:2]:
            raise self._damaged(name, f"mask is {shapes['mask']}, not of its context's tokens")
        if header.get("key") != shard.get("key", header.get("key")) or "names" not in header:
            raise self._damaged(name, "it is of another prepare than the index")


def read_index(folder: Path) -> dict:
    """The prepared folder's list of shards and settings.

    Raises:
        FileNotFoundError: if there is none. ValueError: if it can't be read.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"Nothing is prepared in {folder} (no {INDEX}), or prepare was stopped before its end. "
            "Run `python -m swd_core prepare` with the same config first."
        )
    try:
        index = read_json(path)
        _check_index(index)
        return index
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged ({reason}). Run prepare again.") from error


def kind_of(index: dict) -> str:
    """What was prepared, as a user calls it: pictures, or prompts without any."""
    return PICTURES if index.get("pictures", True) else "prompts"


def fingerprint(index: dict) -> str:
    """What is another text for other pictures or captions, sizes or encoders."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _check_index(index: Any) -> None:
    """Raises ValueError, KeyError or TypeError for what `prepare` doesn't write."""
    ScaleSchedule.from_dict(index["schedule"])
    numbers = [index["factor"], index["multiple"]]
    for shard in index["shards"]:
        if not isinstance(shard["file"], str) or not SHARD.fullmatch(shard["file"]):
            raise ValueError(f"{str(shard['file'])[:60]!r} is no shard of this folder")
        height, width = shard["size"]
        numbers += [height, width, shard["count"]]
    if index.get("pictures", True) is not True and index["family"] not in FAMILIES | ARCHITECTURES:
        raise ValueError("prompts without pictures are of a family that is not known")
    if not index["shards"]:
        raise ValueError("it has no shards")
    family = index["family"]
    if not isinstance(family, str) or family != one_line(family):
        raise ValueError(f"its family {str(family)[:40]!r} is no name")
    strange = [n for n in numbers if type(n) is not int or not 0 < n < 1 << 32]
    if strange:
        raise ValueError(f"{str(strange[0])[:30]!r} is no number that can be meant")
