"""A schedule as a picture: size and sigma of each step against what it costs."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..swd_core.schedule import ScaleSchedule

WIDTH, HEIGHT = 768, 432
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 48, 56
INK, GRID, SIZE, SIGMA = "#e8e8e8", "#444a52", "#5ab0ff", "#ffb35a"


def schedule_plot(
    schedule: ScaleSchedule, height: int, width: int, multiple: int, sigmas: list[float]
) -> Tensor:
    """IMAGE (1, H, W, 3): a bar per step, as wide as its cost, as high as its size; sigmas."""
    costs = schedule.step_costs(height, width, multiple)
    sizes = schedule.sizes(height, width, multiple)
    image = Image.new("RGB", (WIDTH, HEIGHT), "#1e2227")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    bottom, total = HEIGHT - BOTTOM, sum(costs)
    x, points = float(LEFT), []
    for cost, (h, w), sigma in zip(costs, sizes, sigmas, strict=False):
        wide = (WIDTH - LEFT - RIGHT) * cost / total
        high = (bottom - TOP) * (h * w / (height * width)) ** 0.5
        draw.rectangle((x + 1, bottom - high, x + wide - 1, bottom), outline=SIZE, fill="#2b4a66")
        label = f"{w * 8}x{h * 8}"
        if draw.textlength(label, font) < wide - 4:
            draw.text((x + wide / 2, bottom - high / 2), label, INK, font, "mm")
        points.append((x + wide / 2, bottom - (bottom - TOP) * sigma / sigmas[0]))
        x += wide
    if len(points) > 1:
        draw.line(points, SIGMA, 2)
    for (px, py), sigma in zip(points, sigmas, strict=False):
        draw.ellipse((px - 4, py - 4, px + 4, py + 4), SIGMA)
        draw.text((px, py - 8), f"{sigma:.3g}", SIGMA, font, "mb")
    draw.line((LEFT, bottom, WIDTH - RIGHT, bottom), GRID)
    title = f"{schedule.name or 'custom'}: {schedule.steps} steps cost {total:.2f} full-size steps"
    draw.text((WIDTH / 2, 10), title, INK, ImageFont.load_default(18), "mt")
    draw.text(
        (WIDTH / 2, HEIGHT - 24),
        "cost of each step (bar width), size (height), sigma (line)",
        INK,
        font,
        "mm",
    )
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]
