"""SwDScaleStrip: every scale of a run side by side, or as frames of one size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..swd_core.resample import pick_frames
from ._host import CATEGORY, io, supported
from .inputs import checked

GREY = 224 / 255
RATES = (4, 6)  # pictures to a latent frame after the first: Wan's (LTX's 8 among them), Mochi's


def one_video(scales: list[Tensor]) -> list[Tensor]:
    """The scales of a video that grows in time, each with as many pictures as the last.

    Raises:
        ValueError: if they can't be of one video: a video VAE makes 1, 5, 9, ... pictures of it.
    """
    counts = [s.shape[0] for s in scales]
    videos = any(all(count % rate == 1 for count in counts) for rate in RATES)
    if counts != sorted(counts) or not videos:
        raise ValueError(
            f"The scales hold {', '.join(map(str, counts))} images; each must hold as many as the "
            "others, or be the same single video. Connect the decoded scales of one Finish SwD "
            "Drafts, for a video with one draft picked."
        )
    return [pick_frames(s, counts[-1], 0) for s in scales]


def strips(scales: list[Tensor], gap: int) -> Tensor:
    """IMAGE (B, H, W, 3): every scale of image k side by side at true relative size."""
    high = max(s.shape[1] for s in scales) + 2 * gap
    wide = sum(s.shape[2] for s in scales) + gap * (len(scales) + 1)
    page = torch.full((scales[0].shape[0], high, wide, 3), GREY)
    x = gap
    for scale in scales:
        _, h, w, _ = scale.shape
        page[:, high - gap - h : high - gap, x : x + w] = scale[..., :3]
        x += w + gap
    return page


class SwDScaleStrip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDScaleStrip",
            display_name="SwD Scale Strip",
            category=CATEGORY,
            description="Lays what every scale predicted side by side at true relative size, and "
            "gives the same scales as frames of one size for a time-lapse.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The decoded scales of Finish SwD Drafts (its list output)."
                ),
                io.Int.Input(
                    "gap", default=8, min=0, max=256, tooltip="Pixels between the scales."
                ),
            ],
            outputs=[
                io.Image.Output("strip", display_name="strip", tooltip="One strip for each image."),
                io.Image.Output(
                    "frames",
                    display_name="frames",
                    tooltip="Image by image, its scales in full size; a video scale by scale.",
                ),
            ],
            is_input_list=True,
            **supported(io.Schema, search_aliases=["time-lapse", "steps", "compare scales", "SwD"]),
        )

    @classmethod
    @checked()
    def execute(cls, images: list[Any], gap: list[int]) -> io.NodeOutput:
        video = len({s.shape[0] for s in images}) != 1
        if video:
            images = one_video(images)
        height, width = images[-1].shape[1:3]
        scales = [s[..., :3].float().cpu() for s in images]
        same = [
            F.interpolate(s.movedim(-1, 1), (height, width), mode="nearest-exact").movedim(1, -1)
            for s in scales
        ]
        # Image by image, each through its scales; a video as a whole, scale by scale.
        frames = torch.cat(same) if video else torch.stack(same, 1).flatten(0, 1)
        return io.NodeOutput(strips(scales, gap[0]), frames)


NODES = [SwDScaleStrip]
