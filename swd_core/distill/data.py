"""Reads what `prepare` wrote: latents at every size of the schedule, with their text."""

import bisect
import json
import random
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..schedule import ScaleSchedule
from .interface import Conditioning, Shown
from .prepare import INDEX
from .scalewise import Interval, intervals


@dataclass(frozen=True)
class Bucket:
    """The shards of one finished size (height, width) in pixels."""

    size: tuple[int, int]
    files: tuple[str, ...]
    ends: tuple[int, ...]  # running number of pictures

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


@dataclass
class PreparedBatches:
    """Draws batches from a prepared folder; only the rows that are asked for are read.

    Args:
        folder: of `prepare`. device: where the batches go.
        sigmas: the schedule's noise levels in the process's own terms; as prepared if empty.

    Raises:
        FileNotFoundError: if there is nothing prepared. ValueError: if it is damaged.
    """

    folder: Path
    sigmas: tuple[float, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        index = read_index(self.folder)
        self.schedule = ScaleSchedule.from_dict(index["schedule"])
        self.family, factor = index["family"], index["factor"]
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
            self.buckets[bucket.name] = bucket
            sigmas = self.sigmas or self.schedule.sigmas
            self._steps[bucket.name] = intervals(sizes, sigmas, bucket.name)
        self.count = sum(b.ends[-1] for b in self.buckets.values())
        self._open: dict[str, safe_open] = {}
        empty = self._file("empty.safetensors")
        self.empty = tuple(empty.get_tensor(k).to(self.device) for k in ("context", "pooled"))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Every step's size in latent cells, of all buckets."""
        return tuple({step.size for steps in self._steps.values() for step in steps})

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
        real = self._rows(bucket, "latent_{}x{}".format(*interval.size), chosen)
        previous = None
        if interval.previous:
            previous = self._rows(bucket, "latent_{}x{}".format(*interval.previous), chosen)
        return real, previous, self._text(bucket, chosen)

    def first(self, count: int) -> Shown:
        """The first pictures of the bucket that has most; `count` of them where it has as many."""
        bucket = max(self.buckets.values(), key=lambda b: b.ends[-1])
        steps, chosen = self._steps[bucket.name], list(range(min(count, bucket.ends[-1])))
        captions: list[str] = []
        for file in bucket.files:
            if len(captions) < len(chosen):
                header = self._file(file).metadata()
                captions += json.loads(header.get("captions") or header["names"])
        real = self._rows(bucket, "latent_{}x{}".format(*steps[-1].size), chosen)
        return Shown(tuple(captions[: len(chosen)]), steps, real, self._text(bucket, chosen))

    def unconditional(self, count: int) -> Conditioning:
        context, pooled = self.empty
        return context.float().expand(count, -1, -1), pooled.float().expand(count, -1)

    def _text(self, bucket: Bucket, chosen: list[int]) -> Conditioning:
        target = torch.tensor([bucket.size] * len(chosen), dtype=torch.float32).to(self.device)
        return (*(self._rows(bucket, name, chosen) for name in ("context", "pooled")), target)

    def _rows(self, bucket: Bucket, name: str, chosen: list[int]) -> Tensor:
        rows = []
        for place in chosen:
            shard = bisect.bisect_right(bucket.ends, place)
            row = place - (bucket.ends[shard - 1] if shard else 0)
            rows.append(self._file(bucket.files[shard]).get_slice(name)[row : row + 1].float())
        return torch.cat(rows).to(self.device)

    def _file(self, name: str) -> safe_open:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, "pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{self.folder / name} is missing or damaged ({error}). Run prepare again: it "
                    "makes only what is missing."
                ) from error
        return self._open[name]


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
        index = json.loads(path.read_text(encoding="utf-8"))
        index["schedule"], index["shards"], index["family"], index["factor"], index["multiple"]
        return index
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Run prepare again.") from error
