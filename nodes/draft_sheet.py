"""Drafts as pictures: decoded, laid out on a sheet, and told to the page."""

from collections.abc import Sequence
from typing import Any

import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ..swd_core.contact import Sheet, contact_sheet
from ..swd_core.drafts import Drafts
from ..swd_core.pictures import picture_of, pixels_of
from ._host import ui
from .shown import LATELY


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


def sheet_of(drafts: Drafts, pictures: Sequence[Image.Image]) -> Sheet:
    """Their contact sheet, a row for each prompt where they are of several."""
    prompts = [draft.prompt for draft in drafts.images]
    return contact_sheet(pictures, drafts.labels(), headings=prompts)


def show(
    drafts: Drafts, images: Tensor, cls: Any, share: float | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """The sheet as IMAGE (1, H, W, 3), and what the node shows and the page picks from.

    Args:
        share: what each has cost of a full run, where that is known.
    """
    firsts = images[:: images.shape[0] // len(drafts.images)]
    sheet = sheet_of(drafts, [picture_of(pixels) for pixels in firsts])
    image = pixels_of(sheet.picture)[None]
    LATELY.add(drafts)
    cells = {
        "columns": sheet.columns,
        "rows": sheet.rows,
        "count": sheet.count,
        "sheet": drafts.sheet,
        "seed": drafts.images[0].seed,
        "places": sheet.places,
        "labels": [
            " · ".join(filter(None, (draft.prompt, label)))
            for draft, label in zip(drafts.images, drafts.labels(), strict=True)
        ],
        "share": share,
        "size": list(firsts.shape[2:0:-1]),
        "drafts": ui.PreviewImage(firsts.detach(), cls=cls).as_dict()["images"],
    }
    return image, {**ui.PreviewImage(image, cls=cls).as_dict(), "swd_sheet": [cells]}
