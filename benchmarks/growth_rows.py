"""The rows of `make bench-growth`: what was found of each picture, and what that sums up to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from growth_ways import FULL, GUIDANCE, OURS, PEER, Way
from paired import table
from torch import Tensor

from swd_core.files import read_json
from swd_core.lab.measures import Interval, bootstrap, mean, moments
from swd_core.tensor_files import read_tensors, save_tensors

ROUNDS, TRUTH_STEPS = 40, 50
REAL, TIMES = "real", "times.json"


class Parts:
    """What was found of each picture of each row: right (N,), features (N, D), distance (N,)."""

    def __init__(self, folder: Path, size: int, count: int):
        self.folder = folder / f"{size}px_{count}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        plain = name.replace(" | ", "_").replace(",", "").replace(" ", "-")
        return self.folder / f"{plain}.safetensors"

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The tensors, and the numbers of the whole row."""
        tensors, metadata = read_tensors(self.path(name))
        return tensors, json.loads(metadata["row"])

    def times(self) -> dict[str, float]:
        """Seconds of a picture by row, of those that were timed in turns."""
        path = self.folder / TIMES
        return read_json(path) if path.is_file() else {}

    def keep(self, name: str, tensors: dict[str, Tensor], row: dict[str, Any]) -> None:
        save_tensors(self.path(name), tensors, {"row": json.dumps(row)})


def frechet_to(real: Tensor) -> Callable[[Tensor], float]:
    """`measures.frechet_distance` of features (N, D) to real ones, quickly, as it is drawn often.

    The eigenvalues of C1^1/2 C2 C1^1/2 are those of X C2 X^T for centred X with C1 = X^T X.
    """
    centre, covariance = moments(real)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()

    def distance(features: Tensor) -> float:
        x = features.double()
        middle = x.mean(0)
        x = (x - middle) / (len(x) - 1) ** 0.5
        y = x @ root
        inner = y @ y.T if len(y) < y.shape[1] else y.T @ y
        cross = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
        spread = x.square().sum() + covariance.trace()
        return float((middle - centre).square().sum() + spread - 2 * cross)

    return distance


@dataclass(frozen=True)
class Painted:
    """A row's pictures: what was found of each, of all, and the Fréchet distances of `bootstrap`'s
    draws, which are the same pictures' in every row."""

    way: Way
    found: dict[str, Tensor]
    row: dict[str, float]
    frechet: Interval
    draws: list[float]
    seconds: float  # for each picture

    @classmethod
    def of(cls, way: Way, parts: Parts, distance_to: Callable[[Tensor], float]) -> "Painted":
        (found, row), draws = parts.read(way.name), []
        seconds = parts.times().get(way.name, row["seconds"])

        def drawn(chosen: Tensor) -> float:
            draws.append(distance_to(found["features"][chosen]))
            return draws[-1]

        return cls(way, found, row, bootstrap(drawn, len(found["right"]), ROUNDS), draws, seconds)

    def more_right(self, other: "Painted") -> list[float]:
        """What its share of right pictures is more than another's."""
        return mean(self.found["right"].float() - other.found["right"].float()).rounded()

    def farther(self, other: "Painted") -> list[float]:
        """What its Fréchet distance is more than another's."""
        differences = iter([a - b for a, b in zip(self.draws, other.draws, strict=True)])
        return bootstrap(lambda _: next(differences), len(self.found["right"]), ROUNDS).rounded()


def as_costly(mine: Painted, painted: Sequence[Painted]) -> Painted | None:
    """The published sampler's row of the least cost that is no lower than one of ours."""
    if mine.way.lift not in OURS:
        return None
    peers = [p for p in painted if p.way.lift == PEER and p.row["cost"] >= mine.row["cost"]]
    return min(peers, key=lambda p: p.row["cost"], default=None)


def summed_up(wanted: Sequence[Way], parts: Parts) -> dict[str, Any]:
    """The measures of all rows that are there, with their intervals."""
    real, about = parts.read(REAL)
    distance_to = frechet_to(real["features"])
    rows: dict[str, Any] = {}
    for run in dict.fromkeys(way.run for way in wanted):
        there = [way for way in wanted if way.run == run and parts.has(way.name)]
        painted = [Painted.of(way, parts, distance_to) for way in there]
        if not painted:
            continue
        if painted[0].way.lift != FULL or painted[0].way.cut:
            raise SystemExit(f"The row {run} at full size is missing: paint it first.")
        for mine in painted:
            rows[mine.way.name] = compared(mine, painted, about["detail"])
    return rows


def compared(mine: Painted, painted: Sequence[Painted], real_detail: float) -> dict[str, Any]:
    """A row's measures, beside the full run that comes first of `painted`, fewer steps and peer."""
    full, cut = painted[0], next((p for p in painted if p.way.cut), None)
    row = {
        "cost": round(mine.row["cost"], 3),
        "time": round(mine.seconds / full.seconds, 4),
        "seconds": round(mine.seconds, 5),
        "detail": round(mine.row["detail"] / real_detail, 4),
        "right": mean(mine.found["right"]).rounded(),
        "right more": mine.more_right(full),
        "frechet": mine.frechet.rounded(),
        "frechet more": mine.farther(full),
    }
    if "distance" in mine.found:
        row["distance"] = mean(mine.found["distance"]).rounded()
    if cut and mine.way.lift != FULL:
        row["frechet more than cut"] = mine.farther(cut)
    if peer := as_costly(mine, painted):
        row["than published"] = {
            "delta": peer.way.delta,
            "steps": peer.way.cut or peer.way.steps,
            "right more": mine.more_right(peer),
            "frechet more": mine.farther(peer),
        }
    return row


def text(rows: dict[str, Any], count: int, size: int) -> str:
    """The rows as tables, one for each solver and number of steps."""
    head = [
        "", "cost", "time", "right", "more", "Fréchet", "more", "than cut", "distance", "detail",
        "than published",
    ]  # fmt: skip
    parts = [
        f"{count} pictures a row at {size} px, guidance {GUIDANCE:g}. Cost in steps at full size; "
        "time as a share of the first row's (sampling alone); share with everything right and "
        "Fréchet distance (the classifier's features, real pictures), each with what it is more "
        "than the first row's, and the distance than that of the first row with fewer steps; "
        f"distance of the latents from {TRUTH_STEPS} steps at full size, "
        "relative; detail: energy of the top octave against real pictures; than published: what "
        "is right and the distance, each more than in the published sampler's row of the least "
        "cost that is no lower. In brackets 95 % of the bootstrap."
    ]
    for run in dict.fromkeys(name.split(" | ")[0] for name in rows):
        body = [
            [
                name.split(" | ")[1], f"{row['cost']:.2f}", f"{row['time']:.2f}",
                *(_figure(row[k]) for k in ("right", "right more", "frechet", "frechet more")),
                *(_figure(row.get(k)) for k in ("frechet more than cut", "distance")),
                f"{row['detail']:.2f}", _against(row.get("than published")),
            ]
            for name, row in rows.items()
            if name.startswith(f"{run} | ")
        ]  # fmt: skip
        parts.append(f"**{run}**\n\n" + table(head, body))
    return "\n\n".join(parts)


def _figure(value: Sequence[float] | None) -> str:
    return "{:.3g} ({:.3g} to {:.3g})".format(*value) if value else ""


def _against(peer: dict[str, Any] | None) -> str:
    if peer is None:
        return ""
    figures = [_figure(peer[key]) for key in ("right more", "frechet more")]
    return f"delta {peer['delta']:g}, {peer['steps']} steps: {'; '.join(figures)}"
