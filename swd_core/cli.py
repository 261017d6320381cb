"""The command line: `python -m swd_core` with generate and schedule; draft_cli.py has the rest."""

import argparse
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .distill.commands import add_training_commands
from .extend import extend_schedule
from .presets import Preset, presets
from .schedule import CELL, FRAME_CELL, ScaleSchedule, latent_frames

if TYPE_CHECKING:
    from .emoji.generate import Job

SIDES, SIDE_STEP = (128, 512), 16
MAX_COUNT = 64
MAX_SEED = 2**64 - 1
MAX_STRIP = 32
MAX_NOTES = 8

DESCRIPTION = """\
Generates pictures scale by scale with the embedded emoji student: a draft of half the size first,
then larger ones, each made from the one before. No download, no graphics card.
"""

EXAMPLES = """\
examples:
  python -m swd_core generate "red apple"
      one picture, 256 px, in red-apple-SEED.png; the seed is random and printed
  python -m swd_core generate "red apple" --seed 7 --count 4 --out apple.png
      apple_1.png to apple_4.png; the same seed gives the same pictures again
  python -m swd_core generate "happy dog" --size 384x256 --strip
      384 wide, 256 high; a second file ..._strip.png shows what every scale predicted
  python -m swd_core drafts "red apple" --out apples.png
      sixteen small drafts on one sheet; finish --pick 3,7 finishes two of them
  python -m swd_core schedule
      the schedules this pack knows
  python -m swd_core schedule --preset flux-4 --size 1344x768
      sizes, noise levels and cost of one of them
"""

PROMPT_HELP = """\
Write the English name of an emoji or words about it ("red apple", "happy dog"), or the emoji
itself. A word the student does not know is read as the nearest one it knows, and a note says so.
Only the first 16 words count. An empty prompt "" is unconditional: any emoji may come.
"""

GENERATE_EXAMPLES = """\
files:
  --count 1 writes FILE. A larger count writes FILE with _1, _2, ... before .png: apple_1.png, ...
  Picture 1 is the same whether 1 or 64 are asked for. Every file's metadata holds prompt, seed,
  picture number and schedule. Files that exist are refused before anything is generated,
  unless --overwrite is given.

schedule files:
  {"scales": [0.5, 0.75, 1], "sigmas": [1, 0.8, 0.6]}
  sides relative to the full size, never falling, the last one 1; noise levels of 0..1, falling.

examples:
  python -m swd_core generate "red apple" --seed 7 --strip
  python -m swd_core generate "sleepy cat" --count 4 --size 128
  python -m swd_core generate "rocket" --schedule my_schedule.json --out rocket.png --overwrite
"""


class Refusal(Exception):
    """What the user gave can't be done; the text says why and what to do."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turns the errors that reading and checking raise into refusals."""
    try:
        yield
    except (ValueError, OSError, RecursionError) as error:
        raise Refusal(str(error)) from error


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse_size(text: str, low: int, high: int, step: int) -> tuple[int, int]:
    """Width and height in pixels of "256" or "384x256".

    Raises:
        Refusal: if it is no size, or a side is not a multiple of `step` in low..high.
    """
    found = re.fullmatch(r"([0-9]{1,9})(?:[x×]([0-9]{1,9}))?", text.strip().lower())
    if found is None:
        raise Refusal(f"{text[:40]!r} is not a size; give one side, 256, or WIDTHxHEIGHT, 384x256.")
    width = int(found[1])
    height = int(found[2] or width)
    nearest = [min(max(round(side / step) * step, low), high) for side in (width, height)]
    if nearest != [width, height]:
        raise Refusal(
            f"Size {text} is not possible: each side must be {low} to {high} px and a multiple of "
            f"{step}. The nearest is {nearest[0]}x{nearest[1]}."
        )
    return width, height


