"""SwDLoadPrepared: the training data that `python -m swd_core prepare` wrote."""

from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.distill.data import PreparedBatches
from ..swd_core.distill.prepare import INDEX
from ._host import CATEGORY, Schedule, io, say, supported
from .distill import DistillData


def prepared_folders() -> list[str]:
    """Prepared folders in the input folder, links to such included."""
    files, _ = folder_paths.recursive_search(folder_paths.get_input_directory())
    return sorted(Path(file).parent.as_posix() for file in files if Path(file).name == INDEX)


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
                    options=prepared_folders(),
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
    def validate_inputs(cls, folder: str) -> bool | str:
        if folder not in prepared_folders():
            return (
                f"There is no prepared folder {folder!r} in {folder_paths.get_input_directory()}. "
                "Run `python -m swd_core prepare` to its end and put its folder there."
            )
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: Any) -> float:
        return (Path(folder_paths.get_input_directory()) / folder / INDEX).stat().st_mtime

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        if (checked := cls.validate_inputs(folder)) is not True:  # the host asks for widgets only
            raise ValueError(checked)
        data = PreparedBatches(Path(folder_paths.get_input_directory()) / folder)
        say(f"{folder}: {data.count} pictures prepared for {data.family}, {data.schedule.name}")
        return io.NodeOutput(data, data.schedule)


NODES = [SwDLoadPrepared]
