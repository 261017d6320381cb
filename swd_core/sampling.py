"""The scale-wise sampling loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import resample
from .process import Process, mixed_noise, predicted_noise
from .transfer import sent

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[int, Sequence[int]], Tensor]
Upscale = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class ScaleState:
    """The clean latent x0 (B, C, ..., H, W) after `step` steps; step 0 has none.

    predicted: the noise that it was found in, where a run mixes that into its own.
    """

    x0: Tensor | None = None
    step: int = 0
    predicted: Tensor | None = None


def sample_scalewise(
    denoise: Denoise,
    sigmas: Sequence[float],
    sizes: Sequence[Sequence[int]],
    state: ScaleState,
    noise: Noise,
    *,
    process: Process,
    like: Tensor,
    until: int | None = None,
    upscale: Upscale = resample.upscale,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    eta: float = 0.0,
) -> ScaleState:
    """Implements algorithm 1 of arXiv 2503.16397: predict x0, upscale it, re-noise.

    Running to the end in one call or in several with the returned state in between gives the same
    bits: nothing else is carried from step to step.

    Args:
        denoise: `denoise(x_t, sigma) -> x0`, all it knows of a model.
        sigmas: noise level of each step, falling. sizes: latent (height, width) of each step,
            or (frames, height, width) of a video.
        state: where to begin; `ScaleState()` is the beginning.
        noise: `noise(step, shape)`, fresh standard normal noise for each step.
        process: the model's forward process.
        like: any tensor (B, C, ..., H, W) whose batch, channels, dtype and device the run has.
        until: stop after this many steps (all by default).
        on_step: called with (step, x_t, x0) after each model call.
        eta: share, 0 to 1, of the predicted noise where a step has the size of the one before.

    Returns:
        the state after the last step that ran; its x0 has that step's size.
    """
    x0, steps = state.x0, len(sigmas) if until is None else until
    predicted = state.predicted
    for i in range(state.step, steps):
        shape = (*like.shape[: like.ndim - len(sizes[i])], *sizes[i])
        eps = sent(noise(i, shape), like.device).to(like.dtype)
        if eta and predicted is not None and predicted.shape == shape:
            eps = mixed_noise(eps, predicted, eta)
        clean = like.new_zeros(shape) if x0 is None else upscale(x0, sizes[i])
        x_t = process.add_noise(clean, eps, sigmas[i])
        x0 = denoise(x_t, sigmas[i])
        predicted = predicted_noise(process, x_t, x0, sigmas[i]) if eta else None
        if on_step is not None:
            on_step(i, x_t, x0)
    return ScaleState(x0, max(state.step, steps), predicted)
