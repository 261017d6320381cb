"""The rows of `make bench-growth` as curves: quality against time, a panel a measure and a run."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND = 380, 280, 52, 12, 34, 34, 34
INK, GRID, BACK = "#e8e8e8", "#444a52", "#1e2227"
SERIES = {
    "full size": "#e8e8e8", "spectral": "#ffb35a", "swd": "#5ab0ff", "pixels": "#7ddc83",
    "overwritten": "#d98cff", "re-spaced": "#8c9bff", "published": "#ff6b6b",
}  # fmt: skip
MEASURES = {
    "right more": "right, over full size",
    "frechet more": "Frechet, over full size",
    "distance": "distance from the truth",
}
Points = dict[str, list[tuple[float, list[float]]]]  # by series: time, and value with its bounds


def series(rows: dict[str, Any], run: str, measure: str) -> Points:
    """The points of a panel, each series by time."""
    found: Points = {name: [] for name in SERIES}
    for title, row in rows.items():
        of, kind = title.split(" | ")
        if of == run and measure in row:
            found[kind.split(",")[0]].append((row["time"], row[measure]))
    return {name: sorted(points) for name, points in found.items() if points}


def panel(draw: ImageDraw.ImageDraw, x0: int, y0: int, title: str, found: Points) -> None:
    font = ImageFont.load_default(12)
    low = min(bounds[1] for points in found.values() for _, bounds in points)
    high = max(bounds[2] for points in found.values() for _, bounds in points)
    most = max(time for points in found.values() for time, _ in points) * 1.05
    left, right, top, bottom = x0 + LEFT, x0 + WIDTH - RIGHT, y0 + TOP, y0 + HEIGHT - BOTTOM

    def at(time: float, value: float) -> tuple[float, float]:
        share = (value - low) / max(high - low, 1e-9)
        return left + (right - left) * time / most, bottom - (bottom - top) * share

    draw.text((x0 + WIDTH / 2, y0 + 10), title, INK, ImageFont.load_default(14), "mt")
    for i in range(5):
        value = low + (high - low) * i / 4
        y = at(0, value)[1]
        draw.line((left, y, right, y), GRID)
        draw.text((left - 4, y), f"{value:.3g}", INK, font, "rm")
    for tenth in range(0, int(most * 10) + 1, 2):
        x = at(tenth / 10, low)[0]
        draw.line((x, top, x, bottom), GRID)
        draw.text((x, bottom + 4), f"{tenth / 10:g}", INK, font, "mt")
    for name, points in found.items():
        colour = SERIES[name]
        draw.line([at(time, value[0]) for time, value in points], colour, 2)
        for time, (value, least, greatest) in points:
            draw.line([at(time, least), at(time, greatest)], colour, 1)
            x, y = at(time, value)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)


def figure(kept: dict[str, Any], path: Path) -> None:
    """Writes a PNG of all sizes in the results, one below the other."""
    panels = [
        (name, of["rows"], measure)
        for name, of in kept.items()
        if of["rows"]
        for measure in MEASURES
    ]
    runs = list(dict.fromkeys(t.split(" | ")[0] for _, rows, _ in panels for t in rows))
    if not runs:
        return
    image = Image.new("RGB", (WIDTH * len(runs), LEGEND + HEIGHT * len(panels)), BACK)
    draw = ImageDraw.Draw(image)
    _legend(draw)
    for line, (size, rows, measure) in enumerate(panels):
        for column, run in enumerate(runs):
            found = series(rows, run, measure)
            title = f"{MEASURES[measure]}: {run}, {size}"
            if found:
                panel(draw, WIDTH * column, LEGEND + HEIGHT * line, title, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _legend(draw: ImageDraw.ImageDraw) -> None:
    x, font = 12.0, ImageFont.load_default(14)
    for name, colour in SERIES.items():
        draw.ellipse((x, 12, x + 8, 20), colour)
        draw.text((x + 12, 16), name, INK, font, "lm")
        x += 30 + draw.textlength(name, font)
    draw.text((x + 10, 16), "against time; full size is 1", INK, font, "lm")
