"""Drafts as pictures: decoded, laid out on a sheet, and told to the page."""

import math
import uuid
from collections.abc import Sequence
from typing import Any

import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ..swd_core.contact import GAP, HEADING, LEAST, MOST, Sheet, contact_sheet
from ..swd_core.drafts import Drafts
from ..swd_core.pictures import picture_of, pixels_of
from ._host import io, ui
from .shown import LATELY

VIDEO_SIDES = (256, 192, LEAST)  # of a video on a sheet: the first that MOST_PIXELS has room for
MOST_PIXELS = 48_000_000  # of all frames of a sheet: a file of about 5 MB
MOST_HIGH = 16383  # a WebP's side
LATENT_FRAME = 0.25  # seconds: four pictures at 16 a second (Wan), six at 24 (Mochi)


def rough_images(drafts: Drafts, latent_format: Any) -> Tensor:
    """IMAGE (N, H, W, 3) of the latents by the host's linear map, for where there is no VAE.

    A video has a picture for each of its latent frames.
    """
    factors = latent_format.latent_rgb_factors
    x0 = drafts.scales[-1].float().cpu()
    if x0.ndim == 5:
        x0 = x0.movedim(2, 1).flatten(0, 1)  # BCTHW -> (B T)CHW
    if factors is None:
        grey = x0.mean(1)
        low, high = grey.amin((-2, -1), keepdim=True), grey.amax((-2, -1), keepdim=True)
        return ((grey - low) / (high - low).clamp(min=1e-6))[..., None].expand(*grey.shape, 3)
    more = (getattr(latent_format, f"latent_rgb_factors_{k}", None) for k in ("bias", "reshape"))
    previewer = latent_preview.Latent2RGBPreviewer(factors, *(m for m in more if m is not None))
    return torch.stack([pixels_of(previewer.decode_latent_to_preview(row[None])) for row in x0])


def decode(drafts: Drafts, vae: Any, model: Any, batch: int) -> Tensor:
    """IMAGE (N, H, W, 3) of the drafts; a video's frames follow one another.

    Of a video a VAE of pictures gets the first frame: newer hosts see to that themselves.
    """
    if vae is None:
        return rough_images(drafts, model.get_model_object("latent_format"))
    samples = [part.samples for part in drafts.batches(batch)]
    if getattr(vae, "latent_dim", None) == 2 and drafts.samples.ndim == 5:
        samples = [part[:, :, 0] for part in samples]
    images = torch.cat([vae.decode(part) for part in samples])
    return images.reshape(-1, *images.shape[-3:])


def sheet_of(drafts: Drafts, pictures: Sequence[Image.Image], most: int = MOST) -> Sheet:
    """Their contact sheet, a row for each prompt where they are of several."""
    prompts = [draft.prompt for draft in drafts.images]
    return contact_sheet(pictures, drafts.labels(), headings=prompts, most=most)


def play(drafts: Drafts, videos: Tensor) -> tuple[Sheet, Tensor, Tensor]:
    """The sheet of pictures or videos (N, F, H, W, 3), its own frames (f, H, W, 3), and the videos
    with as many: where even small ones are too many pixels, each second, third, ... frame.
    """
    count, firsts = videos.shape[1], [picture_of(video[0]) for video in videos]
    for side in VIDEO_SIDES if count > 1 else (MOST,):
        sheet = sheet_of(drafts, firsts, side)
        pixels = sheet.picture.width * sheet.picture.height
        if count * pixels <= MOST_PIXELS:
            break
    skipped = math.ceil(count * pixels / MOST_PIXELS)
    if sheet.picture.height > MOST_HIGH:  # very many prompts: they stand still
        skipped = count
    videos = videos[:, ::skipped]
    frames = torch.empty(videos.shape[1], sheet.picture.height, sheet.picture.width, 3)
    frames[0] = pixels_of(sheet.picture)
    for frame in range(1, len(frames)):
        for k, video in enumerate(videos):
            sheet.put(k, picture_of(video[frame]))
        frames[frame] = pixels_of(sheet.picture)
    return sheet, frames, videos


def saved(videos: Tensor, seconds: float, cls: Any) -> list[dict[str, str]]:
    """A temporary file of each (N, F, H, W, 3), named for the page: an animation that lasts so
    long, or of one frame a picture."""
    if videos.shape[1] == 1:
        return ui.PreviewImage(videos[:, 0], cls=cls).as_dict()["images"]
    return [
        ui.ImageSaveHelper.save_animated_webp(
            video,
            f"ComfyUI_temp_{uuid.uuid4().hex[:8]}",
            io.FolderType.temp,
            cls,
            fps=len(video) / seconds,
            lossless=False,
            quality=75,
            method=0,
        )
        for video in videos
    ]


def show(
    drafts: Drafts, images: Tensor, cls: Any, share: float | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """The sheet as IMAGE (F, H, W, 3), and what the node shows and the page picks from.

    Of videos it has several frames: they play in step, for as long as the finished ones will.

    Args:
        share: what each has cost of a full run, where that is known.
    """
    sheet, frames, videos = play(drafts, images.detach().unflatten(0, (len(drafts.images), -1)))
    moving = len(frames) > 1
    seconds = LATENT_FRAME * drafts.latent.shape[2] if moving else 0
    LATELY.add(drafts.sheet, drafts)
    several = len({draft.prompt for draft in drafts.images}) > 1
    cells = {
        "columns": sheet.columns,
        "rows": sheet.rows,
        "count": sheet.count,
        "sheet": drafts.sheet,
        "seed": drafts.images[0].seed,
        "places": sheet.places,
        "headings": [d.prompt for d in drafts.images] if sheet.head else [],
        "head": (sheet.head + GAP // 2) / sheet.picture.height,  # to the picture
        "letters": HEADING / sheet.picture.width,
        "labels": [
            f"{draft.prompt} · {label}" if several else label
            for draft, label in zip(drafts.images, drafts.labels(), strict=True)
        ],
        "share": share,
        "size": list(videos.shape[3:1:-1]),
        "drafts": saved(videos, seconds, cls),
        "moving": moving,
    }
    shown = {"images": saved(frames[None], seconds, cls), "animated": (moving,)}
    return frames, {**shown, "swd_sheet": [cells]}
