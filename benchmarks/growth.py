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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from growth_figure import figure
from growth_rows import REAL, TIMES, TRUTH_STEPS, Parts, summed_up, text
from growth_ways import FULL, GUIDANCE, OURS, PEER, SOLVERS, Teacher, Way, schedule
from paired import ROOT, arguments, log, paired, parser, section, spread
from published_growth import DELTAS as PUBLISHED_DELTAS
from torch import Tensor

from swd_core.files import read_json, write_text
from swd_core.lab.classifier import CLASSIFIER_FILE, Labels, load_classifier
from swd_core.lab.evaluate import asked, real_painter
from swd_core.lab.measures import examined
from swd_core.scenes.autoencoder import FACTOR
from swd_core.scenes.catalogue import Scene
from swd_core.scenes.student import MODEL_FILE
from swd_core.spectrum import top_octave_energy

LARGEST_REAL = 256
DELTAS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
FEWER = (0.01, 0.05, 0.2)  # of all lifts but the spectral one
CUTS = {25: (15, 12), 8: (5, 4)}
RESULTS = ROOT / "docs" / "growth.json"
FIGURE = ROOT / "docs" / "images" / "growth_curves.png"
TRUTH = "truth"


def ways(
    solvers: Sequence[str],
    steps: Sequence[int],
    side: int,
    deltas: Sequence[float],
    start: float = 0.5,
    sizes: int = 2,
    fewer: Sequence[int] = (),
) -> Iterator[Way]:
    """All rows; of the deltas that grow alike only the first.

    Args:
        fewer: steps that the published sampler takes, too, beside `steps` in rows of more.
    """
    for solver in solvers:
        for count in steps:
            yield Way(solver, count)
            for cut in CUTS.get(count, ()):
                yield Way(solver, count, cut=cut)
            for lift in OURS:
                known: set[tuple] = set()
                for delta in deltas if lift == "spectral" else sorted(set(deltas) & set(FEWER)):
                    way = Way(solver, count, lift, delta, start=start, sizes=sizes)
                    run = schedule(way, side).stretches(side, side)
                    after = tuple((part.step, part.size) for part in run[1:])
                    if after and after not in known:
                        known.add(after)
                        yield way
            for cut in (0, *(n for n in fewer if n < count)):
                for delta in PUBLISHED_DELTAS:
                    yield Way(solver, count, PEER, delta, cut, start)


def detail(pictures: Tensor) -> float:
    """Energy of the top octave of uint8 pictures (N, 3, H, W)."""
    return top_octave_energy(pictures.float().mean(1, keepdim=True) / 255)


def paint(a: argparse.Namespace, wanted: Sequence[Way], parts: Parts) -> None:
    """Fills in the rows that are missing, and those of the real pictures and the truth."""
    names = [way.name for way in wanted]
    shown = asked(max(a.count, a.real), 0, held=False)
    real = parts.has(REAL) and len(parts.read(REAL)[0]["features"]) == len(shown)
    if real and all(parts.has(name) for name in (*[TRUTH] * a.truth, *names)):
        return
    side, scenes = a.size // FACTOR, asked(a.count, 0, held=False)
    teacher = Teacher(a.scenes, a.device, side, a.batch)
    weights = a.scenes / CLASSIFIER_FILE
    classifier, made = load_classifier(weights).to(a.device), weights.read_bytes()
    made = hashlib.sha256(made + (a.scenes / MODEL_FILE).read_bytes()).hexdigest()

    def found(pictures: Tensor, scenes: Sequence[Scene]) -> tuple[dict[str, Tensor], float]:
        answers, features = examined(classifier, pictures.to(a.device))
        fields = ("things", "count", "place", "time")
        answers = Labels(*(getattr(answers, f).cpu() for f in fields))
        right = answers.right(Labels.of(scenes))["everything"]
        return {"right": right, "features": features.half().cpu()}, detail(pictures)

    if parts.has(REAL) and parts.read(REAL)[1]["of"] != made:
        raise SystemExit(
            f"{parts.folder} is of another teacher or classifier than those in {a.scenes}: give "
            "another --parts, or remove it."
        )
    if not real:
        if a.assets is None:
            raise SystemExit("Real pictures are to be painted: give --assets, the figures' folder.")
        log.info("painting %d real pictures", len(shown))
        painted = real_painter(a.assets, min(a.size, LARGEST_REAL))(shown, 0)
        tensors, energy = found(painted, shown)
        parts.keep(REAL, tensors, {"detail": energy, "of": made})
    if a.truth and not parts.has(TRUTH):
        latents, *_ = teacher.latents(Way("res_multistep", TRUTH_STEPS), scenes)
        parts.keep(TRUTH, {"latents": latents.half()}, {})
    truth = parts.read(TRUTH)[0]["latents"].float() if parts.has(TRUTH) else None
    teacher.latents(Way("euler", 1), scenes[: a.batch])  # what is slow only once
    for way in wanted:
        if parts.has(way.name):
            continue
        latents, cost, seconds = teacher.latents(way, scenes)
        tensors, energy = found(teacher.pictures(latents), scenes)
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
    p.add_argument(
        "--real", type=int, default=1000, help="real pictures to measure against, --count if that "
        "is more: the distance to a few depends on which they are",
    )  # fmt: skip
    p.add_argument("--batch", type=int, default=16, help="pictures sampled at once")
    p.add_argument("--size", type=int, default=256, help="of the finished pictures, in pixels")
    p.add_argument("--steps", type=int, nargs="+", default=[25, 8])
    p.add_argument("--solver", nargs="+", choices=[*SOLVERS], default=[*SOLVERS])
    p.add_argument("--only", nargs="+", choices=[FULL, *OURS, PEER], help="paint these rows alone")
    p.add_argument("--deltas", nargs="+", type=float, default=DELTAS, help="of our lifts")
    p.add_argument(
        "--published-steps", type=int, nargs="+", default=(), metavar="N", help="fewer steps that "
        "the published sampler is to take, too: it is compared with ours at no lower a cost",
    )  # fmt: skip
    p.add_argument("--start", type=float, default=0.5, help="smallest size, a share of the last")
    p.add_argument("--sizes", type=int, default=2, help="how many sizes ours grow over")
    p.add_argument("--json", type=Path, default=RESULTS, help="where the measures go")
    a = arguments(p)
    if a.small:
        a.count = a.real = 16
        a.steps, a.solver, a.deltas = a.steps[-1:], a.solver[:1], FEWER
    parts = Parts(a.parts, a.size, a.count)
    side = a.size // FACTOR
    wanted = [*ways(a.solver, a.steps, side, a.deltas, a.start, a.sizes, a.published_steps)]
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
