"""Live preview and progress bar over growing sizes: of one run, and of a sheet of drafts."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import comfy.utils
import latent_preview
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..swd_core.drafts import Drafts
from ._host_model import cell_pixels
from .draft_sheet import sheet_of

MOST_TILES = 16
BLANK = "#2c3138"  # a draft that is not made yet
MOST_SIDE = 1024  # of a sheet's frame, in pixels


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


class Arrived(TorchFunctionMode):
    """Has copies off a device wait for what they copy.

    The host sends a preview's pixels on their way and reads them at once. On a graphics card, where
    the step that makes them is still to be computed then, it reads what lay there before.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("non_blocking"):
            named["non_blocking"] = False
        return func(*args, **named)


def decoded(previewer: Any, x0: Tensor) -> list[Image.Image]:
    """What the host shows of each image of a clean latent (B, C, ..., H, W), of a video its first
    frame; nothing where the previewer is another pack's that sends its own frames."""
    with Arrived():
        shown = [previewer.decode_latent_to_preview_image("JPEG", row) for row in x0.split(1)]
    return [] if None in shown else [image for _, image, _ in shown]


def previewer_of(model: Any) -> Any:
    """The host's, or None where previews are off."""
    return latent_preview.get_previewer(model.load_device, model.model.latent_format)


def run_callback(model: Any, sizes: Sequence[Sequence[int]]) -> Callable[..., None]:
    """The callback of one run: one bar of 100 percent, and frames that grow with the scales.

    A frame shows every image of the batch (the first 16); its longer side is that share of the
    host's preview size which the step's side is of the target's. The bar also raises the host's
    interrupt.

    Args:
        model: the MODEL. sizes: latent (height, width) of each step, the target last; a video's
            with its frames first. Of a video the first frame is shown.
    """
    previewer = previewer_of(model)
    bar = comfy.utils.ProgressBar(100)
    marks = progress_marks(sizes)

    def frame(x0: Tensor, size: Sequence[int]) -> tuple[str, Image.Image, int] | None:
        shown = decoded(previewer, x0[:MOST_TILES])
        most = latent_preview.MAX_PREVIEW_RESOLUTION * max(size[-2:]) / max(sizes[-1][-2:])
        return ("JPEG", tiled(shown), max(1, round(most))) if shown else None

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        preview = None if previewer is None else frame(x0, sizes[step])
        bar.update_absolute(marks[step], 100, preview)

    return callback


class LiveSheet:
    """The same of many images run batch by batch: a frame is their contact sheet so far.

    Args:
        model: the MODEL. drafts: all of the images. sizes: as of `run_callback`, of the steps that
            run; each image is drawn as large as its step's size is of the last.
    """

    def __init__(self, model: Any, drafts: Drafts, sizes: Sequence[Sequence[int]]):
        self.previewer, self.bar = previewer_of(model), comfy.utils.ProgressBar(100)
        self.device = model.load_device
        self.sizes, self.marks, self.count = sizes, progress_marks(sizes), len(drafts.images)
        if self.previewer is not None:
            cell = cell_pixels(model)
            height, width = (cell * side for side in sizes[-1][-2:])
            blank = Image.new("RGB", (width, height), BLANK)
            self.sheet = sheet_of(drafts, [blank] * self.count)

    def show(self, first: int, step: int, x0: Tensor) -> None:
        """Tells of a step of the images from number `first` on, both from 0."""
        done = first * 100 + len(x0) * self.marks[step]
        preview = None if self.previewer is None else self._frame(first, self.sizes[step], x0)
        self.bar.update_absolute(done // self.count, 100, preview)

    def _frame(
        self, first: int, size: Sequence[int], x0: Tensor
    ) -> tuple[str, Image.Image, int] | None:
        # A batch that was run before is where the host keeps what nodes hand on.
        shown = decoded(self.previewer, x0.to(self.device))
        for k, picture in enumerate(shown, first):
            self.sheet.put(k, picture, max(size[-2:]) / max(self.sizes[-1][-2:]))
        sheet = self.sheet.picture.copy()  # the host sends it while the next one is drawn
        return ("JPEG", sheet, min(MOST_SIDE, max(sheet.size))) if shown else None
