"""Averages the weights of a student and of one that was trained on from it.

What lies between them is often better than either (Wortsman et al., arXiv 2109.01903): here one is
sharper and the other keeps more of the variety of real pictures.
"""

import argparse
from pathlib import Path

from ..files import written_whole
from ..lora_config import CONFIG_NAME
from ..lora_files import WEIGHTS_NAME
from ..tensor_files import read_tensors, save_tensors


def average(start: Path, end: Path, share: float, out: Path) -> None:
    """Writes (1 - share) of `start` plus `share` of `end`, two folders of LoRAs, to `out`.

    Args:
        share: 0 to 1.

    Raises:
        ValueError: if the two differ in their tensors, or `share` is beyond 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share is {share:g}; it is a share from 0 to 1.")
    first, _ = read_tensors(start / WEIGHTS_NAME)
    last, header = read_tensors(end / WEIGHTS_NAME)
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in last.items()}:
        raise ValueError(
            f"{start} and {end} have other tensors: give a student and one that began from it."
        )
    mixed = {
        name: ((1 - share) * first[name].float() + share * tensor.float()).to(tensor.dtype)
        for name, tensor in last.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    made = {"swd_average": f"{1 - share:g} of one student, {share:g} of the one described here"}
    save_tensors(out / WEIGHTS_NAME, mixed, header | made)
    with written_whole(out / CONFIG_NAME) as file:
        file.write((end / CONFIG_NAME).read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=Path, help="folder of the student's LoRA")
    parser.add_argument("end", type=Path, help="folder of the one that was trained on from it")
    parser.add_argument("--share", type=float, default=0.5, help="of the latter, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    a = parser.parse_args()
    average(a.start, a.end, a.share, a.out)


if __name__ == "__main__":
    main()
