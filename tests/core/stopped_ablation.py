"""Run as a script: an ablation in two processes whose trainings end when they are asked to.

Each training prints its process's number when it begins.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from swd_core.distill.stopping import stoppable
from swd_core.lab import ablation


class Waiting(ablation.Bench):
    """In place of what trains and measures; the workers, which read this file too, have it."""

    @classmethod
    def make(cls, a: argparse.Namespace) -> "Waiting":
        return cls(None, None)

    def row(self, a: argparse.Namespace, variant: ablation.Variant, seed: int) -> dict[str, Any]:
        with stoppable() as asked:
            os.write(1, f"{os.getpid()}\n".encode())
            while not asked():
                time.sleep(0.02)
        raise ablation.Stopped(f"{variant.name} is stopped.")


ablation.Bench = Waiting
ablation.begin_run = lambda *_: None
ablation.test_of = lambda _: None

if __name__ == "__main__":
    ablation.run_ablation(
        argparse.Namespace(
            run=Path("none"),
            scenes=None,
            out=None,
            minutes=1.0,
            steps=None,
            train_seeds=1,
            variants=[v.name for v in ablation.VARIANTS],
            count=1,
            batch_tokens=1,
            jobs=2,
        )
    )
