"""The command line: `python -m swd_core`."""

import argparse
import os
import sys
from collections.abc import Sequence

from . import drafts, generate, schedule, training
from .common import KEEP, Parser, Refusal

DESCRIPTION = """\
Generates pictures scale by scale with the embedded scene student: a draft of half the size first,
then larger ones, each made from the one before. No download, no graphics card.
"""

EXAMPLES = """\
examples:
  python -m swd_core generate "a fox in a forest at sunset"
      one picture, 256 px, in a-fox-in-a-forest-at-sunset-SEED.png; the seed is random and printed
  python -m swd_core generate "robot and cat on a beach" --seed 7 --count 4 --out robots.png
      robots_1.png to robots_4.png; the same seed gives the same pictures again
  python -m swd_core generate "two penguins, snow, night" --size 384x256 --strip
      384 wide, 256 high; a second file ..._strip.png shows what every scale predicted
  python -m swd_core drafts "a fox in a forest at sunset" --out foxes.png
      sixteen small drafts on one sheet; finish --pick 3,7 finishes two of them
  python -m swd_core schedule
      the schedules this pack knows
  python -m swd_core schedule --preset flux-4 --size 1344x768
      sizes, noise levels and cost of one of them
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m swd_core", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=KEEP
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, schedule, drafts, training):
        module.add_commands(commands)
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
