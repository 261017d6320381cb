"""The seam to ComfyUI: the host's LATENT, its samples, channels and image numbers."""

from collections.abc import Iterator
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ._host import supported


def plain_samples(latent: Any) -> Tensor:
    """The latent's tensor (B, C, H, W) or (B, C, T, H, W).

    Raises:
        ValueError: if there is none, it is nested, of audio or empty, or its mask is.
    """
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) and not getattr(samples, "is_nested", False):
        raise ValueError(
            "The latent has no samples. Connect an Empty Latent Image or a VAE Encode node."
        )
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "Nested latents (audio with video, as of LTX-2 and MiniMax H3) can't be scaled step by "
            "step: beside a smaller video the audio would need another noise level in the same "
            "call. Use a plain latent."
        )
    # A video that LTXVSeparateAVLatent has taken from its audio is called audio, too.
    sound = latent.get("type") == "audio" and samples.ndim < 5
    if samples.ndim not in (4, 5) or sound:
        raise ValueError(
            f"A latent of {samples.ndim} dimensions {tuple(samples.shape)} can't be scaled step by "
            "step: audio, 3D shapes and nested latents (audio with video) are not supported. Use "
            "one of pictures or video."
        )
    if not samples.numel():
        raise ValueError(
            f"The latent {tuple(samples.shape)} is empty: it has no images, or no size. Connect an "
            "Empty Latent Image or a VAE Encode node."
        )
    mask = latent.get("noise_mask")
    if mask is not None and not (mask.ndim >= 2 and mask.numel()):
        raise ValueError(
            f"The latent's noise mask {tuple(mask.shape)} has no size. Connect a mask of the "
            "picture's size to Set Latent Noise Mask, or leave that node out."
        )
    return samples


def check_latent(latent: Any, model: Any) -> dict[str, Any]:
    """A copy of the latent whose samples fit the model; an empty one gets the model's channels.

    Raises:
        ValueError: if it has no samples, is nested, or holds a picture of another kind of model.
    """
    samples = plain_samples(latent)
    latent = dict(latent)
    extras = supported(
        comfy.sample.fix_empty_latent_channels,
        downscale_ratio_spacial=latent.pop("downscale_ratio_spacial", None),
        downscale_ratio_temporal=latent.pop("downscale_ratio_temporal", None),
    )
    samples = comfy.sample.fix_empty_latent_channels(model, samples, **extras)
    check_channels(samples, model)
    latent["samples"] = samples
    return latent


def framed(latents: Tensor, model: Any) -> Tensor:
    """Latents (B, C, H, W) as the MODEL has them: of some a picture is a video of one frame."""
    video = model.get_model_object("latent_format").latent_dimensions == 3
    return latents[:, :, None] if video else latents


def check_channels(samples: Tensor, model: Any) -> None:
    """Raises ValueError if a latent (B, C, ...) was made for another kind of model."""
    fitting = model.get_model_object("latent_format")
    channels, dimensions = fitting.latent_channels, fitting.latent_dimensions + 2
    if samples.ndim != dimensions:
        kinds = {3: "audio", 4: "pictures", 5: "videos"}
        raise ValueError(
            f"The latent {tuple(samples.shape)} is of {kinds.get(samples.ndim)}, and this model "
            f"makes {kinds.get(dimensions)}. Connect a latent that was made for this model."
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels, this model needs {channels}: it was made "
            "for another kind of model. Encode the picture with this model's VAE."
        )


def image_indices(latent: dict[str, Any]) -> tuple[int, ...]:
    """Number of each image in its original batch (batch_index), 0, 1, 2 ... by default.

    Raises:
        ValueError: if there are not as many as images.
    """
    count = latent["samples"].shape[0]
    indices = latent.get("batch_index")
    if indices is None:
        return tuple(range(count))
    numbers = tuple(int(i) for i in indices)
    if len(numbers) != count or min(numbers) < 0:
        raise ValueError(
            f"The latent's batch_index is {str(list(numbers)):.60}, but it holds {count} images, "
            "each of which has its number from 0. Take the latent from before the node that "
            "changed its batch."
        )
    return numbers


def indices_from_noise(noise: Tensor, seed: int, most: int = 1 << 27) -> tuple[int, ...]:
    """Recovers batch_index from the host's RandomNoise, the only trace of it that a SAMPLER sees.

    With a batch_index the host draws image after image from one generator and keeps the chosen
    ones; without, it draws the batch at once. No noise at all means images 0, 1, 2 ...

    Args:
        noise: (B, C, H, W) or (B, C, T, H, W), in the latent's precision or rounded to it.
        most: how many numbers to draw before giving up.

    Raises:
        ValueError: for any other noise, and for a batch_index out of reach.
    """
    plain = tuple(range(noise.shape[0]))
    marks = noise.flatten(1)[:, :16].float().cpu()
    halves = (torch.bfloat16, torch.float16)
    precision = next((d for d in halves if torch.equal(marks.to(d).float(), marks)), torch.float32)

    def draws(shape: tuple[int, ...]) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = torch.randn(shape, generator=generator).flatten(1)[:, :16]
            yield drawn.to(precision).float()

    if not marks.any() or torch.equal(next(draws(noise.shape)), marks):
        return plain
    found: dict[int, int] = {}
    reach = most // noise[0].numel()
    for index, mark in zip(range(reach), draws((1, *noise.shape[1:])), strict=False):
        found |= {row: index for row in plain if torch.equal(marks[row], mark[0])}
        if len(found) == len(plain):
            return tuple(found[row] for row in plain)
    raise ValueError(
        f"This is not the noise of RandomNoise with seed {seed}, or that of an image beyond number "
        f"{reach} of its batch. Every scale draws its own noise by seed and image number: connect "
        "RandomNoise, or for such a batch use SwD Sample."
    )
