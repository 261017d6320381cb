"""Scale-wise steps and one draft against full-size steps of the same model, at its true size.

    make bench-true-size

SD3.5 Medium at its true width and depth (2.2 billion weights, bfloat16, random: time does not
depend on their values), 1024 pixels, no guidance, through the nodes. The full-size steps are the
host's own LCM sampler.
"""

import argparse
from collections.abc import Callable

import on_host
import torch
from paired import Times, arguments, clock, log, paired, parser, ratio, section, spread, table

SIX = "SwD, 6 steps"
FOUR = "SwD, 4 steps"
FULL = "4 full-size steps"
DRAFT = "one draft, after step 1 of 4"
TITLE = "Scale-wise against full-size: SD3.5 Medium, true size, bfloat16, 1024 px"
DRAFT_TITLE = "One draft: SD3.5 Medium, true size, bfloat16, 1024 px"


def text(times: Times, ends: list[list[float]]) -> str:
    """ends: seconds from the start of a full-size run to the end of each of its steps."""
    halves = [run[1] for run in ends]
    times = times | {
        "2 full-size steps": halves,
        "28 full-size steps": [7 * t for t in times[FULL]],
    }
    notes = {
        "2 full-size steps": "the first two of the four",
        "28 full-size steps": "**computed**: 7 times the four",
    }
    rows = [
        [
            name,
            spread(values),
            ratio(times, name, FULL),
            ratio(times, name, FOUR),
            notes.get(name, ""),
        ]
        for name, values in times.items()
    ]
    step = times | {"step": [t / 4 for t in times[FULL]]}
    draft = ratio(times, DRAFT, FOUR)
    found = [
        ["four scale-wise steps, in full-size steps", ratio(step, FOUR, "step"), ""],
        ["six scale-wise steps, in full-size steps", ratio(step, SIX, "step"), ""],
        ["a draft, of the four scale-wise steps", draft, draft.against(0.08)],
    ]
    head = ["", "seconds", "of 4 full-size steps", "of 4 SwD steps", ""]
    return f"Median of {len(times[FULL])} paired runs.\n\n{table(head, rows)}\n\n" + table(
        ["", "ratio", "goal"], found
    )


def draft_text(times: Times) -> str:
    rows = [[name, spread(values)] for name, values in times.items()]
    draft = ratio(times, DRAFT, FOUR)
    found = [["the draft, of the whole run", draft, draft.against(0.08)]]
    return (
        f"Median of {len(times[FOUR])} paired runs.\n\n{table(['', 'seconds'], rows)}\n\n"
        + table(["", "ratio", "goal"], found)
    )


def sides_of(a: argparse.Namespace, ends: list[list[float]]) -> dict[str, Callable[[], object]]:
    on_host.pack()
    model = on_host.sd35_medium(2, 2) if a.small else on_host.sd35_medium()
    latent = on_host.empty_latent(256 if a.small else 1024)
    cond = on_host.sd35_conditioning()
    four, sigmas = on_host.schedule_for(model, "sd35-medium-4")
    six, _ = on_host.schedule_for(model, "sd35-medium-6")

    def full() -> None:
        start, stamps = clock(), []
        on_host.full_steps(
            model, cond, latent, sigmas,
            lambda *_: stamps.append(clock() - start),
        )  # fmt: skip
        ends.append(stamps)

    return {
        DRAFT: lambda: on_host.draft(model, cond, latent, four, 1),
        FOUR: lambda: on_host.sample(model, cond, latent, four),
        SIX: lambda: on_host.sample(model, cond, latent, six),
        FULL: full,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--draft", action="store_true", help="only a draft against its whole run")
    a = arguments(options)
    ends: list[list[float]] = []

    def show(times: Times) -> None:
        if a.draft:
            title, found, part = DRAFT_TITLE, draft_text(times), "-draft"
        else:
            title, found, part = TITLE, text(times, ends), ""
        log.info(section("true-size", title, found, a, on_host.host_version(), part=part))

    with torch.inference_mode():
        sides = sides_of(a, ends)
        warm_up = sides[FOUR] if a.draft else sides[SIX]  # it runs at every size
        if a.draft:
            sides = {name: sides[name] for name in (DRAFT, FOUR)}
        paired(sides, a.runs, show, warm_up=warm_up)


if __name__ == "__main__":
    main()
