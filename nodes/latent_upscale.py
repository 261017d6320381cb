"""SwDLatentUpscale: the scale-wise upscaler on its own."""

from typing import Any

from ..swd_core.noise import MAX_SEED, draw_noise
from ..swd_core.resample import METHODS, blend_frames, downscale, pick_frames, upscale
from ..swd_core.schedule import CELL
from . import _host_latent, _host_model
from ._host import CATEGORY, io, supported
from .inputs import checked

MOST_SIDE = 16384
MOST_FRAMES = 4096
USUAL_CHANNELS = (4, 16)  # SD 1.5 and SDXL; SD3, FLUX.1 and Wan 2.1: 8 pixels a cell


def pixels_of(latent: dict[str, Any], model: Any) -> int:
    """Pixels along a side of a latent's cell: the model's, its mark, or those of its channels.

    Raises:
        ValueError: if none of them tells.
    """
    if model is not None:
        return _host_model.cell_pixels(model)
    marked, channels = latent.get("downscale_ratio_spacial"), latent["samples"].shape[1]
    if marked is None and channels not in USUAL_CHANNELS:
        raise ValueError(
            f"width and height are in pixels, but latents of {channels} channels differ in the "
            "pixels of a cell. Connect the model that this one is for, or use scale_by alone."
        )
    return marked or CELL


class SwDLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDLatentUpscale",
            display_name="SwD Latent Upscale",
            category=CATEGORY,
            description="Enlarges a clean latent as SwD does between two steps, and can add "
            "the noise of a sigma again, so that a sampler goes on from there with its own noise "
            "switched off.",
            inputs=[
                io.Latent.Input("samples", tooltip="A clean (finished) latent."),
                io.Combo.Input(
                    "upscale_method",
                    options=list(METHODS),
                    default="bicubic",
                    tooltip="bicubic is SwD's.",
                ),
                io.Float.Input(
                    "scale_by",
                    default=1.5,
                    min=0.01,
                    max=8.0,
                    step=0.05,
                    tooltip="New side relative to the old one. Used where width and height are 0.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MOST_SIDE,
                    step=8,
                    tooltip="Width of the picture in pixels; 0: by scale_by.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MOST_SIDE,
                    step=8,
                    tooltip="Height of the picture in pixels; 0: by scale_by.",
                ),
                io.Float.Input(
                    "noise_sigma",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=False,
                    tooltip="0: none. Else noise of this sigma is added afterwards; needs "
                    "the model.",
                ),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, tooltip="Of the added noise."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Says how noise is added and how large a cell is.",
                ),
                io.Int.Input(
                    "latent_frames",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    optional=True,
                    tooltip="Of a video: its latent frames afterwards, new ones blended of their "
                    "neighbours; 0: as many as it has.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The enlarged latent.")
            ],
            **supported(io.Schema, search_aliases=["upscale latent", "scale-wise", "re-noise"]),
        )

    @classmethod
    @checked()
    def execute(
        cls,
        samples: Any,
        upscale_method: str,
        scale_by: float,
        width: int,
        height: int,
        noise_sigma: float,
        seed: int,
        model: Any = None,
        latent_frames: int = 0,
    ) -> io.NodeOutput:
        if noise_sigma > 0 and model is None:
            raise ValueError(
                f"noise_sigma is {noise_sigma:g} but no model is connected: it says how noise "
                f"is added."
            )
        latent = dict(samples) if model is None else _host_latent.check_latent(samples, model)
        x = _host_latent.plain_samples(latent)
        if latent_frames and x.ndim != 5:
            raise ValueError(
                f"latent_frames is {latent_frames}, but the latent {tuple(x.shape)} is no video. "
                "Set it to 0."
            )
        multiple = 1 if model is None else _host_model.patch_multiple(model)
        cell = pixels_of(latent, model) if width or height else 1
        wanted = (
            pixels / cell if pixels else side * scale_by
            for pixels, side in zip((height, width), x.shape[-2:], strict=True)
        )
        size = tuple(max(multiple, round(side / multiple) * multiple) for side in wanted)
        shrinks = size[0] < x.shape[-2] and size[1] < x.shape[-1]
        x = downscale(x, size) if shrinks else upscale(x, size, upscale_method)
        if latent_frames:
            fewer = latent_frames < x.shape[2]
            x = pick_frames(x, latent_frames) if fewer else blend_frames(x, latent_frames)
        if noise_sigma > 0:
            noise = draw_noise(seed, _host_latent.image_indices(latent), 0, x.shape[1:]).to(x)
            x = _host_model.noised(model, x, noise, noise_sigma)
        return io.NodeOutput({**latent, "samples": x})


NODES = [SwDLatentUpscale]
