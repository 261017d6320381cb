"""What drafts cost against full runs, and how both grow with their number and with the size.

    make bench-drafts

The number on the trained scene student at 256 pixels (one thread), through the nodes; the size on
SD3.5 Medium's true width in bfloat16 with random weights and a few of its 24 blocks. One draft at
SD3.5 Medium's true size is in `make bench-true-size`.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import on_host
import torch
from paired import (
    Times,
    arguments,
    log,
    paired,
    parser,
    peak_of,
    peaks,
    ratio,
    section,
    spread,
    table,
)

DRAFTS, RUNS, SINGLE = "drafts", "full runs", "full runs one by one"
SHOWN, DECODED = "drafts, decoded, with their sheet", "full runs, decoded"
Sides = dict[str, Callable[[], Any]]


class Embedded:
    """The embedded student in the host, and one prompt."""

    def __init__(self) -> None:
        nodes = on_host.pack()
        self.model, clip, self.vae, self.schedule = nodes["SwDSceneStudent"].execute(1.0).args
        self.cond = clip.encode_from_tokens_scheduled(clip.tokenize("a fox in a forest at sunset"))

    def run(self, count: int) -> dict[str, Any]:
        latent = on_host.empty_latent(256, count=count)
        return on_host.sample(self.model, self.cond, latent, self.schedule)

    def draft(self, count: int) -> Any:
        """The sampling alone, as SwDDrafts does it."""
        drafting = sys.modules["swd_pack.nodes.drafting"]
        latent = on_host.empty_latent(256)
        begun = drafting.begin(
            self.model, latent, self.schedule, on_host.SEED, count, "bicubic"
        )  # fmt: skip
        sampling = drafting.Sampling(self.model, {"": (self.cond, None)}, 1.0)
        return sampling.run(begun, 1, count, lambda _: None)

    def show(self, count: int) -> Any:
        latent = on_host.empty_latent(256)
        return on_host.draft(self.model, self.cond, latent, self.schedule, count, vae=self.vae)

    def sides(self, count: int) -> Sides:
        return {
            DRAFTS: partial(self.draft, count),
            RUNS: partial(self.run, count),
            SINGLE: lambda: [self.run(1) for _ in range(count)],
            SHOWN: partial(self.show, count),
            DECODED: lambda: self.vae.decode(self.run(count)),
        }


def size_sides(a: argparse.Namespace) -> Callable[[int], Sides]:
    """The sides for a target of this many pixels; the model is made once."""
    on_host.pack()
    model = on_host.sd35_medium(2, 2) if a.small else on_host.sd35_medium(a.blocks)
    cond = on_host.sd35_conditioning()
    schedule, _ = on_host.schedule_for(model, "sd35-medium-4")

    def sides(side: int) -> Sides:
        latent = on_host.empty_latent(side)
        return {
            DRAFTS: lambda: on_host.draft(model, cond, latent, schedule, 1),
            RUNS: lambda: on_host.sample(model, cond, latent, schedule),
        }

    return sides


def peak(a: argparse.Namespace) -> int:
    """Of a side named as counts() and targets() name it; the run before it is the same, small."""
    kind, number, side = a.peak.split("/")
    if kind == "count":
        torch.set_num_threads(1)
        embedded = Embedded()
        embedded.sides(1)[side]()
        return peak_of(embedded.sides(int(number))[side])
    sides = size_sides(a)
    sides(128)[side]()
    return peak_of(sides(int(number))[side])


def tokens(side: int) -> tuple[int, int]:
    """Patches of one draft and of one full run at a target of this many pixels."""
    sizes = [2 * round(side * scale / 16) for scale in (0.5, 0.625, 0.75, 1)]
    each = [(s // 2) ** 2 for s in sizes]
    return each[0], sum(each)


def counts_text(found: dict[int, Times], memory: dict[str, float]) -> str:
    rows = []
    for count, times in found.items():
        by = [ratio(times, a, b) for a, b in ((DRAFTS, RUNS), (DRAFTS, SINGLE), (SHOWN, DECODED))]
        goal = [r.against(0.13) if count == 16 else "" for r in by[:1]]
        seconds = [spread(times[side]) for side in (DRAFTS, RUNS)]
        draft, full = (count * n for n in tokens(256))
        mib = [shown(memory, f"count/{count}/{side}") for side in (DRAFTS, RUNS)]
        rows.append([count, *seconds, f"{draft} / {full}", *mib, *by, *goal])
    head = [
        "N", "N drafts, s", "N full runs, s", "tokens", "drafts, MiB", "runs, MiB",
        "drafts of runs", "drafts of N runs one by one", "drafts with their sheet of decoded runs",
        "goal, drafts of runs",
    ]  # fmt: skip
    return table(head, rows)


def sizes_text(found: dict[int, Times], memory: dict[str, float]) -> str:
    rows = []
    for side, times in found.items():
        seconds = [spread(times[name]) for name in (DRAFTS, RUNS)]
        draft, full = tokens(side)
        mib = [shown(memory, f"size/{side}/{name}") for name in (DRAFTS, RUNS)]
        rows.append([side, *seconds, f"{draft} / {full}", *mib, ratio(times, DRAFTS, RUNS)])
    head = [
        "target, px", "a draft, s", "a full run, s", "tokens", "draft, MiB", "run, MiB",
        "draft of run",
    ]  # fmt: skip
    return table(head, rows)


def runs_of(found: dict[int, Times]) -> str:
    numbers = sorted({len(times[DRAFTS]) for times in found.values()})
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def shown(memory: dict[str, float], key: str) -> str:
    return f"{memory[key]:.0f}" if key in memory else ""


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 32], help="of drafts")
    p.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048], help="in pixels")
    p.add_argument("--blocks", type=int, default=2, help="of SD3.5 Medium's 24, for the sizes")
    a = arguments(p)
    if a.small:
        a.counts, a.sizes = [1, 4], [128, 256]
    with torch.inference_mode():
        if a.peak:
            sys.stdout.write(f"{peak(a)}\n")
            return
        measure(a)


def measure(a: argparse.Namespace) -> None:
    counts: dict[int, Times] = {}
    sizes: dict[int, Times] = {}
    memory: dict[str, float] = {}
    both = (DRAFTS, RUNS)
    blocks = 2 if a.small else a.blocks

    def write(found: dict[int, Times], number: int, times: Times | None = None) -> None:
        if times is not None:
            found[number] = times
        parts = [
            "N drafts after step 1 of 4, in one batch, on the scene student at 256 px; one thread. "
            f"Medians of {runs_of(counts)} paired runs. Memory is what a run takes beyond the "
            "loaded models, in a process of its own; tokens are of the drafts / the full runs.",
            counts_text(counts, memory),
        ]
        if sizes:
            parts += [
                f"One draft and one full run at SD3.5 Medium's width, {blocks} blocks. Medians of "
                f"{runs_of(sizes)} paired runs.",
                sizes_text(sizes, memory),
            ]
        body = "\n\n".join(parts)
        text = section("drafts", "Drafts against full runs", body, a, on_host.host_version())
        log.info(text)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one is of no use to so small a model
    embedded = Embedded()
    for count in a.counts:
        runs = a.runs if a.small else max(a.runs, 3 * a.runs * 16 // (count + 16))
        write(counts, count, paired(embedded.sides(count), runs))
    torch.set_num_threads(threads)
    sides = size_sides(a)
    for side in a.sizes:
        write(sizes, side, paired(sides(side), a.runs))
    del sides
    names = [f"count/{n}/{side}" for n in a.counts for side in both]
    names += [f"size/{n}/{side}" for n in a.sizes for side in both]
    memory |= peaks(names, a, "--blocks", str(a.blocks))
    write(sizes, a.sizes[-1])


if __name__ == "__main__":
    main()
