"""Run as a script: four processes save 25 drafts each into one folder. argv: the folder.

Prints a line for each file: the seed of the process that got its name, and the name.
"""

import os
import sys
from pathlib import Path

import torch

from swd_core.draft_files import save_drafts
from swd_core.drafts import Draft, Drafts
from swd_core.schedule import ScaleSchedule


def save(folder: Path, seed: int) -> None:
    os.getpid = lambda: 17  # as in containers, where every first process has the same
    x0 = torch.full((1, 4, 16, 16), float(seed))
    schedule = ScaleSchedule((0.5, 1.0), (1.0, 0.5))
    drafts = Drafts(schedule, "test", (32, 32), (Draft(seed, 0),), (x0,), x0.clone())
    number = had = 0
    while had < 25:
        path = folder / f"{number:05}.drafts.safetensors"
        number += 1
        try:
            save_drafts(drafts, path)
        except FileExistsError:
            continue
        os.write(1, f"{seed} {path.name}\n".encode())
        had += 1


children = []
for seed in range(1, 5):
    children.append(os.fork())
    if children[-1] == 0:
        save(Path(sys.argv[1]), seed)
        os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
