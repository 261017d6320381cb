"""A schedule as text and picture: what each step costs at which size and sigma."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..swd_core.pictures import pixels_of
from ..swd_core.schedule import CELL, ScaleSchedule

CUSTOM = "custom"
WIDTH, PLOT_HEIGHT, ROW = 768, 432, 26
MOST_ROWS = 40  # of the table; the middle of longer schedules is left out
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 48, 56
COLUMNS = {"step": 140, "size in px": 330, "sigma": 470, "share of cost": 640}  # right edges
INK, GRID, SIZE, SIGMA, BAR = "#e8e8e8", "#444a52", "#5ab0ff", "#ffb35a", "#2b4a66"


def schedule_plot(
    schedule: ScaleSchedule,
    height: int,
    width: int,
    multiple: int,
    sigmas: Sequence[float],
    frames: int | None = None,
    pixels: int = CELL,
) -> Tensor:
    """IMAGE (1, H, W, 3) of a student's schedule; see `steps_plot`.

    Args:
        height, width: of the target, in latent cells. multiple: of the model's patches.
        sigmas: in the model's own terms. frames: latent ones of a video.
    """
    sizes = schedule.sizes(height, width, multiple, frames)
    return steps_plot(schedule.name, sizes, sigmas, pixels)


def steps_table(
    name: str,
    sizes: Sequence[Sequence[int]],
    sigmas: Sequence[float],
    pixels: int,
    seen: Sequence[float] = (),
) -> list[str]:
    """Lines of text: name and total cost, then step, size in pixels, sigma and share of the cost.

    Args:
        sizes: latent (height, width) of each step, or (frames, height, width), which get a column
            of their own; the target last. sigmas: of each step. pixels: along a side of a cell.
        seen: the noise levels that the model is asked at, where they are others.
    """
    cells = [math.prod(size) for size in sizes]
    frames = len(sizes[0]) == 3
    lines = [f"{name or CUSTOM}: {len(sizes)} steps, {sum(cells) / cells[-1]:.2f} full-size steps"]
    lines.append(f"step   size in px    sigma   share of cost{'   latent frames' * frames}")
    lines[-1] += "   the model's sigma" * bool(seen)
    for i, (*time, h, w) in enumerate(sizes):
        size, share = f"{w * pixels:>4} x {h * pixels:<4}", 100 * cells[i] / sum(cells)
        video = "".join(f"{t:>25}" for t in time)
        lines.append(f"{i + 1:>4}   {size}   {sigmas[i]:<7.4f} {share:>4.0f} %{video}")
        lines[-1] += f"{seen[i]:>22.4f}" if seen else ""
    return lines


def steps_plot(
    name: str, sizes: Sequence[Sequence[int]], sigmas: Sequence[float], pixels: int
) -> Tensor:
    """IMAGE (1, H, W, 3): a bar per step, as wide as its cost, as high as its size; a table below.

    Args:
        name: of the schedule; for the rest see `steps_table`.
    """
    steps = len(sizes)
    listed: list[int | None] = list(range(steps))
    if steps > MOST_ROWS:
        listed[MOST_ROWS // 2 : -MOST_ROWS // 2] = [None]
    image = Image.new("RGB", (WIDTH, PLOT_HEIGHT + ROW * (len(listed) + 2)), "#1e2227")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    *_, height, width = sizes[-1]
    costs = [math.prod(size) / math.prod(sizes[-1]) for size in sizes]
    labels = [" x ".join(map(str, (*t, w * pixels, h * pixels))) for *t, h, w in sizes]
    bottom, total = PLOT_HEIGHT - BOTTOM, sum(costs)
    x, points, texts = float(LEFT), [], []
    for cost, (*_, h, w), label, sigma in zip(costs, sizes, labels, sigmas, strict=False):
        wide = (WIDTH - LEFT - RIGHT) * cost / total
        high = (bottom - TOP) * (h * w / (height * width)) ** 0.5
        right = x + max(wide - 1, 1)  # a bar of any share keeps a line
        draw.rectangle((x + 1, bottom - high, right, bottom), outline=SIZE, fill=BAR)
        if draw.textlength(label, font) < wide - 4:
            texts.append(((x + wide / 2, bottom - high / 2), label, INK, font, "mm"))
        points.append((x + wide / 2, bottom - (bottom - TOP) * sigma / sigmas[0]))
        x += wide
    if len(points) > 1:
        draw.line(points, SIGMA, 2)
    free = 0.0  # where the next label may begin
    for (px, py), sigma in zip(points, sigmas, strict=False):
        draw.ellipse((px - 4, py - 4, px + 4, py + 4), SIGMA)
        half = draw.textlength(f"{sigma:.3g}", font) / 2
        if px - half >= free:
            texts.append(((px, py - 8), f"{sigma:.3g}", SIGMA, font, "mb"))
            free = px + half
    for text in texts:
        draw.text(*text, stroke_width=3, stroke_fill=BAR)
    draw.line((LEFT, bottom, WIDTH - RIGHT, bottom), GRID)
    title = f"{name or CUSTOM}: {steps} steps cost {total:.2f} full-size steps"
    draw.text((WIDTH / 2, 10), title, INK, ImageFont.load_default(18), "mt")
    caption = "cost of each step (bar width), size (height), sigma (line)"
    draw.text((WIDTH / 2, PLOT_HEIGHT - 24), caption, INK, font, "mm")

    def row(number: int, values: list[str], colour: str) -> None:
        y = PLOT_HEIGHT + ROW * (number + 0.5)
        for value, right in zip(values, COLUMNS.values(), strict=True):
            draw.text((right, y), value, colour, font, "rm")

    size = "size in px" if len(sizes[0]) == 2 else "latent frames x px"
    row(0, [size if name == "size in px" else name for name in COLUMNS], SIZE)
    draw.line((LEFT, PLOT_HEIGHT + ROW, WIDTH - RIGHT, PLOT_HEIGHT + ROW), GRID)
    for number, i in enumerate(listed, 1):
        if i is None:
            row(number, ["..."] * len(COLUMNS), GRID)
            continue
        share = f"{100 * costs[i] / total:.0f} %"
        row(number, [f"{i + 1}", labels[i], f"{sigmas[i]:.4f}", share], INK)
    return pixels_of(image)[None]
