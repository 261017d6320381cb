"""What SwD Sample costs beyond the model calls it makes, in time and memory.

    make bench-sampler

SD3.5 Medium at its true width in bfloat16 with random weights and a few of its 24 blocks, 1024
pixels, four steps. A bare call is one of the diffusion model itself, at the size of that step.
`--growth`: FLUX.1 at its true width, grown from half the size in eight Euler steps; time is the
processor's, so that others on the machine count less.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import on_host
import torch
from paired import (
    ON_CPU,
    Times,
    arguments,
    clock,
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

PRESET = "sd35-medium-4"
BARE, RUN, REGIONS = "the bare model calls", "SwD Sample", "SwD Sample, two regions"
STEP = "the host's own step at full size"


def timed_resolving() -> list[float]:
    """Collects the seconds of each run that go into conditioning worked out anew for a size."""
    module = sys.modules["swd_pack.nodes.sized"]
    resolve, spent = module.resolve_conds, [0.0]

    def timed(*inputs: Any) -> Any:
        start = clock()
        conds = resolve(*inputs)
        spent[-1] += clock() - start
        return conds

    module.resolve_conds = timed
    return spent


def regions() -> list:
    """Two prompts, each for one half of the picture: one by a mask, one by an area."""
    mask = torch.zeros(1, 1024, 1024)
    mask[..., :512] = 1
    left = on_host.sd35_conditioning(mask=mask, mask_strength=1.0, set_area_to_bounds=False)
    area = ("percentage", 1.0, 0.5, 0.0, 0.5)
    return [*left, *on_host.sd35_conditioning(area=area, strength=1.0, set_area_to_bounds=False)]


def sides_of(a: argparse.Namespace) -> dict[str, Callable[[], object]]:
    on_host.pack()
    model = on_host.sd35_medium(2, 2) if a.small else on_host.sd35_medium(a.blocks)
    latent = on_host.empty_latent(256 if a.small else 1024)
    height, width = latent["samples"].shape[-2:]
    schedule, sigmas = on_host.schedule_for(model, PRESET)
    cond = on_host.sd35_conditioning()
    both = regions()

    def bare() -> None:
        for (side, _), sigma in zip(schedule.sizes(height, width), sigmas.tolist(), strict=False):
            on_host.bare_call(model, cond, side, sigma)

    return {
        BARE: bare,
        RUN: lambda: on_host.sample(model, cond, latent, schedule),
        REGIONS: lambda: on_host.sample(model, both, latent, schedule),
        STEP: lambda: on_host.full_steps(model, cond, latent, sigmas[[0, -1]]),
    }


def growth_sides(a: argparse.Namespace) -> dict[str, Callable[[], object]]:
    on_host.pack()
    model = on_host.flux(1, 2) if a.small else on_host.flux(1)
    latent = on_host.empty_latent(256 if a.small else 1024)
    height, width = latent["samples"].shape[-2:]
    cond, schedule = on_host.flux_conditioning(), on_host.growing(model, latent, 8)

    def bare() -> None:
        for part in schedule.stretches(height, width):
            for sigma in part.sigmas[:-1]:
                on_host.bare_flux_call(model, cond, part.size[0], sigma)

    return {BARE: bare, RUN: lambda: on_host.sample(model, cond, latent, schedule)}


def growth_text(times: Times) -> str:
    overhead = ratio(times, RUN, BARE)
    rows = [
        [BARE, spread(times[BARE]), "", ""],
        [RUN, spread(times[RUN]), overhead, overhead.against(1.02)],
    ]
    head = ["", "seconds of the processor", "of the bare calls", "goal"]
    return f"Median of {len(times[BARE])} paired runs.\n\n" + table(head, rows)


def measure_growth(a: argparse.Namespace) -> None:
    def show(times: Times) -> None:
        title = "Sampler overhead of growing: FLUX.1's width, 2 blocks, 1024 px"
        body = growth_text(times)
        log.info(section("sampler", title, body, a, on_host.host_version(), part="-growth"))

    paired(growth_sides(a), a.runs, show, clock=time.process_time if ON_CPU else clock)


def text(times: Times, shares: dict[str, list[float]], memory: dict[str, float]) -> str:
    overhead = ratio(times, RUN, BARE)
    rows = [[name, spread(values), "", ""] for name, values in times.items() if name != RUN]
    rows[1:1] = [[RUN, spread(times[RUN]), overhead, overhead.against(1.02)]]
    body = f"Median of {len(times[BARE])} paired runs.\n\n"
    body += table(["", "seconds", "of the bare calls", "goal"], rows)
    head = ["conditioning worked out anew for each size", "percent of the run", "goal"]
    again = [[f"in {name}", spread(v), spread(v).against(1.0)] for name, v in shares.items()]
    body += "\n\n" + table(head, again)
    if memory:
        head = ["memory beyond the loaded model", "MiB at most", "of the host's one step"]
        rows = [[name, f"{mib:.0f}", f"{mib / memory[STEP]:.3f}"] for name, mib in memory.items()]
        body += "\n\n" + table(head, rows)
    return body


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--blocks", type=int, default=4, help="of the model's 24")
    p.add_argument("--growth", action="store_true", help="any model growing, and nothing else")
    a = arguments(p)
    with torch.inference_mode():
        if a.growth:
            measure_growth(a)
            return
        if a.peak:
            sides = sides_of(a)
            sides[a.peak]()
            sys.stdout.write(f"{peak_of(sides[a.peak])}\n")
            return
        memory = peaks([BARE, STEP, RUN], a, "--blocks", str(a.blocks))
        sides = sides_of(a)
        spent = timed_resolving()
        shares: dict[str, list[float]] = {RUN: [], REGIONS: []}
        blocks = 2 if a.small else a.blocks

        def counted(name: str) -> Callable[[], object]:
            def run() -> None:
                spent[-1] = 0.0
                start = clock()
                sides[name]()
                shares[name].append(100 * spent[-1] / (clock() - start))

            return run

        def show(times: Times) -> None:
            counts = {name: values[1:] for name, values in shares.items()}  # without the warm-up
            title = f"Sampler overhead: SD3.5 Medium's width, {blocks} blocks, 1024 px"
            body = text(times, counts, memory)
            log.info(section("sampler", title, body, a, on_host.host_version()))

        paired({BARE: sides[BARE], **{name: counted(name) for name in shares}}, a.runs, show)


if __name__ == "__main__":
    main()
