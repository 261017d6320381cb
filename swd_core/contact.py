"""Contact sheets: many small pictures with their numbers."""

import math
import unicodedata
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from .schedule import one_line

PAPER, INK, FAINT = "#1e2227", "#f2f2f2", "#a8b0ba"
LEAST, MOST = 128, 384  # the longer side of a picture on a sheet, in pixels
WIDE = 2048  # a sheet's width, beyond which its pictures get smaller, though not below LEAST
GAP, BAND, HEAD = 8, 44, 30
HEADING = 18  # its letters
MOST_COLUMNS = WIDE // (LEAST + GAP)


@dataclass(frozen=True)
class Sheet:
    """A sheet and how it divides: all cells are equally large.

    Args:
        places: (row, column) of each picture's cell. size: (width, height) of each picture in it.
        head: pixels of a cell above its picture.
    """

    picture: Image.Image
    places: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    head: int = 0

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> int:
        return self.places[-1][0] + 1

    @property
    def columns(self) -> int:
        return max(column for _, column in self.places) + 1

    def corner(self, k: int) -> tuple[int, int]:
        """(x, y) of cell k, from 0, without its head."""
        row, column = self.places[k]
        wide, high = self.picture.width // self.columns, self.picture.height // self.rows
        return column * wide, row * high + self.head

    def put(self, k: int, picture: Image.Image, share: float = 1.0) -> None:
        """Draws a picture into cell k, in the middle of its place, `share` as large as that."""
        width, height = self.size
        size = (max(1, round(width * share)), max(1, round(height * share)))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        x, y = self.corner(k)
        left = (self.picture.width // self.columns - size[0]) // 2
        self.picture.paste(picture, (x + left, y + GAP // 2 + (height - size[1]) // 2))


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

    return min(range(1, min(count, MOST_COLUMNS) + 1), key=fault)


def _places(headings: Sequence[str], columns: int) -> tuple[tuple[int, int], ...]:
    """(row, column) of each picture: one after another, every heading in a row of its own."""
    found: list[tuple[int, int]] = []
    for k, heading in enumerate(headings):
        row, column = found[-1] if found else (0, -1)
        new_row = column + 1 == columns or (k > 0 and heading != headings[k - 1])
        found.append((row + 1, 0) if new_row else (row, column + 1))
    return tuple(found)


def contact_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    headings: Sequence[str] = (),
    most: int = MOST,
) -> Sheet:
    """Pictures of one size in a near-square grid, each over its number (from 1) and a label.

    Args:
        headings: what each picture is of, where they are of several things: each begins a row.
        most: the longer side of a picture on the sheet, in pixels, at most.

    Raises:
        ValueError: if there are none.
    """
    if not pictures:
        raise ValueError("There are no drafts to show.")
    count, (width, height) = len(pictures), pictures[0].size
    headings = headings if len(set(headings)) > 1 else [""] * count
    head = HEAD if any(headings) else 0
    columns = _columns(count, width, height)
    if head:
        longest = max(len(list(alike)) for _, alike in groupby(headings))
        columns = math.ceil(longest / math.ceil(longest / MOST_COLUMNS))
    places = _places(headings, columns)
    longer = max(width, height)
    side = max(LEAST, min(longer, most, WIDE // columns - GAP))
    size = tuple(max(1, round(s * side / longer)) for s in (width, height))
    cell = (max(size[0], LEAST) + GAP, head + size[1] + BAND + GAP)
    paper = Image.new("RGB", (columns * cell[0], (places[-1][0] + 1) * cell[1]), PAPER)
    sheet = Sheet(paper, places, size, head)
    draw = ImageDraw.Draw(paper)
    for k, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        sheet.put(k, picture)
        x, y = sheet.corner(k)
        middle, top = x + cell[0] / 2, y + GAP // 2 + size[1] + 2
        draw.text((middle, top), str(k + 1), INK, ImageFont.load_default(22), "mt")
        line = one_line(label)
        font = _fitting(draw, line, cell[0] - 4, 13, 7)
        draw.text((middle, top + 23), line, FAINT, font, "mt")
        if head and (not k or headings[k] != headings[k - 1]):
            font = ImageFont.load_default(HEADING)
            line = _drawable(one_line(headings[k]), font) or f"prompt {len(set(headings[: k + 1]))}"
            line = _clipped(draw, line, paper.width - 2 * GAP, font)
            draw.text((GAP, y - head + GAP), line, INK, font)
    return sheet


def _drawable(text: str, font: ImageFont.ImageFont) -> str:
    """`text` without accents and whatever else the font has no picture of; "" of no letters."""
    nothing, plain = bytes(font.getmask("\uffff")), unicodedata.normalize("NFKD", text)
    left = "".join(c for c in plain if c.isspace() or bytes(font.getmask(c)) != nothing)
    return " ".join(left.split()) if any(map(str.isalnum, left)) else ""


def _clipped(draw: ImageDraw.ImageDraw, text: str, width: float, font: ImageFont.ImageFont) -> str:
    """As much of `text` as `width` takes."""
    if draw.textlength(text, font) <= width:
        return text
    fitting = bisect(range(len(text)), width, key=lambda n: draw.textlength(text[:n] + "…", font))
    return text[: fitting - 1] + "…"
