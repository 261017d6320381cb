"""ComfyUI-SwD: scale-wise distilled models in ComfyUI. The nodes are in `nodes/`."""

import logging

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """Called by the host. Imports late, or pytest and other tools would need a host."""
    try:
        from .nodes import extension

        return extension()
    except Exception:
        logging.getLogger(__name__).exception(
            "ComfyUI-SwD could not load; it needs ComfyUI 0.3.64 or newer"
        )
        raise
