"""What an artist sees: one file per topic."""

from ._host import ComfyExtension, io
from .distill import NODES as DISTILL
from .draft_files import NODES as DRAFT_FILES
from .drafts import NODES as DRAFTS
from .latent_upscale import NODES as LATENT_UPSCALE
from .lora import NODES as LORA
from .prepared import NODES as PREPARED
from .sampler import NODES as SAMPLER
from .scale_strip import NODES as SCALE_STRIP
from .schedule import NODES as SCHEDULE
from .student import NODES as STUDENT


class SwDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        made = [*SCHEDULE, *SAMPLER, *DRAFTS, *DRAFT_FILES, *SCALE_STRIP, *LATENT_UPSCALE]
        return [*made, *LORA, *STUDENT, *DISTILL, *PREPARED]


def extension() -> SwDExtension:
    return SwDExtension()
