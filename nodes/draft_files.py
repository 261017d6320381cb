"""SwDSaveDrafts and SwDLoadDrafts: drafts in files, to be finished another day."""

import math
import os
import posixpath
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.draft_files import SUFFIX, load_drafts, save_drafts
from ..swd_core.drafts import parse_picks
from ..swd_core.files import check_name
from . import draft_sheet, drafting, offered
from ._host import CATEGORY, io, supported
from .fitting import check_decodes
from .inputs import as_typed, checked

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
                io.String.Input(
                    "pick",
                    default="all",
                    optional=True,
                    tooltip="Which: numbers of the contact sheet, such as 3, or 1,4-6, or all. In "
                    "the folder drafts/tray they lie on SwD Draft Tray.",
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
    @checked()
    def execute(cls, drafts: Any, filename_prefix: str, pick: str = "all") -> io.NodeOutput:
        whole = drafting.from_latent(drafts)
        known = whole.choose(parse_picks(pick, whole))
        if not known.images:
            return io.NodeOutput(drafts)
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

    def drafts(root: str) -> list[str]:
        return offered.search(root, lambda name: name.endswith(SUFFIX))

    marked = [name + " [output]" for name in drafts(folder_paths.get_output_directory())]
    return [*drafts(folder_paths.get_input_directory()), *marked]


def saved_file(file: Any) -> Path:
    """The path of an entry of that list, or of a file beyond the part of the folders it covers.

    Raises:
        ValueError: if there is no such file in the input or the output folder.
    """
    name, marked = folder_paths.annotated_filepath(str(file))
    root = marked or folder_paths.get_input_directory()
    known = root in (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    path = offered.inside(root, name) if known and name.endswith(SUFFIX) else None
    if path is None or not os.path.isfile(path):
        raise ValueError(
            f"There is no drafts file {str(file)[:200]!r}. Save drafts, or copy it to the input "
            "folder."
        )
    return path


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
                io.Combo.Input("file", options=[], tooltip=f"A file that ends in {SUFFIX}."),
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
    def validate_inputs(cls, file: Any) -> bool | str:
        return as_typed(saved_file, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> float:
        # Linked: equal to nothing, so it is read anew.
        return math.nan if file is None else saved_file(file).stat().st_mtime

    @classmethod
    @checked("file")
    def execute(cls, file: str, vae: Any) -> io.NodeOutput:
        drafts = load_drafts(saved_file(file))
        check_decodes(vae, drafts.samples.shape[1], drafts.samples.ndim - 2)
        images = draft_sheet.decode(drafts, vae, None, SHEET_BATCH)
        _, shown = draft_sheet.show(drafts, images, cls)
        return io.NodeOutput(drafting.to_latent(drafts), images, ui=shown)


MENUS = {"SwDLoadDrafts": saved_files}
NODES = [SwDSaveDrafts, SwDLoadDrafts]
