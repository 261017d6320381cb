"""What an artist sees: one file per topic. A file with nodes ends with `NODES = [...]`.

One with `MENUS` (node id -> function) says what a menu offers that is filled when a page asks.
"""

import importlib
import importlib.util
import pkgutil

from . import offered, tray
from ._host import ComfyExtension, io

FIRST = ("schedule", "sampler", "drafts", "draft_files")  # in the node library; then by name


def node_modules() -> list[str]:
    """The modules that have nodes, told by their text.

    The others are not imported at the host's start: what only a training needs is slow to import,
    and a host that moved it must not take every node away.
    """
    found = []
    for name in (module.name for module in pkgutil.iter_modules(__path__)):
        loader = importlib.util.find_spec(f"{__name__}.{name}").loader
        if "\nNODES = [" in loader.get_source(f"{__name__}.{name}"):
            found.append(name)
    return [*FIRST, *(name for name in found if name not in FIRST)]


MODULES = [importlib.import_module(f"{__name__}.{name}") for name in node_modules()]


class SwDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in MODULES for node in module.NODES]


def extension() -> SwDExtension:
    menus = (getattr(module, "MENUS", {}) for module in MODULES)
    offered.serve({node: menu for found in menus for node, menu in found.items()})
    tray.serve()
    return SwDExtension()
