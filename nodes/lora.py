"""SwDLoraLoader: a SwD student on top of its base model."""

import os
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.families import FAMILIES
from ..swd_core.lora import SwDLora
from ..swd_core.lora_files import WEIGHTS_NAME, read_lora
from . import _host, _host_model
from ._host import CATEGORY, io, supported, ui
from ._host_lora import OwnSchedule, apply_lora, own_schedule
from .inputs import checked

FOLDER = "loras"


def lora_names() -> list[str]:
    """The safetensors files under models/loras, and the folders that hold a PEFT student."""
    names = folder_paths.get_filename_list(FOLDER)
    files = [name for name in names if name.lower().endswith(".safetensors")]
    folders = [os.path.dirname(name) for name in files if os.path.basename(name) == WEIGHTS_NAME]
    return [*files, *(folder for folder in folders if folder)]


def lora_path(name: str) -> Path:
    """The weights file of a name from `lora_names`.

    Raises:
        FileNotFoundError: if there is none under models/loras.
    """
    known = isinstance(name, str)  # by a link it may be anything
    for candidate in (name, os.path.join(name, WEIGHTS_NAME)) if known else ():
        path = folder_paths.get_full_path(FOLDER, candidate)
        if path is not None and path.lower().endswith(".safetensors"):
            return Path(path)
    raise FileNotFoundError(
        f"There is no SwD LoRA {name!r} under models/{FOLDER}. Put the .safetensors file, or the "
        f"folder with {WEIGHTS_NAME}, there and refresh."
    )


def check_base(model: Any, lora: SwDLora, name: str) -> None:
    """Raises ValueError that names both bases if the LoRA was made for another one."""
    family = FAMILIES.get(_host_model.model_family(model))
    title = family.title if family else "of a kind that has no SwD students"
    if family is None or not family.takes(lora.architecture, lora.width):
        raise ValueError(
            f"{name} was made for {lora.title}; the loaded model is {title}. "
            "Load the base it was made for."
        )


def schedule_line(before: OwnSchedule | None, after: OwnSchedule | None) -> str:
    """Which schedule auto takes with the LoRA on the model."""
    if after is None:
        return "It has no schedule of its own; auto takes the preset for its base."
    if before is after:
        return f"It has no schedule of its own; auto goes on taking {after.text}."
    instead = f", instead of {before.text}" if before else ""
    return f"Auto takes {after.text}{instead}."


class SwDLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDLoraLoader",
            display_name="Load SwD LoRA",
            category=CATEGORY,
            description="Puts a SwD student (a LoRA), a published one or your own, on its base. "
            "Every layer of the file must find its place, or nothing is applied and the node says "
            "why.",
            inputs=[
                io.Model.Input("model", tooltip="The base that the student was distilled from."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A .safetensors file under models/loras, or a folder there that holds "
                    "the downloaded adapter_model.safetensors with its adapter_config.json.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Leave at 1.0, as students are trained. 0 bypasses the node.",
                ),
            ],
            outputs=[
                io.Model.Output("student", display_name="model", tooltip="The student."),
                io.String.Output("report", display_name="report", tooltip="What was applied."),
            ],
            **supported(io.Schema, search_aliases=["lora", "student", "PEFT", "adapter", "SwD"]),
        )

    @classmethod
    @checked("lora_name")
    def execute(cls, model: Any, lora_name: str, strength: float) -> io.NodeOutput:
        if strength == 0:
            text = "Bypassed: strength is 0."
            _host.say(text)
            return io.NodeOutput(model, text, ui=ui.PreviewText(text))
        lora = read_lora(lora_path(lora_name))
        check_base(model, lora, lora_name)
        patched, report = apply_lora(model, lora, strength, lora_name)
        report.raise_if_partial()
        text = f"{report.text}\nMade for {lora.title}, {lora.ranks}, {lora.scaling}."
        text += f"\n{schedule_line(own_schedule(model), own_schedule(patched))}"
        _host.say(text)
        return io.NodeOutput(patched, text, ui=ui.PreviewText(text))


NODES = [SwDLoraLoader]
