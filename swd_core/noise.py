"""Noise addressed by (seed, image, step): the same numbers whatever else is in the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOISE_VERSION = 1
_MASK = (1 << 64) - 1
LEAST_SEED, MAX_SEED = -(1 << 63), _MASK


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele et al., 2014): a bijection that scatters its input."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def plain_seed(seed: int) -> int:
    """The seed in 0..2^64-1 as torch takes it, and so ComfyUI: -1 is 2^64-1, -2 one less.

    Raises:
        ValueError: if it is outside -2^63..2^64-1.
    """
    if not LEAST_SEED <= seed <= MAX_SEED:
        raise ValueError(f"The seed {seed} is outside {LEAST_SEED}..{MAX_SEED}.")
    return seed & _MASK


def stream_seed(seed: int, index: int, step: int) -> int:
    """The generator's seed for one image at one step; changing this rule changes NOISE_VERSION.

    Raises:
        ValueError: if the seed is none (`plain_seed`) or index or step is negative.
    """
    seed = plain_seed(seed)
    if index < 0 or step < 0:
        raise ValueError(f"Image index {index} and step {step} must not be negative.")
    return _mix(_mix(_mix(seed) ^ index) ^ step)


def draw_noise(seed: int, indices: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for one step.

    Args:
        seed: the run's seed, 0..2^64-1 (`plain_seed`). indices: number of each image in the batch.
        step: 0 for the initial noise. shape: of one image, (C, H, W) or (C, T, H, W).

    Returns:
        float32 CPU tensor (len(indices), *shape); row k depends on indices[k] alone.
    """
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed(stream_seed(seed, index, step))
        rows.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(rows)


@dataclass(frozen=True)
class SeededNoise:
    """`noise(step, shape)` for a batch: what `sample_scalewise` draws from.

    shape is the whole batch's, (B, C, H, W) or (B, C, T, H, W), with B = len(indices).
    """

    seed: int
    indices: tuple[int, ...]

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        if shape[0] != len(self.indices):
            raise ValueError(
                f"A batch of {shape[0]} needs as many image indices, not {len(self.indices)}."
            )
        return draw_noise(self.seed, self.indices, step, shape[1:])

    def seeds(self, step: int) -> list[int]:
        """Each image's own generator seed, for noise that is no tensor of one shape."""
        return [stream_seed(self.seed, index, step) for index in self.indices]
