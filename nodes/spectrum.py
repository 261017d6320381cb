"""SwDSpectrum: how the power of a VAE's latents falls with frequency, and which size that needs."""

import math
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..swd_core.growth import DELTAS
from ..swd_core.latent_law import FittedLaw, LatentLaw, fit_latents, picture_spectra
from ..swd_core.pictures import pixels_of
from . import _host_latent, _host_model
from ._host import CATEGORY, io, supported, ui
from .fitting import check_vae
from .inputs import checked
from .levels import levels_of
from .spectra import keep_law, spectrum_key

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 768, 512, 72, 24, 48, 56
INK, GRID, BACK, POINT, LINE = "#e8e8e8", "#444a52", "#1e2227", "#5ab0ff", "#ffb35a"


def clean_latents(model: Any, images: Any, vae: Any, latent: Any) -> Tensor:
    """Latents (B, C, H, W) or (B, C, T, H, W) in the model's own units.

    Raises:
        ValueError: if there are both or none, or they are of another kind of model.
    """
    if (images is None) == (latent is None):
        raise ValueError(
            "Connect either pictures with their VAE, or a latent of them: "
            + ("both are there." if latent is not None else "neither is there.")
        )
    if latent is not None:
        samples = _host_latent.check_latent(latent, model)["samples"]
    else:
        if vae is None:
            raise ValueError(
                "images are connected without a VAE: connect the one that makes their latents."
            )
        check_vae(vae, model)
        # One at a time: a VAE of videos takes a batch for the frames of one.
        samples = torch.cat([vae.encode(image[None, ..., :3]) for image in images])
        _host_latent.check_channels(samples, model)
    return model.model.process_latent_in(samples).float().cpu()


def law_table(found: FittedLaw, model: Any, size: tuple[int, int], sigmas: Any) -> list[str]:
    """Lines of text: the law with its errors, and the smallest safe side for every sigma.

    Args:
        size: of the finished picture in latent cells. sigmas: of the full size, or None.
    """
    law, pixels = found.law, _host_model.cell_pixels(model)
    lines = [
        f"{law.vae}: power {law.amplitude:.1f} w^-{law.exponent:.3f} at {law.cells} cells, w in "
        "cycles a picture",
        f"one standard error: amplitude {100 * found.amplitude_error:.0f} %, exponent "
        f"{found.exponent_error:.3f}, safe sides {100 * found.side_error:.1f} %; misfit "
        f"{100 * found.misfit:.0f} %; {found.pictures} pictures",
    ]
    if sigmas is None:
        return lines
    levels, cells = levels_of(model), math.prod(size)
    longest = max(size) * pixels
    lines.append("   sigma" + "".join(f"{f'{name} {d:g}':>16}" for name, d in DELTAS.items()))
    for sigma in sigmas.flatten().tolist():
        shares = (law.safe_share(levels.odds(sigma), cells, d) for d in DELTAS.values())
        lines.append(f"{sigma:>8.4f}" + "".join(f"{math.ceil(s * longest):>13} px" for s in shares))
    return lines


def spectrum_plot(latents: Tensor, law: LatentLaw) -> Tensor:
    """IMAGE (1, H, W, 3): the power at each frequency and the law, both axes logarithmic."""
    frequencies, powers = picture_spectra(latents)
    cells = math.prod(latents.shape[-2:])
    points = [
        (math.log2(float(f) * math.sqrt(cells)), math.log10(float(p)))
        for f, p in zip(frequencies, powers.mean(0), strict=True)
    ]
    (left, *_), (right, *_) = points[0], points[-1]
    low, high = math.floor(min(p for _, p in points)), math.ceil(max(p for _, p in points))
    image = Image.new("RGB", (WIDTH, HEIGHT), BACK)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / max(right - left, 1e-6),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / max(high - low, 1),
        )

    for power in range(low, high + 1):
        _, y = at(left, power)
        draw.line((LEFT, y, WIDTH - RIGHT, y), GRID)
        draw.text((LEFT - 8, y), f"{10.0**power:g}", INK, font, "rm")
    for octave in range(math.ceil(left), math.floor(right) + 1):
        x, _ = at(octave, low)
        draw.line((x, TOP, x, HEIGHT - BOTTOM), GRID)
        draw.text((x, HEIGHT - BOTTOM + 8), f"{2**octave:g}", INK, font, "mt")
    for point in points:
        x, y = at(*point)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), POINT)
    ends = [
        at(x, math.log10(law.amplitude * cells / law.cells * 2 ** (-law.exponent * x)))
        for x in (left, right)
    ]
    draw.line(ends, LINE, 2)
    draw.text((WIDTH / 2, 12), f"{law.vae}: measured, and the law", INK, font, "mt")
    draw.text((WIDTH / 2, HEIGHT - 18), "cycles a picture; power (noise: 1)", INK, font, "mm")
    return pixels_of(image)[None]


class SwDSpectrum(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDSpectrum",
            display_name="SwD Spectrum",
            category=CATEGORY,
            description="Measures how the power of a VAE's latents falls with frequency: by that "
            "SwD Growth Schedule knows how small a picture may be at a noise level.",
            inputs=[
                io.Model.Input("model", tooltip="Whose latents they are; its units are used."),
                io.Boolean.Input(
                    "keep",
                    default=True,
                    tooltip="Keeps the result in ComfyUI's user folder: from then on SwD Growth "
                    "Schedule goes by it, for every model with such latents.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="8 pictures or more of one size, better 32, as different as what you "
                    "make. Needs the VAE.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Makes latents of the images."),
                io.Latent.Input(
                    "latent", optional=True, tooltip="In place of images: their latents."
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels to show the smallest safe size for.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "table", display_name="table", tooltip="The law, its errors, safe sizes."
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Power against frequency, and the law."
                ),
            ],
            is_output_node=True,
            **supported(io.Schema, search_aliases=["power spectrum", "frequency", "calibrate"]),
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        keep: bool,
        images: Any = None,
        vae: Any = None,
        latent: Any = None,
        sigmas: Any = None,
    ) -> io.NodeOutput:
        latents = clean_latents(model, images, vae, latent)
        key = spectrum_key(model)
        found = fit_latents(latents, key, f"measured on {len(latents)} pictures")
        lines = law_table(found, model, tuple(latents.shape[-2:]), sigmas)
        if keep:
            lines.append(keep_law(key, found.law))
        table, plot = "\n".join(lines), spectrum_plot(latents, found.law)
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), **ui.PreviewText(table).as_dict()}
        return io.NodeOutput(table, plot, ui=shown)


NODES = [SwDSpectrum]
