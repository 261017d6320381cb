"""The commands `drafts` and `finish`: see many pictures small, finish the chosen ones."""

import argparse
import sys
from pathlib import Path

from ..schedule import CELL
from .common import (
    KEEP,
    MAX_NOTES,
    MAX_SEED,
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

DRAFTS_EXAMPLES = """\
files:
  FILE.png is the contact sheet; FILE.drafts.safetensors beside it is what finish goes on from.
  Draft k is picture k of `generate` with the same prompt, seed and size.

examples:
  python -m swd_core drafts "a fox in a forest" --seed 7 --out foxes.png
      sixteen drafts at half the size, about a tenth of the work of sixteen pictures
  python -m swd_core finish foxes.drafts.safetensors --pick 3,7
  python -m swd_core drafts "two penguins, snow" --count 36 --stop-after 2
"""
FINISH_EXAMPLES = """\
examples:
  python -m swd_core finish --pick 3,7
      finishes drafts 3 and 7 of the newest drafts in this folder
  python -m swd_core finish foxes.drafts.safetensors --pick 1,4-6 --out fox.png
      fox_1.png, fox_4.png, fox_5.png and fox_6.png
  python -m swd_core finish --pick 3 --detail-seed 1 --variations 4
      four pictures of draft 3's composition with other details
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers both commands."""
    d = commands.add_parser(
        "drafts",
        help="many small drafts of a prompt on one sheet",
        description="Runs only the first scales of many pictures and shows them on a sheet.",
        epilog=DRAFTS_EXAMPLES,
        formatter_class=KEEP,
    )
    d.add_argument("prompt", help='what to draw, in quotes; "" is unconditional')
    d.add_argument("--seed", type=int, help="number the noise is drawn from (random, and printed)")
    d.add_argument("--count", type=int, default=16, metavar="N", help="drafts, 1 to 256 (16)")
    d.add_argument(
        "--stop-after", type=int, default=1, metavar="STEP", help="steps that a draft runs (1)"
    )
    d.add_argument(
        "--size", default="256", metavar="PX|WxH",
        help=f"of the finished pictures, {SIDES[0]} to {SIDES[1]}, a multiple of {SIDE_STEP} (256)",
    )  # fmt: skip
    d.add_argument("--out", metavar="FILE", help="the sheet, a PNG file, or a folder for it")
    add_student_options(d)
    d.set_defaults(run=run_drafts)

    f = commands.add_parser(
        "finish",
        help="chosen drafts to PNG files",
        description="Runs the remaining scales of chosen drafts.",
        epilog=FINISH_EXAMPLES,
        formatter_class=KEEP,
    )
    f.add_argument("file", nargs="?", help="a drafts file (the newest one in this folder)")
    f.add_argument("--pick", required=True, metavar="NUMBERS", help="of the sheet: 3 or 1,4-6, all")
    f.add_argument(
        "--detail-seed", type=int, default=0, metavar="SEED",
        help="other noise for the scales to come; 0 is the draft's own (0)",
    )  # fmt: skip
    f.add_argument(
        "--variations", type=int, default=1, metavar="N",
        help="pictures of each pick, with detail seeds that follow one another (1)",
    )  # fmt: skip
    f.add_argument("--out", metavar="FILE", help="PNG file; the draft's number is added to it")
    f.add_argument("--overwrite", action="store_true", help="replace files that exist")
    f.add_argument("--weights", metavar="FOLDER", help="other weights than the embedded ones")
    f.set_defaults(run=run_finish)


def run_drafts(a: argparse.Namespace) -> None:
    from ..draft_files import SUFFIX, save_drafts
    from ..drafts import MAX_DRAFTS, Draft, Drafts, check_count, check_stop

    with refusing():
        check_count(a.count, "--count")
        seed = chosen_seed(a.seed)
        width, height = parse_size(a.size, *SIDES, SIDE_STEP)
        schedule = scene_schedule(a.schedule)
        prompt = as_text(a.prompt)
        images = tuple(Draft(seed, i) for i in range(min(a.count, MAX_DRAFTS)))
        size = (height // CELL, width // CELL)
        drafts = Drafts(schedule, "scenes", size, images, prompt=prompt)
        check_stop(a.stop_after, drafts)
        out = Path(a.out) if a.out else Path()
        if out.is_dir():
            out = out / default_name(prompt, seed).replace(".png", "-drafts.png")
        if out.suffix.lower() != ".png":
            raise Refusal(f"--out {a.out} must end in .png; the sheet is written as PNG.")
        file = out.with_name(out.stem.removesuffix("-drafts") + SUFFIX)
        check_outputs([out, file], a.overwrite)
    from ..scenes.drafting import advance, write_sheet

    student, text = load(a.weights, prompt)
    drafts, seconds = advance(student, text, drafts, a.stop_after)
    try:
        save_drafts(drafts, file, a.overwrite)
        write_sheet(student, drafts, out, a.overwrite)
    except OSError as error:
        raise Refusal(f"The drafts could not be written: {error}") from error
    print(f"seed {seed}, {len(images)} drafts after step {a.stop_after} of {schedule.steps}")
    print(f"{seconds:.2f} s, {seconds / len(images):.3f} s a draft")
    print(out, file, sep="\n")


def run_finish(a: argparse.Namespace) -> None:
    from ..draft_files import SUFFIX, latest, load_drafts
    from ..drafts import MAX_DRAFTS, check_count, parse_picks

    with refusing():
        file = Path(a.file) if a.file else latest(Path())
        drafts = load_drafts(file)
        drafts.check_model("scenes")
        if drafts.stretches:
            raise Refusal(
                f"The drafts in {file.name} grow by one of ComfyUI's samplers, which the command "
                "line doesn't have. Finish them in ComfyUI."
            )
        positions = parse_picks(a.pick, drafts)
        if not positions:
            raise Refusal("--pick names no draft; give numbers of the sheet: 3 or 1,4-6, or all.")
        if not 0 <= a.detail_seed <= MAX_SEED:
            raise Refusal(f"--detail-seed {a.detail_seed} is not possible; 0 to {MAX_SEED}.")
        if not 1 <= a.variations <= MAX_DRAFTS:
            raise Refusal(f"--variations {a.variations} is not possible; 1 to {MAX_DRAFTS}.")
        check_count(len(positions) * a.variations, "The number of picks times --variations")
        out = Path(a.out) if a.out else file.with_name(file.name.removesuffix(SUFFIX) + ".png")
        if out.suffix.lower() != ".png":
            raise Refusal(f"--out {a.out} must end in .png; pictures are written as PNG.")
        letters = [f"-{k + 1}" for k in range(a.variations)] if a.variations > 1 else [""]
        ends = [f"_{p + 1}{letter}" for p in positions for letter in letters]
        paths = [out.with_name(f"{out.stem}{end}{out.suffix}") for end in ends]
        check_outputs(paths, a.overwrite)
    from ..scenes.drafting import advance, write_pictures

    student, text = load(a.weights, drafts.prompt)
    chosen = drafts.choose(positions).vary(a.detail_seed, a.variations)
    done, seconds = advance(student, text, chosen, drafts.schedule.steps)
    try:
        write_pictures(student, done, paths, a.overwrite)
    except OSError as error:
        raise Refusal(f"A picture could not be written: {error}") from error
    print(f"{len(paths)} picture(s) in {seconds:.2f} s, {seconds / len(paths):.2f} s each")
    print(*paths, sep="\n")


def load(weights: str | None, prompt: str) -> tuple:
    """The student and its conditioning; what the prompt had to change goes to stderr."""
    from ..scenes.student import SceneStudent

    with refusing():
        student = SceneStudent.load(Path(weights) if weights else None)
    text = student.encode([prompt])
    for note in text.messages[:MAX_NOTES]:
        print(f"note: {note}", file=sys.stderr)
    return student, text
