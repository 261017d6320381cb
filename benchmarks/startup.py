"""What the pack adds to the host's start, and how long its nodes take the first time.

    make bench-startup

Every figure comes from processes of their own. The host imports all of its own nodes first, as a
server does; then its own loader imports the pack. As on every start but the first, files are warm
and modules compiled: a first process, which is not counted, sees to that.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import on_host
import torch
from paired import ROOT, arguments, in_child, log, parser, section, spread, table

HOST, PACK = "the host with its own nodes", "the pack, beyond that"


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def one_start() -> dict[str, float]:
    """Seconds of everything, in this new process."""
    found: dict[str, float] = {}

    def host() -> Any:
        on_host.load_host()
        import nodes

        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        return nodes

    found[HOST], nodes = seconds(host)
    found[PACK], loaded = seconds(lambda: asyncio.run(nodes.load_custom_node(str(ROOT))))
    if not loaded:
        raise SystemExit("The host could not load the pack; see its message above.")
    known = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        latencies(known, found)
    return found


def latencies(known: dict[str, Any], found: dict[str, float]) -> None:
    """Adds each node's first and second execution."""

    def twice(name: str, run: Callable[[], Any]) -> Any:
        found[f"{name}, first"], result = seconds(run)
        found[f"{name}, again"], _ = seconds(run)
        return result

    student = known["SwDSceneStudent"]
    model, clip, vae, schedule = twice("SwDSceneStudent", lambda: student.execute(1.0)).args
    latent = on_host.empty_latent(256)
    cond = clip.encode_from_tokens_scheduled(clip.tokenize("a fox in a forest at sunset"))
    twice(
        "SwDScaleSchedule",
        lambda: known["SwDScaleSchedule"].execute(
            model=model, preset="auto", custom_sizes="", custom_sigmas=""
        ),
    )
    shared = dict(
        model=model, positive=cond, latent_image=latent, schedule=schedule, seed=on_host.SEED,
        cfg=1.0, upscale_method="bicubic",
    )  # fmt: skip
    twice("SwDSample, scenes, 256 px", lambda: known["SwDSample"].execute(**shared))
    drafts = known["SwDDrafts"]
    twice(
        "SwDDrafts, 16 scenes, decoded",
        lambda: drafts.execute(
            **on_host.in_lists(**shared, count=16, stop_after=1, batch=16, vae=vae)
        ),
    )


def text(starts: list[dict[str, float]]) -> str:
    rows = []
    for name in starts[0]:
        value = spread([start[name] for start in starts])
        rows.append([name, value, value.against(0.1) if name == PACK else ""])
    return f"Median of {len(starts)} processes.\n\n" + table(["", "seconds", "goal"], rows)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--child", action="store_true", help="measure in this process")
    a = arguments(p)
    if a.child:
        sys.stdout.write(json.dumps(one_start()) + "\n")
        return
    threads = ["--threads", str(a.threads or 1)]
    with tempfile.TemporaryDirectory(prefix="swd_bench_") as compiled:
        variables = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        in_child("--child", *threads, **variables)
        starts: list[dict[str, float]] = []
        for _ in range(a.runs):
            starts.append(json.loads(in_child("--child", *threads, **variables)))
            log.info(section("startup", "Start-up", text(starts), a, on_host.host_version()))


if __name__ == "__main__":
    main()
