"""A step of the loaded MODEL on another device than the processor: whole there, without waiting.

torch's device without numbers stands for a graphics card: it refuses to be mixed with the processor
and to be read from. What is brought to a real one waits for all that it computes, unless `sent`
does it.
"""

import dataclasses
import importlib
import sys
from typing import Any

import pytest
import torch
from host_training import VALUES, data_for, packed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
FAMILIES = ("sd35-medium", "flux", "sdxl", "zimage", "qwen-image", "flux2-klein", "krea2")


class Brought(TorchDispatchMode):
    """Notes who brings tensors of the processor to the device, but for `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.by: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        found = func(*args, **kwargs or {})
        given = [a for part in args for a in (part if isinstance(part, (list, tuple)) else [part])]
        devices = {a.device.type for a in given if isinstance(a, Tensor) and a.ndim}
        if "cpu" in devices and isinstance(found, Tensor) and found.device == DEVICE:
            self.by.add(caller())
        return found


class Listed(TorchFunctionMode):
    """Notes who picks rows of a tensor there by a list, which torch brings there by itself."""

    def __init__(self, by: set[str]) -> None:
        super().__init__()
        self.by = by

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        picked = func is Tensor.__getitem__ and args[0].device == DEVICE
        if picked and isinstance(args[1], list):
            self.by.add(caller())
        return func(*args, **kwargs or {})


def caller() -> str:
    """The file of the nearest code that is not torch's."""
    frame = sys._getframe(1)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_filename


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_brought_to_the_device_but_by_sending(small, host_model, family, monkeypatch):
    """Prompts of several lengths with a mask, too, as prepared data has them."""
    newer = importlib.import_module("newer_models")
    kinds = newer if family in newer.KINDS else small
    model, run = kinds.host_model(family), packed("nodes.distill_run")
    data = data_for(kinds, family)
    monkeypatch.setattr(model, "load_device", DEVICE)
    widgets = {name: value for name, value in VALUES.items() if name not in ("rank", "resume")}
    settings = run.settings_for(model, data, "small", {"rank": 2}, widgets)

    def place(teacher: Any, _: Any) -> None:
        teacher.base.manual_cast_dtype = torch.bfloat16
        for part in teacher.module.modules():
            if not isinstance(part, nn.ParameterDict):
                part.to(DEVICE, torch.bfloat16 if not list(part.children()) else None)

    monkeypatch.setattr(host_model.HostModel, "_place", place)
    teacher = host_model.HostModel(model, 2, checkpointing=True)
    batches = packed("swd_core.distill.memory").MemoryBatches(
        run.copied(data, model), [1.0, 0.9, 0.7, 0.6], DEVICE
    )
    text = batches._text

    def masked(chosen: list[int]) -> Any:
        found = text(chosen)
        mask = torch.ones(found.context.shape[:2], dtype=torch.bool)
        mask[1::2, 3:] = False
        return dataclasses.replace(found, mask=mask)

    batches._text = masked
    with torch.inference_mode(False), torch.enable_grad():
        trainer = packed("swd_core.distill.trainer").Trainer(
            teacher, batches, settings.train, last=1
        )
        read: list[int] = []
        trainer.settle = lambda: read.append(trainer.step)
        with Brought() as brought, Listed(brought.by):
            trainer.train_step()
    assert read == [0], "once in a step, at its end"
    ours = {file.rpartition("/")[2] for file in brought.by if "/comfy/ldm/" not in file}
    assert ours <= {"transfer.py"}
