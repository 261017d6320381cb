"""What a SAMPLER that wraps ours leaves of the run it is in."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

CONNECT = "Connect SwD Sampler to SamplerCustomAdvanced directly."


def wrapped_model(
    model: Callable[..., Tensor],
) -> comfy.samplers.KSamplerX0Inpaint:
    """The host's model that a wrapper's function calls; it knows noise, picture and guider.

    Raises:
        ValueError: if the wrapper doesn't show it.
    """
    waiting, seen = [model], set()
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, comfy.samplers.KSamplerX0Inpaint):
            return found
        if id(found) not in seen:
            seen.add(id(found))
            cells = getattr(found, "__closure__", None) or ()
            waiting += [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
    raise ValueError(
        "A sampler that wraps SwD Sampler hides the model in a way that scale-wise sampling can't "
        f"follow to smaller sizes. {CONNECT}"
    )


def check_wrapped(
    model: comfy.samplers.KSamplerX0Inpaint, x: Tensor, whole: bool, options: dict[str, Any]
) -> None:
    """Raises ValueError unless a wrapper hands over a run at its very beginning, as it was given.

    Args:
        x: what it begins with. whole: whether the run's noise is that of a whole one.
    """
    if options:
        raise ValueError(
            f"A sampler that wraps SwD Sampler gives it {', '.join(sorted(options))}, which "
            f"scale-wise sampling has no use for. {CONNECT}"
        )
    sampling = model.inner_model.inner_model.model_sampling
    begin = sampling.noise_scaling(model.sigmas[0], model.noise, model.latent_image, whole)
    if not torch.equal(x, begin):
        raise ValueError(
            "A sampler that wraps SwD Sampler begins in the middle of a run or changes its noise, "
            "but every scale draws its own and a run can begin at the smallest only. " + CONNECT
        )
