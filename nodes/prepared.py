"""SwDLoadPrepared: the training data that `python -m swd_core prepare` wrote."""

import math
import os
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.distill.data import PreparedBatches
from ..swd_core.distill.prepare import INDEX
from . import offered
from ._host import CATEGORY, Schedule, io, say, supported
from .distill import DistillData
from .inputs import as_typed, checked


def prepared_folders() -> list[str]:
    """Prepared folders in the input folder, links to such included."""
    files = offered.search(folder_paths.get_input_directory(), lambda name: name == INDEX)
    return [Path(file).parent.as_posix() for file in files]


def prepared_folder(folder: Any) -> Path:
    """The path of an entry of that list, or of one beyond the part of the folder it covers.

    Raises:
        ValueError: if there is no such prepared folder in the input folder.
    """
    root = folder_paths.get_input_directory()
    path = offered.inside(root, str(folder))
    if path is None or not os.path.isfile(path / INDEX):
        raise ValueError(
            f"There is no prepared folder {str(folder)[:200]!r} in {root}. Run `python -m swd_core "
            "prepare` to its end and put its folder there."
        )
    return path


class SwDLoadPrepared(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDLoadPrepared",
            display_name="Load SwD Prepared Data",
            category=CATEGORY,
            description="Training data that `python -m swd_core prepare` encoded, read from the "
            "disk while training: thousands of pictures of any aspect ratio.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[],
                    tooltip="A folder in ComfyUI's input folder that prepare has written.",
                ),
            ],
            outputs=[
                DistillData.Output("data", display_name="data", tooltip="For SwD Distill Train."),
                Schedule.Output(
                    "schedule", display_name="schedule", tooltip="What it was prepared for."
                ),
            ],
            **supported(io.Schema, search_aliases=["train", "distill", "dataset", "SwD"]),
        )

    @classmethod
    def validate_inputs(cls, folder: Any) -> bool | str:
        return as_typed(prepared_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_: Any) -> float:
        # Linked: equal to nothing, so it is read anew.
        return math.nan if folder is None else (prepared_folder(folder) / INDEX).stat().st_mtime

    @classmethod
    @checked("folder")
    def execute(cls, folder: str) -> io.NodeOutput:
        data = PreparedBatches(prepared_folder(folder))
        say(f"{folder}: {data.count} pictures prepared for {data.family}, {data.schedule.name}")
        return io.NodeOutput(data, data.schedule)


MENUS = {"SwDLoadPrepared": prepared_folders}
NODES = [SwDLoadPrepared]
