"""Which power spectrum a model's latents have: measured ones of the user's, published ones."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths

from ..swd_core.files import read_json, write_text
from ..swd_core.latent_law import PUBLISHED, LatentLaw
from . import _host_model
from .levels import latent_kind

KEPT_FILE = "swd_spectra.json"
# Of the host's latent formats, the VAE whose latents they are.
_VAES = {"Flux": "FLUX.1", "Wan21": "Wan 2.1", "scenes": "scenes"}


def spectrum_key(model: Any) -> str:
    """What a MODEL's latents are called by the host: models that share a VAE share it.

    The embedded model's are called by its family: it has SD3's format with a VAE of its own.
    """
    family = _host_model.model_family(model)
    return family if family in PUBLISHED else latent_kind(model)


def published_law(key: str) -> LatentLaw | None:
    """The one that comes with this pack for such latents, if any does."""
    return PUBLISHED.get(_VAES.get(key, ""))


def kept_file() -> Path:
    return Path(folder_paths.get_user_directory()) / KEPT_FILE


def kept_laws() -> dict[str, LatentLaw]:
    """The user's own, by `spectrum_key`.

    Raises:
        ValueError: if their file is there and can't be read.
    """
    path = kept_file()
    if not os.path.lexists(path):
        return {}
    try:
        return {str(key): LatentLaw(**entry) for key, entry in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The measured spectra in {path} can't be read ({error}). Mend the file, or move it "
            "away and measure again with SwD Spectrum."
        ) from error


def keep_law(key: str, law: LatentLaw) -> str:
    """Adds a measured law to the user's, in place of an older one of that name.

    Returns:
        what an artist is told of it.

    Raises:
        ValueError: if the file of the others can't be read. OSError: if it can't be written.
    """
    before = kept_laws()
    text = json.dumps({k: asdict(one) for k, one in {**before, key: law}.items()}, indent=2)
    write_text(kept_file(), text + "\n")
    instead = ""
    if key in before:
        instead = ", in place of the one measured before"
    elif published := published_law(key):
        instead = (
            f", in place of the one that comes with this pack ({published.source}): take it out of "
            f"{KEPT_FILE} in ComfyUI's user folder to go back"
        )
    return f"kept for models with {key} latents{instead}"


def law_of(model: Any) -> tuple[LatentLaw, str]:
    """The spectrum to grow a MODEL by, and whose it is, said to an artist."""
    key = spectrum_key(model)
    own = kept_laws().get(key)
    if own is not None:
        return own, f"spectrum: {own.vae or key}, {own.source or 'measured'}"
    published = published_law(key)
    if published is not None:
        return published, f"spectrum: {published.vae}'s VAE, {published.source}"
    video = model.get_model_object("latent_format").latent_dimensions == 3
    near = PUBLISHED["Wan 2.1" if video else "FLUX.1"]
    return near, (
        f"spectrum: none is known of this model's VAE ({key}), so that of {near.vae}'s is used "
        f"({near.source}); SwD Spectrum measures its own"
    )
