"""Quality against cost of growing, on the teacher of scenes, beside fewer steps at full size.

    make bench-growth BENCH="--count 1000 --device cuda"

No ComfyUI needed; the folder is the one of `make train-scenes-teacher`, with the classifier in it.
Every row paints the same scenes from the same seeds, so differences are taken picture by picture.
The truth that latents are compared with is a run of many steps at full size; --no-truth leaves
that out, as it takes longer than any row. What was found of each picture is kept in --parts; rows
that are there are not painted again. --paint stops after that, and without a --scenes only the
rows that are there are summed up, so that the two may be done on different machines. --time N
times the rows instead, in N rounds of turns: painting may share a machine with other work, timing
may not.

spectral, swd, pixels: the lifts of swd_core. overwritten, re-spaced: the spectral lift with other
noise levels (`growth_spacing`). published: another's sampler as it is (`published_growth`).
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from growth_figure import figure
from growth_ways import FULL, GUIDANCE, OURS, PEER, SOLVERS, Teacher, Way, schedule
from paired import ROOT, arguments, log, paired, parser, section, spread, table
from published_growth import DELTAS as PUBLISHED_DELTAS
from torch import Tensor

from swd_core.files import read_json, write_text
from swd_core.lab.classifier import CLASSIFIER_FILE, Labels, load_classifier
from swd_core.lab.evaluate import asked, real_painter
from swd_core.lab.measures import Interval, bootstrap, examined, mean, moments
from swd_core.scenes.autoencoder import FACTOR
from swd_core.scenes.student import MODEL_FILE
from swd_core.spectrum import top_octave_energy
from swd_core.tensor_files import read_tensors, save_tensors

ROUNDS, TRUTH_STEPS, LARGEST_REAL = 40, 50, 256
DELTAS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
FEWER = (0.01, 0.05, 0.2)  # of all lifts but the spectral one
CUTS = {25: (15, 12), 8: (5, 4)}
RESULTS = ROOT / "docs" / "growth.json"
FIGURE = ROOT / "docs" / "images" / "growth_curves.png"
REAL, TRUTH, TIMES = "real", "truth", "times.json"


def ways(
    solvers: Sequence[str], steps: Sequence[int], side: int, deltas: Sequence[float]
) -> Iterator[Way]:
    """All rows; of the deltas that grow after the same step only the first."""
    for solver in solvers:
        for count in steps:
            yield Way(solver, count)
            for cut in CUTS.get(count, ()):
                yield Way(solver, count, cut=cut)
            for lift in OURS:
                known = set()
                for delta in deltas if lift == "spectral" else sorted(set(deltas) & set(FEWER)):
                    way = Way(solver, count, lift, delta)
                    run = schedule(way, side).stretches(side, side)
                    if len(run) > 1 and run[1].step not in known:
                        known.add(run[1].step)
                        yield way
            yield from (Way(solver, count, PEER, delta) for delta in PUBLISHED_DELTAS)


def detail(pictures: Tensor) -> float:
    """Energy of the top octave of uint8 pictures (N, 3, H, W)."""
    return top_octave_energy(pictures.float().mean(1, keepdim=True) / 255)


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


def paint(a: argparse.Namespace, wanted: Sequence[Way], parts: Parts) -> None:
    """Fills in the rows that are missing, and those of the real pictures and the truth."""
    names = [way.name for way in wanted]
    if all(parts.has(name) for name in (REAL, *[TRUTH] * a.truth, *names)):
        return
    side, scenes = a.size // FACTOR, asked(a.count, 0, held=False)
    teacher = Teacher(a.scenes, a.device, side, a.batch)
    weights = a.scenes / CLASSIFIER_FILE
    classifier, made = load_classifier(weights).to(a.device), weights.read_bytes()
    made = hashlib.sha256(made + (a.scenes / MODEL_FILE).read_bytes()).hexdigest()
    truth_of_scenes = Labels.of(scenes)

    def found(pictures: Tensor) -> tuple[dict[str, Tensor], float]:
        answers, features = examined(classifier, pictures.to(a.device))
        fields = ("things", "count", "place", "time")
        answers = Labels(*(getattr(answers, f).cpu() for f in fields))
        right = answers.right(truth_of_scenes)["everything"]
        return {"right": right, "features": features.half().cpu()}, detail(pictures)

    if not parts.has(REAL):
        if a.assets is None:
            raise SystemExit("Real pictures are to be painted: give --assets, the figures' folder.")
        log.info("painting %d real pictures", a.count)
        tensors, energy = found(real_painter(a.assets, min(a.size, LARGEST_REAL))(scenes, 0))
        parts.keep(REAL, tensors, {"detail": energy, "of": made})
    if parts.read(REAL)[1]["of"] != made:
        raise SystemExit(
            f"{parts.folder} is of another teacher or classifier than those in {a.scenes}: give "
            "another --parts, or remove it."
        )
    if a.truth and not parts.has(TRUTH):
        latents, *_ = teacher.latents(Way("res_multistep", TRUTH_STEPS), scenes)
        parts.keep(TRUTH, {"latents": latents.half()}, {})
    truth = parts.read(TRUTH)[0]["latents"].float() if parts.has(TRUTH) else None
    teacher.latents(Way("euler", 1), scenes[: a.batch])  # what is slow only once
    for way in wanted:
        if parts.has(way.name):
            continue
        latents, cost, seconds = teacher.latents(way, scenes)
        tensors, energy = found(teacher.pictures(latents))
        if truth is not None:
            off = (latents - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
            tensors["distance"] = off
        row = {"cost": cost, "seconds": seconds, "detail": energy}
        parts.keep(way.name, tensors, row)
        log.info("%s: right %.3f, %s", way.name, tensors["right"].float().mean(), row)


def time_rows(a: argparse.Namespace, wanted: Sequence[Way], parts: Parts) -> None:
    """Times the rows in turns on one batch of pictures, for what painting them took."""
    scenes = asked(a.batch, 0, held=False)
    teacher = Teacher(a.scenes, a.device, a.size // FACTOR, a.batch)
    sides = {way.name: partial(teacher.latents, way, scenes) for way in wanted}
    times = paired(sides, a.time, clock=teacher.now)
    known = parts.times() | {k: spread(v).median / len(scenes) for k, v in times.items()}
    write_text(parts.folder / TIMES, json.dumps(known, indent=1) + "\n")


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


@dataclass
class Painted:
    """A row's pictures: what was found of each, of all, and the Fréchet distances of `bootstrap`'s
    draws, which are the same pictures' in every row."""

    way: Way
    found: dict[str, Tensor]
    row: dict[str, float]
    frechet: Interval
    draws: list[float]

    @classmethod
    def of(cls, way: Way, parts: Parts, distance_to: Callable[[Tensor], float]) -> "Painted":
        (found, row), draws = parts.read(way.name), []

        def drawn(chosen: Tensor) -> float:
            draws.append(distance_to(found["features"][chosen]))
            return draws[-1]

        return cls(way, found, row, bootstrap(drawn, len(found["right"]), ROUNDS), draws)

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
    distance_to, timed = frechet_to(real["features"]), parts.times()
    rows: dict[str, Any] = {}
    for run in dict.fromkeys(way.run for way in wanted):
        there = [way for way in wanted if way.run == run and parts.has(way.name)]
        painted = [Painted.of(way, parts, distance_to) for way in there]
        if not painted:
            continue
        full, cut = painted[0], next((p for p in painted if p.way.cut), None)
        if full.way.lift != FULL or full.way.cut:
            raise SystemExit(f"The row {run} at full size is missing: paint it first.")
        for mine in painted:
            mine.row["seconds"] = timed.get(mine.way.name, mine.row["seconds"])
            row = rows[mine.way.name] = {
                "cost": round(mine.row["cost"], 3),
                "time": round(mine.row["seconds"] / full.row["seconds"], 4),
                "seconds": round(mine.row["seconds"], 5),
                "detail": round(mine.row["detail"] / about["detail"], 4),
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
                    "right more": mine.more_right(peer),
                    "frechet more": mine.farther(peer),
                }
    return rows


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
    return f"delta {peer['delta']:g}: {'; '.join(figures)}"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--scenes", type=Path, help="folder of the teacher's weights and the classifier")
    p.add_argument("--assets", type=Path, help="the figures' folder, to paint real pictures once")
    p.add_argument(
        "--no-truth", dest="truth", action="store_false", help="leave out the latents' distance"
    )
    p.add_argument("--parts", type=Path, default=ROOT / "runs" / "growth")
    p.add_argument("--paint", action="store_true", help="stop when all rows are painted")
    p.add_argument("--time", type=int, metavar="N", help="time the rows, in N rounds of turns")
    p.add_argument("--device", default="cpu")
    p.add_argument("--count", type=int, default=128, help="pictures of each row")
    p.add_argument("--batch", type=int, default=16, help="pictures sampled at once")
    p.add_argument("--size", type=int, default=256, help="of the finished pictures, in pixels")
    p.add_argument("--steps", type=int, nargs="+", default=[25, 8])
    p.add_argument("--solver", nargs="+", choices=[*SOLVERS], default=[*SOLVERS])
    p.add_argument("--only", nargs="+", choices=[FULL, *OURS, PEER], help="paint these rows alone")
    p.add_argument("--deltas", nargs="+", type=float, default=DELTAS, help="of our lifts")
    p.add_argument("--json", type=Path, default=RESULTS, help="where the measures go")
    a = arguments(p)
    if a.small:
        a.count, a.steps, a.solver, a.deltas = 16, a.steps[-1:], a.solver[:1], FEWER
    parts = Parts(a.parts, a.size, a.count)
    wanted = list(ways(a.solver, a.steps, a.size // FACTOR, a.deltas))
    if a.scenes:
        with torch.inference_mode():
            chosen = [w for w in wanted if not a.only or w.lift in a.only]
            if a.time:
                time_rows(a, chosen, parts)
            else:
                paint(a, chosen, parts)
    if a.paint or a.time:
        return
    rows = summed_up(wanted, parts)
    part = "" if a.size == LARGEST_REAL else f"-{a.size}"
    title, body = f"Growing the teacher of scenes, {a.size} px", text(rows, a.count, a.size)
    log.info(section("growth", title, body, a, part=part))
    if not a.small:
        kept = read_json(a.json) if a.json.is_file() else {}
        kept[f"{a.size} px"] = {"count": a.count, "guidance": GUIDANCE, "rows": rows}
        write_text(a.json, json.dumps(kept, indent=1) + "\n")
        figure(kept, FIGURE if a.json == RESULTS else a.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
