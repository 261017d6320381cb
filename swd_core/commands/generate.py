"""The command `generate`: a prompt to PNG files."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..schedule import CELL
from .common import (
    KEEP,
    MAX_NOTES,
    SIDE_STEP,
    SIDES,
    Refusal,
    add_student_options,
    as_text,
    check_outputs,
    chosen_seed,
    default_name,
    parse_size,
    refusing,
    scene_schedule,
)

if TYPE_CHECKING:
    from ..scenes.generate import Job

MAX_COUNT = 64
MAX_STRIP = 32

PROMPT_HELP = """\
Name one or two things, a place and a time of day, in any order, and leave out what you like:
"a fox in a forest at sunset", "two penguins, snow". A word the student does not know is read as
the nearest one it knows, and a note says so. An empty prompt "" is unconditional: any scene may
come.
"""

GENERATE_EXAMPLES = """\
files:
  --count 1 writes FILE. A larger count writes FILE with _1, _2, ... before .png: fox_1.png, ...
  Picture 1 is the same whether 1 or 64 are asked for. Every file's metadata holds prompt, seed,
  picture number and schedule. Files that exist are refused before anything is generated,
  unless --overwrite is given.

schedule files:
  {"scales": [0.5, 0.75, 1], "sigmas": [1, 0.8, 0.6]}
  sides relative to the full size, never falling, the last one 1; noise levels of 0..1, falling.

examples:
  python -m swd_core generate "a fox in a forest at sunset" --seed 7 --strip
  python -m swd_core generate "two penguins, snow, night" --count 4 --size 128
  python -m swd_core generate "a rocket" --schedule my_schedule.json --out rocket.png --overwrite
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers the command."""
    g = commands.add_parser(
        "generate",
        help="a prompt to PNG files",
        description=PROMPT_HELP,
        epilog=GENERATE_EXAMPLES,
        formatter_class=KEEP,
    )
    g.add_argument("prompt", help='what to draw, in quotes; "" is unconditional')
    g.add_argument("--seed", type=int, help="number the noise is drawn from (random, and printed)")
    g.add_argument(
        "--count", type=int, default=1, metavar="N", help=f"pictures, 1 to {MAX_COUNT} (1)"
    )
    g.add_argument(
        "--size", default="256", metavar="PX|WxH",
        help=f"pixels, each side {SIDES[0]} to {SIDES[1]} and a multiple of {SIDE_STEP} (256)",
    )  # fmt: skip
    g.add_argument(
        "--out", metavar="FILE", help="PNG file, or a folder for it (PROMPT-SEED.png here)"
    )
    g.add_argument(
        "--strip", action="store_true", help="also write every scale's prediction, FILE_strip.png"
    )
    g.add_argument(
        "--animation", action="store_true",
        help="also write the scales as an animation that grows, FILE_growing.webp",
    )  # fmt: skip
    add_student_options(g)
    g.set_defaults(run=run_generate)


def plan(a: argparse.Namespace) -> "Job":
    """Checks everything that can be checked before the weights are loaded."""
    if not 1 <= a.count <= MAX_COUNT:
        raise Refusal(
            f"--count {a.count} is not possible; ask for 1 to {MAX_COUNT} pictures at a time."
        )
    seed = chosen_seed(a.seed)
    width, height = parse_size(a.size, *SIDES, SIDE_STEP)
    schedule = scene_schedule(a.schedule)
    if a.strip and schedule.steps > MAX_STRIP:
        raise Refusal(
            f"--strip shows at most {MAX_STRIP} steps; this schedule has {schedule.steps}."
        )
    prompt = as_text(a.prompt)
    out = Path(a.out) if a.out else Path()
    if out.is_dir():
        out = out / default_name(prompt, seed)
    if out.suffix.lower() != ".png":
        raise Refusal(f"--out {a.out} must end in .png; pictures are written as PNG.")
    ends = [f"_{i + 1}" for i in range(a.count)] if a.count > 1 else [""]
    paths = tuple(out.with_name(f"{out.stem}{end}{out.suffix}") for end in ends)
    strips = tuple(p.with_name(f"{p.stem}_strip{p.suffix}") for p in paths) if a.strip else ()
    animations = tuple(p.with_name(f"{p.stem}_growing.webp") for p in paths) if a.animation else ()
    check_outputs([*paths, *strips, *animations], a.overwrite)
    from ..scenes.generate import Job  # loads torch, so only now

    return Job(prompt, seed, width, height, schedule, paths, strips, a.overwrite, animations)


def run_generate(a: argparse.Namespace) -> None:
    with refusing():
        job = plan(a)
    from ..scenes.generate import generate
    from ..scenes.student import SceneStudent

    with refusing():
        student = SceneStudent.load(Path(a.weights) if a.weights else None)
    text = student.encode([job.prompt])
    for note in text.messages[:MAX_NOTES]:
        print(f"note: {note}", file=sys.stderr)
    if len(text.messages) > MAX_NOTES:
        print(f"note: and {len(text.messages) - MAX_NOTES} more such changes", file=sys.stderr)
    print(f"seed {job.seed}, {job.width}x{job.height} px, {len(job.paths)} picture(s)")
    try:
        seconds = generate(student, text, job)
    except OSError as error:
        raise Refusal(f"A picture could not be written: {error}") from error
    sizes = job.schedule.sizes(job.height // CELL, job.width // CELL)
    spent = [f"{w * CELL}x{h * CELL} {s:.2f} s" for (h, w), s in zip(sizes, seconds, strict=False)]
    print(f"{', '.join(spent)}, decoding {seconds[-1]:.2f} s; {sum(seconds):.2f} s a picture")
    for path in (*job.paths, *job.strips, *job.animations):
        print(path)
