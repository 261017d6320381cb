"""SwDTray: drafts put aside one by one, over runs and restarts, each in a file of its own."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ..swd_core.drafts import MAX_DRAFTS, join
from . import draft_sheet, drafting, tray_files
from ._host import CATEGORY, io, running_server, say, supported
from .draft_files import SHEET_BATCH
from .fitting import check_decodes
from .inputs import checked
from .prompts import FROM_TEXT, encoded
from .shown import LATELY
from .tray_files import Kept

ROUTE = "/swd/tray"  # web/js/swd_tray.js asks there
NO_TEXT = (
    "The prompts of these drafts aren't known to SwD Draft Tray: connect its clip, or, where they "
    "were made of anything but a text of SwD Prompts or CLIP Text Encode, their own conditioning "
    "to the finishing node."
)


def decoded_by(vae: Any, kinds: Sequence[list[Kept]]) -> list[list[Kept]]:
    """Those whose drafts a VAE can decode.

    Raises:
        ValueError: if there are some and it can decode none.
    """
    fitting, reason = [], None
    for kind in kinds:
        samples = kind[0][1].samples
        try:
            check_decodes(vae, samples.shape[1], samples.ndim - 2)
            fitting.append(kind)
        except ValueError as error:
            reason = error
    if reason and not fitting:
        raise reason
    return fitting


def waiting(kinds: Sequence[list[Kept]], chosen: int, fitting: int, broken: Sequence[str]) -> str:
    """What the node says of the drafts that its sheet doesn't show."""
    others = sum(map(len, kinds)) - chosen
    older = max(0, chosen - MAX_DRAFTS)
    return "".join(
        [
            f"; {others} of another model, size or schedule" if others else "",
            f": kind has 1 to {fitting}" if fitting > 1 else "",
            f"; {older} older ones come when some of these are removed" if older else "",
            *(f". {reason.rstrip('.')}" for reason in broken[:3]),
            f". {len(broken) - 3} more can't be read" if len(broken) > 3 else "",
        ]
    )


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
                    tooltip="Encodes the prompts of the drafts.",
                ),
                io.Int.Input(
                    "kind",
                    default=1,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Where drafts of several models, sizes or schedules lie there: 1 shows "
                    "those that go with the newest one, 2 the next ones, ...",
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
        return " ".join(tray_files.names())

    @classmethod
    @checked()
    def execute(cls, vae: Any, clip: Any = None, kind: int = 1) -> io.NodeOutput:
        found, broken = tray_files.read()
        kinds = tray_files.by_kind(found)
        fitting = decoded_by(vae, kinds)
        if not fitting:
            say(f"The tray is empty: K on a sheet puts a draft here{waiting([], 0, 0, broken)}")
            nothing = ExecutionBlocker(None)
            return io.NodeOutput(nothing, nothing, [nothing], ui={"swd_sheet": []})
        kind = min(kind, len(fitting))
        shown = tray_files.by_prompt(fitting[kind - 1][-MAX_DRAFTS:])
        drafts = join([draft for _, draft in shown])
        chosen = len(fitting[kind - 1])
        say(f"{len(shown)} put aside{waiting(kinds, chosen, len(fitting), broken)}")
        images = draft_sheet.decode(drafts, vae, None, SHEET_BATCH)
        _, page = draft_sheet.show(drafts, images, cls)
        page["swd_sheet"][0] |= {
            "kept": [name for name, _ in shown],
            "kind": kind,
            "kinds": len(fitting),
        }
        texts = list(dict.fromkeys(d.prompt for d in drafts.images if d.prompt and d.known))
        told = [ExecutionBlocker(NO_TEXT)]
        if clip is not None and texts:
            told = encoded(clip, texts, **{FROM_TEXT: True})
        return io.NodeOutput(drafting.to_latent(drafts), images, told, ui=page)


def keep(asked: dict[str, Any]) -> list[str]:
    """Raises FileNotFoundError if the sheet isn't known any more."""
    drafts = LATELY.sheets.get(str(asked["sheet"]))
    if drafts is None:
        raise FileNotFoundError("This sheet is too long ago. Run it again, as it was made.")
    return tray_files.keep(drafts, str(asked["pick"]))


def remove(asked: dict[str, Any]) -> list[str]:
    tray_files.remove(list(map(str, asked["names"])))
    return tray_files.names()


def put_back(asked: dict[str, Any]) -> list[str]:
    return tray_files.put_back(list(map(str, asked["names"])))


def serve() -> None:
    """Lets a page put drafts on the tray and take them off, where the host runs as a server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get(ROUTE)
    async def listed(_: Any) -> web.Response:
        return web.json_response(await asyncio.to_thread(tray_files.names))

    @server.routes.get(ROUTE + "/{sheet}")
    async def kept(request: Any) -> web.Response:
        sheet = request.match_info["sheet"]
        drafts = LATELY.sheets.get(sheet)
        return web.json_response(await asyncio.to_thread(tray_files.kept_of, sheet, drafts))

    def answer(path: str, work: Callable[[dict[str, Any]], list[str]]) -> None:
        @server.routes.post(ROUTE + path)
        async def reply(request: Any) -> web.Response:
            try:
                asked = await request.json()
                return web.json_response(await asyncio.to_thread(work, asked))
            except (KeyError, TypeError):
                return web.Response(status=400, text="Give sheet and pick, or names.")
            except FileNotFoundError as error:
                return web.Response(status=404, text=str(error))
            except (ValueError, OSError) as error:
                return web.Response(status=400, text=str(error))

    for path, work in (("", keep), ("/remove", remove), ("/back", put_back)):
        answer(path, work)


NODES = [SwDTray]
