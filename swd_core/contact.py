"""Contact sheets: many small pictures with their numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .schedule import one_line

PAPER, INK, FAINT = "#1e2227", "#f2f2f2", "#a8b0ba"
LEAST, MOST = 128, 384  # the longer side of a picture on a sheet, in pixels
WIDE = 2048  # a sheet's width, beyond which its pictures get smaller, though not below LEAST
GAP, BAND = 8, 44


@dataclass(frozen=True)
class Sheet:
    """A sheet and how it divides: cell k is in row k // columns, all cells are equally large.

    size: (width, height) of each picture on it.
    """

    picture: Image.Image
    columns: int
    rows: int
    count: int
    size: tuple[int, int]

    def put(self, k: int, picture: Image.Image, share: float = 1.0) -> None:
        """Draws a picture into cell k, from 0, in the middle of its place, `share` as large."""
        width, height = self.size
        size = (max(1, round(width * share)), max(1, round(height * share)))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        cell = (self.picture.width // self.columns, self.picture.height // self.rows)
        x, y = k % self.columns * cell[0], k // self.columns * cell[1]
        left, top = (cell[0] - size[0]) // 2, GAP // 2 + (height - size[1]) // 2
        self.picture.paste(picture, (x + left, y + top))


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, width: float, largest: int, least: int
) -> ImageFont.ImageFont:
    """The largest font that leaves `text` within `width`."""
    for size in range(largest, least, -1):
        font = ImageFont.load_default(size)
        if draw.textlength(text, font) <= width:
            return font
    return ImageFont.load_default(least)


def _columns(count: int, width: int, height: int) -> int:
    """How many columns make the sheet nearest to square with few empty cells."""
    wide = LEAST + GAP
    high = LEAST * height / max(width, height) + BAND + GAP

    def fault(columns: int) -> float:
        rows = math.ceil(count / columns)
        slant = math.log(columns * wide / (rows * high))
        return abs(slant) + (columns * rows - count) / count

    return min(range(1, min(count, WIDE // wide) + 1), key=fault)


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], *, most: int = MOST
) -> Sheet:
    """Pictures of one size in a near-square grid, each over its number (from 1) and a label.

    Args:
        most: the longer side of a picture on the sheet, in pixels, at most.

    Raises:
        ValueError: if there are none.
    """
    if not pictures:
        raise ValueError("There are no drafts to show.")
    count, (width, height) = len(pictures), pictures[0].size
    columns = _columns(count, width, height)
    rows = math.ceil(count / columns)
    longer = max(width, height)
    side = max(LEAST, min(longer, most, WIDE // columns - GAP))
    size = tuple(max(1, round(s * side / longer)) for s in (width, height))
    cell = (max(size[0], LEAST) + GAP, size[1] + BAND + GAP)
    paper = Image.new("RGB", (columns * cell[0], rows * cell[1]), PAPER)
    sheet = Sheet(paper, columns, rows, count, size)
    draw = ImageDraw.Draw(paper)
    for k, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        sheet.put(k, picture)
        x, y = k % columns * cell[0], k // columns * cell[1]
        middle, top = x + cell[0] / 2, y + GAP // 2 + size[1] + 2
        draw.text((middle, top), str(k + 1), INK, ImageFont.load_default(22), "mt")
        line = one_line(label)
        font = _fitting(draw, line, cell[0] - 4, 13, 7)
        draw.text((middle, top + 23), line, FAINT, font, "mt")
    return sheet
