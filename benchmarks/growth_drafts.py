"""What a draft of the teacher of scenes costs, grown, and what of it the finished picture keeps.

    make bench-growth-drafts

A draft is the clean prediction after the small size, decoded at that size. Kept is what the
classifier names in both: the things, how many, the place and the time of day.
"""

from pathlib import Path

import torch
from growth_ways import SOLVERS, Teacher, Way
from paired import arguments, log, parser, section, table

from swd_core.growing import GrowthState
from swd_core.lab.classifier import CLASSIFIER_FILE, Labels, load_classifier
from swd_core.lab.evaluate import asked
from swd_core.lab.measures import examined, mean
from swd_core.scenes.autoencoder import FACTOR
from swd_core.scenes.captions import plain_caption


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--scenes", type=Path, required=True, help="folder of the teacher's weights")
    p.add_argument("--device", default="cpu")
    p.add_argument("--count", type=int, default=128, help="pictures, of as many prompts")
    p.add_argument("--size", type=int, default=256, help="of the finished pictures, in pixels")
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--solver", choices=[*SOLVERS], default="euler")
    p.add_argument("--delta", type=float, default=0.05)
    p.add_argument("--batch", type=int, default=16, help="pictures sampled at once")
    a = arguments(p)
    count = 16 if a.small else a.count
    scenes = asked(count, 0, held=False)
    teacher = Teacher(a.scenes, a.device, a.size // FACTOR, a.batch)
    classifier = load_classifier(a.scenes / CLASSIFIER_FILE).to(a.device)
    way, full = Way(a.solver, a.steps, "spectral", a.delta), Way(a.solver, a.steps)
    ends: list[float] = []
    drafts, finished = [], []

    def seen(state: GrowthState) -> None:
        ends.append(teacher.now())
        if state.stretches == 1:
            drafts.append(state.x0.cpu())

    spent = {"draft": 0.0, "grown": 0.0}
    with torch.inference_mode():
        *_, at_full = teacher.latents(full, scenes[: a.batch])
        for i in range(0, count, a.batch):
            some = scenes[i : i + a.batch]
            solve = SOLVERS[a.solver](teacher.denoiser([plain_caption(s) for s in some]))
            begin = teacher.now()
            ends.clear()
            finished.append(teacher.sampled(way, solve, range(i, i + len(some)), seen)[0].cpu())
            spent["draft"] += ends[0] - begin
            spent["grown"] += ends[-1] - begin
        answers = [
            examined(classifier, teacher.pictures(torch.cat(latents)).to(a.device))[0]
            for latents in (drafts, finished)
        ]
    first, last = (
        Labels(*(x.cpu() for x in (o.things, o.count, o.place, o.time))) for o in answers
    )
    kept = first.right(Labels(last.things.round(), last.count, last.place, last.time))
    rows = [
        [f"{what}, of a run at full size", f"{seconds / count / at_full:.3f}"]
        for what, seconds in spent.items()
    ]
    for part, same in kept.items():
        found = mean(same)
        share = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        rows.append([f"{part} the same in draft and finished picture", share])
    title = f"Drafts of the teacher of scenes, {way.name}, {a.size} px, {count} pictures"
    log.info(section("growth-drafts", title, table(["", ""], rows), a))


if __name__ == "__main__":
    main()
