"""What the loaders' menus offer: looked up when a page asks, never at the host's start.

Neither the start nor a page's load may wait for whatever lies in a user's folders.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ._host import running_server

ROUTE = "/swd/files"  # web/js/swd_files.js asks there
MOST_ENTRIES = 100_000  # looked at in one search


def inside(root: str, name: str) -> Path | None:
    """The path of `name` in the folder `root`, through links too; None if it leads out of it."""
    path = Path(os.path.abspath(os.path.join(root, name)))
    return path if path.is_relative_to(os.path.abspath(root)) else None


def search(root: str, wanted: Callable[[str], bool]) -> list[str]:
    """Files whose name is wanted, the newest first, as paths relative to `root`.

    The nearest folders are searched first, links followed, no folder entered twice, and the search
    ends after MOST_ENTRIES.
    """
    found: list[tuple[float, str]] = []
    entered, folders, left = set(), deque([root]), MOST_ENTRIES
    while folders and left:
        folder = folders.popleft()
        if (place := _place(folder)) in entered:
            continue
        entered.add(place)
        for entry in islice(_entries(folder), left):
            left -= 1
            with suppress(OSError):  # a link to itself, or a file gone meanwhile
                if wanted(entry.name) and entry.is_file():
                    path = os.path.relpath(entry.path, root).replace(os.sep, "/")
                    found.append((-entry.stat().st_mtime, path))
                elif entry.is_dir():
                    folders.append(entry.path)
    return [path for _, path in sorted(found)]


def _place(folder: str) -> tuple[int, int] | None:
    """What a folder is, by whatever path it is reached; None if there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # not there, or not ours to read
        return


def serve(menus: dict[str, Callable[[], list[str]]]) -> None:
    """Answers a page's question for the menus, by node id, where the host runs as a server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get(ROUTE)
    async def files(_: Any) -> web.Response:
        offer = {node: await asyncio.to_thread(menu) for node, menu in menus.items()}
        return web.json_response(offer)
