"""SwD Sample's live preview and progress bar, over a whole run of growing sizes."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import comfy.utils
import latent_preview
from PIL import Image
from torch import Tensor

MOST_TILES = 16


def progress_marks(sizes: Sequence[Sequence[int]]) -> list[int]:
    """Percent done after each step, weighted by the latent cells of the steps."""
    done = list(accumulate(math.prod(size) for size in sizes))
    return [round(100 * cells / done[-1]) for cells in done]


def tiled(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, as near to a square as they go; one picture as it is."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def run_callback(model: Any, sizes: Sequence[Sequence[int]]) -> Callable[..., None]:
    """The callback of one run: one bar of 100 percent, and frames that grow with the scales.

    A frame shows every image of the batch (the first 16); its longer side is that share of the
    host's preview size which the step's side is of the target's. The bar also raises the host's
    interrupt.

    Args:
        model: the MODEL. sizes: latent (height, width) of each step, the target last; a video's
            with its frames first. Of a video the first frame is shown.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(100)
    marks = progress_marks(sizes)

    def frame(x0: Tensor, size: Sequence[int]) -> tuple[str, Image.Image, int] | None:
        shown = [
            previewer.decode_latent_to_preview_image("JPEG", row)
            for row in x0[:MOST_TILES].split(1)
        ]
        if None in shown:  # a previewer of another pack that sends its own frames
            return None
        most = latent_preview.MAX_PREVIEW_RESOLUTION * max(size[-2:]) / max(sizes[-1][-2:])
        return "JPEG", tiled([image for _, image, _ in shown]), max(1, round(most))

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        preview = None if previewer is None else frame(x0, sizes[step])
        bar.update_absolute(marks[step], 100, preview)

    return callback
