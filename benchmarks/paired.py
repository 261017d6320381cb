"""What the benchmarks share: runs in turn, ratios with their spread, sections of RESULTS.md.

Importing it makes `swd_core` importable. The repository's root goes to the end of the path: our
`nodes/` would otherwise stand in for the host's.
"""

import argparse
import logging
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
MIB = 2**20
# SWD_TEST_DEVICE=gpu runs what needs a host where the host would: on a graphics card.
ON_CPU = os.environ.get("SWD_TEST_DEVICE", "cpu") == "cpu"
sys.path.append(str(ROOT))

HEADER = """# Benchmarks

Every section is written by the command it names; `make bench` runs all but those of growing and
those with options. The sides of a comparison take turns in one process, every other round
backwards, after a warm-up that is not counted. A figure is the median of the rounds, with the
smallest and the largest in brackets; a ratio is taken in each round.
"""

log = logging.getLogger("bench")
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """The median of some values, with the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"

    def times(self, factor: float) -> "Spread":
        return Spread(factor * self.median, factor * self.low, factor * self.high)

    def against(self, goal: float, most: bool = True) -> str:
        """The goal as a table shows it, and whether the median keeps to it."""
        kept = self.median <= goal if most else self.median >= goal
        return f"{'at most' if most else 'at least'} {goal:g}: {'met' if kept else 'missed'}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(times: Times, side: str, to: str) -> Spread:
    return spread([a / b for a, b in zip(times[side], times[to], strict=True)])


def clock() -> float:
    """Seconds; what was sent to a graphics card is done by then."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def paired(
    sides: Mapping[str, Callable[[], object]],
    runs: int,
    each: Callable[[Times], None] = lambda times: None,
    clock: Callable[[], float] = clock,
    warm_up: Callable[[], object] | None = None,
) -> Times:
    """Seconds of every side in each of `runs` rounds.

    Args:
        each: called after every round with what is there so far.
        warm_up: instead of one uncounted run of every side.
    """
    for run in sides.values() if warm_up is None else [warm_up]:
        run()
    times: Times = {name: [] for name in sides}
    for number in range(runs):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            start = clock()
            sides[name]()
            times[name].append(clock() - start)
        each(times)
    return times


def peak_of(run: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory rises at most during `run`; Linux alone."""

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def in_child(*options: str, **variables: str) -> str:
    """The last line that this script prints in a process of its own, with other options.

    variables: of its environment, beside ours.
    """
    command = [sys.executable, sys.argv[0], *options]
    env = {**os.environ, **variables}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    return done.stdout.strip().splitlines()[-1]


def peaks(names: Sequence[str], a: argparse.Namespace, *own: str) -> dict[str, float]:
    """MiB that each side takes at most, each in a process of its own (`--peak name`).

    own: options of this benchmark alone that the processes must have too.
    """
    if not (ON_CPU and Path("/proc/self/clear_refs").exists()):
        return {}
    same = [*own, "--threads", str(a.threads), *(["--small"] if a.small else [])]
    # Freed memory goes back at once, or a peak would depend on what was freed before it.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    return {name: int(in_child("--peak", name, *same, **malloc)) / MIB for name in names}


def parser(doc: str | None, runs: int = 5) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=int, default=runs, help="rounds in which every side runs once")
    p.add_argument("--small", action="store_true", help="only try it: tiny models, nothing written")
    p.add_argument("--threads", type=int, default=0, help="of torch; all cores by default")
    p.add_argument("--out", type=Path, help=f"where to write; {RESULTS.name} unless --small")
    p.add_argument("--peak", help=argparse.SUPPRESS)
    return p


def arguments(p: argparse.ArgumentParser) -> argparse.Namespace:
    a = p.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.out is None and not a.small:
        a.out = RESULTS
    return a


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _processor() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True)
        return done.stdout.strip()

    if shutil.which("git") is None:
        return "unknown"

    changed = git("status", "--porcelain", "--", "nodes", "swd_core", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def circumstances(more: Sequence[str] = ()) -> str:
    """Machine, versions, date and commit, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load, *_ = os.getloadavg()
    return " · ".join(
        [
            f"{os.cpu_count()} × {_processor()}, {memory:.0f} GiB, {torch.get_num_threads()} "
            f"thread{'s' if torch.get_num_threads() > 1 else ''}, load {load:.1f} at the end",
            *([torch.cuda.get_device_name()] if torch.cuda.is_initialized() else []),
            f"Python {platform.python_version()}, torch {torch.__version__}",
            *more,
            f"{datetime.now(UTC):%Y-%m-%d}",
            f"commit {_commit()}",
        ]
    )


def section(
    name: str, title: str, body: str, a: argparse.Namespace, *more: str, part: str = ""
) -> str:
    """A section's text; it takes the place of the one of that name, where one is to be written.

    Args:
        name: of the make target, after "bench-". more: versions to name beside the usual ones.
        part: tells sections of one target apart.
    """
    options = shlex.join(sys.argv[1:])
    command = f"make bench-{name}" + (f' BENCH="{options}"' if options else "")
    text = f"## {title}\n\n`{command}`\n\n{circumstances(more)}\n\n{body.strip()}\n"
    if a.out is not None:
        _replace(a.out, name + part, text)
    return text


def _replace(path: Path, name: str, text: str) -> None:
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    known = path.read_text(encoding="utf-8") if path.is_file() else HEADER
    before, found, rest = known.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    if not found:
        before = known.rstrip() + "\n\n"
    from swd_core.files import write_text  # importable only since this module was

    write_text(path, f"{before}{begin}\n{text}{end}{after}")
