"""What an artist sees: one file per topic."""

from ._host import ComfyExtension, io
from .latent_upscale import NODES as LATENT_UPSCALE
from .sampler import NODES as SAMPLER
from .schedule import NODES as SCHEDULE
from .student import NODES as STUDENT


class SwDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*SCHEDULE, *SAMPLER, *LATENT_UPSCALE, *STUDENT]


def extension() -> SwDExtension:
    return SwDExtension()
