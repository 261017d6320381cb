"""The ways to sample that are compared: which sizes and noise levels, whose weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distill import scalewise
from ..noise import SeededNoise
from ..process import FlowMatching
from ..resample import upscale
from ..sampling import Noise, ScaleState, sample_scalewise
from ..scenes.student import SceneStudent, TextConditioning

SIDE = 32
TEACHER_SHIFT = 3.0  # of the noise levels at SIDE; less at smaller sizes
SIGMAS = (1.0, 0.8959, 0.7371, 0.6022)
SIX = (1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022)
# Latent sides and noise levels of each student; the names are those of the model card. The six
# steps have the sizes that their noise levels have in the four.
STUDENTS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "scalewise4": ((16, 20, 24, 32), SIGMAS),
    "scalewise6": ((16, 16, 20, 20, 24, 32), SIX),
    "full4": ((32, 32, 32, 32), SIGMAS),
    "full2": ((32, 32), (1.0, 0.7371)),
    "jump4": ((16, 16, 16, 32), SIGMAS),
}


@dataclass(frozen=True)
class Way:
    """One row of a table: which weights, which sizes and noise levels, which guidance.

    lora: a student's folder name, or "" for the teacher. euler: Euler steps instead of re-noising.
    noise_first: noise is added before enlarging, the order that the paper warns of. eta: share of
    the predicted noise that is mixed in where a step keeps the size.
    """

    title: str
    lora: str
    sides: tuple[int, ...]
    sigmas: tuple[float, ...]
    guidance: float = 1.0
    euler: bool = False
    noise_first: bool = False
    eta: float = 0.0

    @property
    def calls(self) -> float:
        """Model calls in full-size equivalents, by tokens."""
        per_step = 2 if self.guidance != 1 else 1
        return per_step * sum(side**2 for side in self.sides) / SIDE**2


def shifted(steps: int, side: int = SIDE) -> tuple[float, ...]:
    """Evenly spaced noise levels with the shift that the teacher was trained with at a size."""
    shift = TEACHER_SHIFT * side / SIDE
    even = [1 - i / steps for i in range(steps)]
    return tuple(scalewise.shifted(u, shift) for u in even)


def teacher_way(steps: int, guidance: float, side: int = SIDE) -> Way:
    """The teacher's own way: guided Euler steps at one size."""
    title = f"teacher, {steps} steps, guidance {guidance:g}"
    return Way(title, "", (side,) * steps, shifted(steps, side), guidance, euler=True)


def euler(
    denoise: Callable[[Tensor, Tensor], Tensor], sigmas: Sequence[float], noise: Tensor
) -> Tensor:
    """Plain Euler steps of the flow, the teacher's own sampler."""
    x = noise
    for sigma, after in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        x0 = denoise(x, sigma)
        x = x0 if after == 0 else x + (after - sigma) * (x - x0) / sigma
    return x


def sample_noise_first(
    denoise: Callable[[Tensor, float], Tensor],
    sigmas: Sequence[float],
    sides: Sequence[int],
    noise: Noise,
    like: Tensor,
) -> Tensor:
    """Scale-wise steps that enlarge what is already noisy: its noise then is no longer white."""
    process, before = FlowMatching(), like.new_zeros(*like.shape[:2], sides[0], sides[0])
    for step, (sigma, side) in enumerate(zip(sigmas, sides, strict=True)):
        noisy = process.add_noise(before, noise(step, before.shape).to(before), sigma)
        before = denoise(upscale(noisy, (side, side)), sigma)
    return before


@torch.inference_mode()
def generate(
    model: SceneStudent, way: Way, text: TextConditioning, seed: int, indices: range
) -> Tensor:
    """Latents (B, 16, side, side): row k is image indices[k] of `seed`, for row k of `text`."""
    denoise = model.denoiser(text, guidance=way.guidance)
    noise = SeededNoise(seed, tuple(indices))
    shape = (len(indices), model.model.channels, way.sides[-1], way.sides[-1])
    like = torch.zeros(shape, device=model.device)
    if way.euler:
        return euler(denoise, way.sigmas, noise(0, shape).to(like))
    if way.noise_first:
        return sample_noise_first(denoise, way.sigmas, way.sides, noise, like)
    return sample_scalewise(
        denoise,
        way.sigmas,
        [(side, side) for side in way.sides],
        ScaleState(),
        noise,
        process=FlowMatching(),
        like=like,
        upscale=upscale,
        eta=way.eta,
    ).x0