def find_schedule(name: str) -> tuple[ScaleSchedule, Preset | None]:
    """The preset of this name, or the schedule in a JSON file.

    Raises:
        Refusal: if it is neither, or the file is not a schedule.
    """
    if name in presets():
        return presets()[name].schedule, presets()[name]
    path = Path(name)
    if path.suffix.lower() != ".json" and not path.is_file():
        raise Refusal(
            f"{name[:60]!r} is neither a preset nor a .json file. Presets: {', '.join(presets())}."
        )
    try:
        return ScaleSchedule.from_dict(json.loads(path.read_text(encoding="utf-8"))), None
    except OSError as error:
        raise Refusal(f"The schedule file {name} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"The schedule file {name} is not usable: {error}") from error


def default_name(prompt: str, seed: int) -> str:
    """red-apple-7.png; the words of the prompt that make a file name anywhere, and the seed."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    slug = "-".join(words)[:40].strip("-") or ("emoji" if prompt.strip() else "unconditional")
    return f"{slug}-{seed}.png"


def check_outputs(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuses a folder that can't be written to and, without `overwrite`, files that exist."""
    folder = paths[0].parent
    if not folder.is_dir():
        raise Refusal(
            f"The output folder {folder} does not exist; create it or choose another with --out."
        )
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Refusal(
            f"The output folder {folder} can't be written to ({error.strerror}); "
            "choose another with --out."
        ) from error
    for path in paths:
        if path.is_dir():
            raise Refusal(f"{path} is a folder; give the name of a .png file with --out.")
        if path.exists() and not overwrite:
            raise Refusal(
                f"{path} exists already; give --overwrite to replace it, or another --out."
            )


def plan(a: argparse.Namespace) -> "Job":
    """Checks everything that can be checked before the weights are loaded."""
    if not 1 <= a.count <= MAX_COUNT:
        raise Refusal(
            f"--count {a.count} is not possible; ask for 1 to {MAX_COUNT} pictures at a time."
        )
    seed = secrets.randbits(32) if a.seed is None else a.seed
    if not 0 <= seed <= MAX_SEED:
        raise Refusal(f"--seed {seed} is not possible; seeds are 0 to {MAX_SEED}.")
    width, height = parse_size(a.size, *SIDES, SIDE_STEP)
    schedule, _ = find_schedule(a.schedule)
    if schedule.sigma_kind != "flow":
        raise Refusal(
            f"The schedule {a.schedule} holds SDXL's timesteps; the emoji student needs noise "
            "levels of flow matching (0 to 1). Leave out --schedule for its own."
        )
    schedule.check_picture()
    if a.strip and schedule.steps > MAX_STRIP:
        raise Refusal(
            f"--strip shows at most {MAX_STRIP} steps; this schedule has {schedule.steps}."
        )
    # Bytes of the shell that are no text would break the metadata.
    prompt = a.prompt.encode("utf-8", "replace").decode("utf-8")
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
    from .emoji.generate import Job  # loads torch, so only now

    return Job(prompt, seed, width, height, schedule, paths, strips, a.overwrite, animations)


def run_generate(a: argparse.Namespace) -> None:
    with refusing():
        job = plan(a)
    from .emoji.generate import generate
    from .emoji.student import EmojiStudent

    with refusing():
        student = EmojiStudent.load(Path(a.weights) if a.weights else None)
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


def print_presets() -> None:
    print(f"{'preset':<20} {'steps':>5}  {'sides for':>9}  {'':<28} {'cost':>5}")
    for name, preset in presets().items():
        frames, height, width = preset.latent_target
        sizes = preset.schedule.sizes(height, width, preset.multiple)
        sides = " ".join(str(w * CELL) for _, w in sizes)
        cost = preset.schedule.cost(height, width, preset.multiple, frames)
        print(f"{name:<20} {len(sizes):>5}  {width * CELL:>6} px  {sides:<28} {cost:>5.2f}")
    print("\ncost: in steps at full size. `--preset NAME` shows one of them step by step.")


def find_frames(text: str | None, schedule: ScaleSchedule, preset: Preset | None) -> int | None:
    """Latent frames of the finished video; None for a picture.

    Raises:
        Refusal: if it is no number of pictures that a video VAE stores, or there is none and the
            schedule needs one.
    """
    if text is None:
        if schedule.frames and not (preset and preset.video):
            raise Refusal("The schedule is for videos; give --frames, such as 81.")
        return preset.latent_target[0] if preset else None
    if preset and not preset.video:
        raise Refusal(f"--frames is for videos; {preset.schedule.name} is for pictures.")
    pictures = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if pictures < 1 or (pictures - 1) % FRAME_CELL:
        raise Refusal(
            f"--frames {text[:20]} is not possible: a video has 1, 5, 9, ... pictures, one and "
            f"then {FRAME_CELL} for every latent frame more."
        )
    return (pictures - 1) // FRAME_CELL + 1


def run_schedule(a: argparse.Namespace) -> None:
    if a.preset is None:
        if a.size is not None:
            raise Refusal("--size needs a --preset; without one all presets are listed.")
        if a.extend or a.frames is not None:
            option = "--extend" if a.extend else "--frames"
            raise Refusal(f"{option} needs a --preset and the --size of the target.")
        return print_presets()
    with refusing():
        schedule, preset = find_schedule(a.preset)
        frames = find_frames(a.frames, schedule, preset)
    multiple = preset.multiple if preset else 2
    step = CELL * multiple
    _, height, width = preset.latent_target if preset else (None, 1024 // CELL, 1024 // CELL)
    own = f"{width * CELL}x{height * CELL}"
    width, height = (side // CELL for side in parse_size(a.size or own, step, 16384, step))
    if a.extend:
        trained = (preset.target if preset else 1024) // CELL
        with refusing():
            schedule = extend_schedule(schedule, height, width, trained)
    sizes = schedule.sizes(height, width, multiple)
    times = latent_frames(schedule.time, frames) if frames else None
    costs = schedule.step_costs(height, width, multiple, frames)
    if preset:
        print(f"{preset.title}\n{preset.provenance}\n")
    level = "sigma" if schedule.sigma_kind == "flow" else "timestep"
    video = f"  {'latent frames':>13}" if times else ""
    print(f"{'step':>4}{video}  {'size px':>11}  {level:>8}  {'share':>5}  {'so far':>6}")
    for i, ((h, w), sigma, cost) in enumerate(zip(sizes, schedule.sigmas, costs, strict=True), 1):
        share, so_far = cost / sum(costs), sum(costs[:i]) / sum(costs)
        size = f"{w * CELL}x{h * CELL}"
        video = f"  {times[i - 1]:>13}" if times else ""
        print(f"{i:>4}{video}  {size:>11}  {sigma:>8g}  {share:>5.0%}  {so_far:>6.0%}")
    print(f"\ntotal {sum(costs):.2f} full-size steps, against {len(costs)} at full size all along")


def add_student_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs the student takes."""
    parser.add_argument(
        "--schedule", default="emoji-4", metavar="NAME|FILE", help="preset or JSON file (emoji-4)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--weights", metavar="FOLDER", help="other weights than the embedded ones")


def build_parser() -> argparse.ArgumentParser:
    keep = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "python -m swd_core", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=keep
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    g = commands.add_parser(
        "generate",
        help="a prompt to PNG files",
        description=PROMPT_HELP,
        epilog=GENERATE_EXAMPLES,
        formatter_class=keep,
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

    s = commands.add_parser(
        "schedule",
        help="sizes, noise levels and cost of a schedule",
        description="Lists the presets, or shows one schedule step by step.",
        epilog="example:\n  python -m swd_core schedule --preset sd35-medium-4 --size 1344x768\n",
        formatter_class=keep,
    )
    s.add_argument(
        "--preset", metavar="NAME|FILE", help="preset or JSON file; all presets without it"
    )
    s.add_argument(
        "--size", metavar="PX|WxH", help="size of the finished picture (the preset's own)"
    )
    s.add_argument(
        "--frames", metavar="N", help="pictures of the finished video: 1, 5, 9, ... (the preset's)"
    )
    s.add_argument(
        "--extend", action="store_true",
        help="beyond the trained size keep its steps and add larger ones, instead of enlarging all",
    )  # fmt: skip
    s.set_defaults(run=run_schedule)

    from .draft_cli import add_commands  # it uses this module

    add_commands(commands)
    add_training_commands(commands, refusing, print)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it went well, 2 when it was refused, 130 when stopped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can't show a letter is no error
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except Refusal as refusal:
        print("error:", " ".join(str(refusal).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
