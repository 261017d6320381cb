"""Run as a script: kills a writer at every line of its way, and looks at what it leaves.

argv: a folder. For each kind of file it prints how many kills left the old one and how many the new
one; any other state is an error.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from swd_core.distill.checkpoint import load_checkpoint, save_checkpoint
from swd_core.draft_files import load_drafts, save_drafts
from swd_core.drafts import Draft, Drafts
from swd_core.lora import LoraLayer
from swd_core.lora_files import read_lora, write_peft
from swd_core.schedule import ScaleSchedule

WRITERS = ("files.py", "tensor_files.py", "lora.py", "drafts.py", "checkpoint.py")
# A fused layer's down matrix and its width make it SD3's.
MODULE = "transformer_blocks.0.attn.to_q"


def save_lora(folder: Path, number: int) -> None:
    """Another rank each time, so that no part of one fits the other."""
    layer = LoraLayer(torch.full((number, 8), float(number)), torch.ones(8, number), 1.0)
    write_peft(folder / "lora", {MODULE: layer}, rank=number, alpha=number, base_model="test")


def load_lora(folder: Path) -> int:
    layer = read_lora(folder / "lora").layers[MODULE]
    assert layer.scale == 1.0
    assert (layer.down == float(layer.rank)).all()
    return layer.rank


def save_draft(folder: Path, number: int) -> None:
    x0 = torch.full((1, 4, 4, 4), float(number))
    schedule = ScaleSchedule((0.5, 1.0), (1.0, 0.5))
    drafts = Drafts(schedule, "test", (8, 8), (Draft(number, 0),), (x0,), x0.clone())
    save_drafts(drafts, folder / "a.drafts.safetensors", overwrite=True)


def load_draft(folder: Path) -> int:
    drafts = load_drafts(folder / "a.drafts.safetensors")
    assert (drafts.samples == float(drafts.images[0].seed)).all()
    return drafts.images[0].seed


def save_point(folder: Path, number: int) -> None:
    save_checkpoint(folder / "run" / "checkpoint.pt", {"step": number, "w": torch.ones(number)})


def load_point(folder: Path) -> int:
    state = load_checkpoint(folder / "run" / "checkpoint.pt")
    assert len(state["w"]) == state["step"]
    return state["step"]


KINDS = {
    "lora": (save_lora, load_lora),
    "drafts": (save_draft, load_draft),
    "checkpoint": (save_point, load_point),
}


def save_until(line: int, save: Callable[[], None]) -> bool:
    """Saves in a process that is killed before its line number `line`; whether it was."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame, event, _):
            nonlocal left
            if not frame.f_code.co_filename.endswith(WRITERS):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        save()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.startswith(".")]


def kill(kind: str, folder: Path) -> None:
    save, load = KINDS[kind]
    folder.mkdir()
    seen, line = {2: 0, 3: 0}, 1
    save(folder, 2)
    while save_until(line, lambda: save(folder, 3)):
        seen[load(folder)] += 1
        save(folder, 2)
        assert load(folder) == 2
        assert not hidden(folder), f"left over after line {line}: {hidden(folder)}"
        line += 1
    assert load(folder) == 3
    sys.stdout.write(f"{kind} {seen[2]} {seen[3]}\n")


if __name__ == "__main__":
    for kind in KINDS:
        kill(kind, Path(sys.argv[1]) / kind)
