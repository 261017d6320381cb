"""SwDTray: drafts put aside one by one, over runs and restarts, each in a file of its own."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import ExecutionBlocker

from ..swd_core.draft_files import SUFFIX, load_drafts, save_drafts
from ..swd_core.drafts import MAX_DRAFTS, Drafts, join, parse_picks
from . import draft_sheet, drafting
from ._host import CATEGORY, io, running_server, say, supported
from .draft_files import SHEET_BATCH
from .fitting import check_decodes
from .inputs import checked
from .prompts import encoded
from .shown import LATELY

FOLDER = "drafts/tray"
ROUTE = "/swd/tray"  # web/js/swd_tray.js asks there
NO_TEXT = (
    "The prompts of these drafts aren't known to SwD Draft Tray: connect its clip, or, where they "
    "weren't made with SwD Prompts, their own conditioning to the finishing node."
)


def folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


def names() -> list[str]:
    """Of what lies on the tray, in the order in which it came."""
    files = [path for path in folder().glob(f"*{SUFFIX}") if path.is_file()]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [path.name.removesuffix(SUFFIX) for path in files]


def keep(drafts: Drafts, picks: str) -> list[str]:
    """Puts picked drafts on the tray and gives their names; what is there already stays.

    Raises:
        ValueError: as `parse_picks`. OSError: if a file can't be written.
    """
    folder().mkdir(parents=True, exist_ok=True)
    kept = [(f"{drafts.sheet}_{place + 1:03}", place) for place in parse_picks(picks, drafts)]
    for name, place in kept:
        path = folder() / f"{name}{SUFFIX}"
        if not path.exists():
            save_drafts(drafts.choose([place]), path)
    return [name for name, _ in kept]


def remove(gone: Sequence[str]) -> None:
    """Takes drafts off the tray; of other names nothing is removed."""
    for name in set(gone).intersection(names()):
        (folder() / f"{name}{SUFFIX}").unlink(missing_ok=True)


def on_tray() -> tuple[list[str], Drafts | None, int]:
    """The drafts that go with the newest one, by prompt, with the names of their files; and how
    many don't.

    Raises:
        ValueError: if one of the files is damaged.
    """
    found = [(name, load_drafts(folder() / f"{name}{SUFFIX}")) for name in names()]
    together = [(name, d) for name, d in found if d.goes_with(found[-1][1])][-MAX_DRAFTS:]
    order = list(dict.fromkeys(d.images[0].prompt for _, d in together))
    together.sort(key=lambda pair: order.index(pair[1].images[0].prompt))
    drafts = join([d for _, d in together]) if together else None
    there = [name for name, d in together for _ in d.images]
    return there, drafts, sum(len(d.images) for _, d in found) - len(there)


class SwDTray(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDTray",
            display_name="SwD Draft Tray",
            category=CATEGORY,
            description="Drafts put aside with K on any sheet, over runs and restarts, until they "
            "are removed; to be picked and finished as from any sheet. They lie in the output "
            "folder, in drafts/tray.",
            inputs=[
                io.Vae.Input("vae", tooltip="Decodes the drafts for the sheet."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Encodes the prompts of drafts that were made with SwD Prompts.",
                ),
            ],
            outputs=[
                io.Latent.Output("drafts", display_name="drafts", tooltip="For Finish SwD Drafts."),
                io.Image.Output(
                    "images", display_name="images", tooltip="Every draft, at its own size."
                ),
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="Their prompts, for positive of Finish SwD Drafts. Needs clip.",
                ),
            ],
            is_output_node=True,
            **supported(io.Schema, search_aliases=["favourites", "keep drafts", "pick"]),
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return " ".join(names())

    @classmethod
    @checked()
    def execute(cls, vae: Any, clip: Any = None) -> io.NodeOutput:
        kept, drafts, others = on_tray()
        if drafts is None:
            say("The tray is empty: K on a sheet of drafts puts one here.")
            nothing = ExecutionBlocker(None)
            return io.NodeOutput(nothing, nothing, [nothing], ui={"swd_sheet": []})
        waiting = f"; {others} more are of another model, size or schedule" if others else ""
        say(f"{len(kept)} put aside{waiting}")
        check_decodes(vae, drafts.samples.shape[1], drafts.samples.ndim - 2)
        images = draft_sheet.decode(drafts, vae, None, SHEET_BATCH)
        _, shown = draft_sheet.show(drafts, images, cls)
        shown["swd_sheet"][0]["kept"] = kept
        texts = list(dict.fromkeys(filter(None, (d.prompt for d in drafts.images))))
        told = encoded(clip, texts) if clip is not None and texts else [ExecutionBlocker(NO_TEXT)]
        return io.NodeOutput(drafting.to_latent(drafts), images, told, ui=shown)


def serve() -> None:
    """Lets a page put drafts on the tray and take them off, where the host runs as a server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    routes = server.routes

    @routes.get(ROUTE)
    async def listed(_: Any) -> web.Response:
        return web.json_response(await asyncio.to_thread(names))

    @routes.post(ROUTE)
    async def put(request: Any) -> web.Response:
        asked = await request.json()
        drafts = LATELY.sheets.get(str(asked["sheet"]))
        if drafts is None:
            return web.Response(status=404, text="This sheet is too long ago. Run it again.")
        try:
            return web.json_response(await asyncio.to_thread(keep, drafts, str(asked["pick"])))
        except (ValueError, OSError) as error:
            return web.Response(status=400, text=str(error))

    @routes.post(f"{ROUTE}/remove")
    async def taken(request: Any) -> web.Response:
        await asyncio.to_thread(remove, list(map(str, (await request.json())["names"])))
        return web.json_response(await asyncio.to_thread(names))


NODES = [SwDTray]
