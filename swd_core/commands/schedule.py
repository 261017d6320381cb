"""The command `schedule`: sizes, noise levels and cost before anything is run."""

import argparse
import re

from ..extend import extend_schedule
from ..presets import Preset, presets
from ..schedule import CELL, FRAME_CELL, ScaleSchedule, latent_frames
from .common import KEEP, Refusal, find_schedule, parse_size, refusing


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers the command."""
    s = commands.add_parser(
        "schedule",
        help="sizes, noise levels and cost of a schedule",
        description="Lists the presets, or shows one schedule step by step.",
        epilog="example:\n  python -m swd_core schedule --preset sd35-medium-4 --size 1344x768\n",
        formatter_class=KEEP,
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


def print_presets() -> None:
    print(f"{'preset':<20} {'steps':>5}  {'sides for':>9}  {'':<28} {'cost':>5}")
    for name, preset in presets().items():
        frames, height, width = preset.latent_target()
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
        return preset.latent_target()[0] if preset else None
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
    _, height, width = preset.latent_target() if preset else (None, 1024 // CELL, 1024 // CELL)
    own = f"{width * CELL}x{height * CELL}"
    width, height = (side // CELL for side in parse_size(a.size or own, step, 16384, step))
    if a.extend:
        trained = (preset.target if preset else 1024) // CELL
        with refusing():
            schedule = extend_schedule(schedule, height, width, trained)
        if a.size is None:
            raise Refusal("--extend needs the --size of the target, such as --size 2048.")
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
