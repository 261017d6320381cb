"""What the commands share: refusals, and the reading of sizes, schedules and file names."""

import argparse
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..files import check_writable, read_json
from ..presets import Preset, presets
from ..schedule import ScaleSchedule

SIDES, SIDE_STEP = (128, 512), 16
MAX_SEED = 2**64 - 1
MAX_NOTES = 8
OWN_SCHEDULE = "scenes-4"
KEEP = argparse.RawDescriptionHelpFormatter


class Refusal(Exception):
    """What the user gave can't be done; the text says why and what to do."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turns the errors that reading and checking raise into refusals."""
    try:
        yield
    except (ValueError, OSError) as error:
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
        return ScaleSchedule.from_dict(read_json(path)), None
    except FileNotFoundError as error:
        raise Refusal(
            f"There is no schedule file {name}. Name one, or a preset: {', '.join(presets())}."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise Refusal(f"The schedule file {name} can't be read: {reason}.") from error
    except ValueError as error:
        raise Refusal(f"The schedule file {name} is not usable: {error}") from error


def scene_schedule(name: str) -> ScaleSchedule:
    """A schedule that the scene student can run; a note says so if it is of another model.

    Raises:
        Refusal: if `find_schedule` gives none, or it is SDXL's or of a video.
    """
    schedule, preset = find_schedule(name)
    if schedule.sigma_kind != "flow":
        raise Refusal(
            f"The schedule {name} holds SDXL's timesteps; the scene student needs noise levels of "
            "flow matching (0 to 1). Leave out --schedule for its own."
        )
    with refusing():
        schedule.check_picture()
    if preset and preset.family != "scenes":
        print(
            f"note: {name} was made for another model ({preset.title}); the scene student was "
            f"trained for the sizes and noise levels of {OWN_SCHEDULE}.",
            file=sys.stderr,
        )
    return schedule


def chosen_seed(seed: int | None) -> int:
    """The seed that was given, or a random one.

    Raises:
        Refusal: if it is none.
    """
    if seed is None:
        return secrets.randbits(32)
    if not 0 <= seed <= MAX_SEED:
        raise Refusal(f"--seed {seed} is not possible; seeds are 0 to {MAX_SEED}.")
    return seed


def as_text(prompt: str) -> str:
    """A prompt that files can hold: bytes of the shell that are no text would break them."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def default_name(prompt: str, seed: int) -> str:
    """a-fox-7.png; the words of the prompt that make a file name anywhere, and the seed."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    slug = "-".join(words)[:40].strip("-") or ("scene" if prompt.strip() else "unconditional")
    return f"{slug}-{seed}.png"


def check_outputs(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuses a folder that can't be written to and, without `overwrite`, files that exist."""
    folder = paths[0].parent
    if not folder.is_dir():
        raise Refusal(
            f"The output folder {folder} does not exist; create it or choose another with --out."
        )
    try:
        check_writable(folder)
    except OSError as error:
        raise Refusal(f"{error} Choose another with --out.") from error
    for path in paths:
        if path.is_dir():
            raise Refusal(f"{path} is a folder; give the name of a .png file with --out.")
        if path.exists() and not overwrite:
            raise Refusal(
                f"{path} exists already; give --overwrite to replace it, or another --out."
            )


def add_student_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs the student takes."""
    parser.add_argument(
        "--schedule",
        default=OWN_SCHEDULE,
        metavar="NAME|FILE",
        help=f"preset or JSON file ({OWN_SCHEDULE})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--weights", metavar="FOLDER", help="other weights than the embedded ones")
