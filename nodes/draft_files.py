"""SwDSaveDrafts and SwDLoadDrafts: drafts in files, to be finished another day."""

import os
import posixpath
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.drafts import SUFFIX, load_drafts, save_drafts
from ..swd_core.files import check_name
from . import drafting
from ._host import CATEGORY, io, supported

PREFIX = "drafts/swd"
SHEET_BATCH = 16
MOST_PREFIX = 800  # bytes; a whole path may have 1024 on some systems


def checked_prefix(prefix: str) -> str:
    """A path below the output folder that every system can have, with / between its parts.

    Raises:
        ValueError: names what is wrong with it.
    """
    plain = posixpath.normpath(prefix.replace("\\", "/"))
    if plain.startswith("/"):
        raise ValueError(
            f"filename_prefix {prefix[:40]!r} must be a path below the output folder, such as "
            f"{PREFIX}."
        )
    for part in plain.split("/"):
        check_name(part if prefix.strip() else "", "filename_prefix")
    if len(plain.encode("utf-8")) > MOST_PREFIX:
        raise ValueError(f"filename_prefix {prefix[:40]!r}… has more than {MOST_PREFIX} bytes.")
    return plain


class SwDSaveDrafts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDSaveDrafts",
            display_name="Save SwD Drafts",
            category=CATEGORY,
            description="Keeps drafts in a file of the output folder with all that finishing "
            "them later, or on another machine, needs. The host's own Save Latent keeps the "
            "picture only.",
            inputs=[
                io.Latent.Input("drafts", tooltip="From SwD Drafts."),
                io.String.Input(
                    "filename_prefix",
                    default=PREFIX,
                    tooltip="Folder and beginning of the file's name.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "drafts_out", display_name="drafts", tooltip="The same drafts, to go on with."
                )
            ],
            is_output_node=True,
            **supported(io.Schema, search_aliases=["export drafts", "save latent"]),
        )

    @classmethod
    def execute(cls, drafts: Any, filename_prefix: str) -> io.NodeOutput:
        known = drafting.from_latent(drafts)
        root = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            checked_prefix(filename_prefix), root
        )
        while True:
            while os.path.lexists(path := Path(folder) / f"{name}_{counter:05}_{SUFFIX}"):
                counter += 1
            try:
                save_drafts(known, path)
                break
            except FileExistsError:  # another process was quicker
                continue
            except OSError as error:
                raise OSError(
                    f"The drafts can't be saved in {folder} ({error}). Make room, or give another "
                    "filename_prefix."
                ) from error
        file = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(drafts, ui={"swd_files": [file]})


def saved_files() -> list[str]:
    """Drafts files of the input folder, and of the output folder marked as such."""
    found = []
    for root, mark in (
        (folder_paths.get_input_directory(), ""),
        (folder_paths.get_output_directory(), " [output]"),
    ):
        paths = sorted(Path(root).rglob(f"*{SUFFIX}"))
        found += [p.relative_to(root).as_posix() + mark for p in paths]
    return found


class SwDLoadDrafts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDLoadDrafts",
            display_name="Load SwD Drafts",
            category=CATEGORY,
            description="Brings saved drafts back, from the input or the output folder, and "
            "shows their sheet.",
            inputs=[
                io.Combo.Input(
                    "file", options=saved_files(), tooltip=f"A file that ends in {SUFFIX}."
                ),
                io.Vae.Input("vae", tooltip="Decodes the drafts for the sheet."),
            ],
            outputs=[
                io.Latent.Output("drafts", display_name="drafts", tooltip="For Finish SwD Drafts."),
                io.Image.Output(
                    "images", display_name="images", tooltip="Every draft, at its own size."
                ),
            ],
            is_output_node=True,
            **supported(io.Schema, search_aliases=["import drafts", "load latent"]),
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        if not folder_paths.exists_annotated_filepath(file):
            return f"There is no drafts file {file}. Save drafts, or copy it to the input folder."
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        return Path(folder_paths.get_annotated_filepath(file)).stat().st_mtime

    @classmethod
    def execute(cls, file: str, vae: Any) -> io.NodeOutput:
        if file not in saved_files():
            raise ValueError(f"There is no drafts file {file}. Choose one of the list.")
        drafts = load_drafts(Path(folder_paths.get_annotated_filepath(file)))
        images = drafting.decode(drafts, vae, None, SHEET_BATCH)
        _, shown = drafting.show(drafts, images, cls)
        return io.NodeOutput(drafting.to_latent(drafts), images, ui=shown)


NODES = [SwDSaveDrafts, SwDLoadDrafts]
