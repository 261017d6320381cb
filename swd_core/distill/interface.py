"""What the trainer needs of a model and of data, and its settings."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..process import Process
from .conditioning import Conditioning
from .scalewise import Interval


class DistillModel(Protocol):
    """What the trainer needs of a model; adapters 'student' and 'fake' are already in `module`.

    Tensors come on the device it computes on; only the conditioning's size stays on the CPU.
    patch: latent cells in a row of what [train] batch_tokens counts.
    """

    module: nn.Module
    width: int
    process: Process
    patch: int

    def level(self, t: Tensor) -> Tensor:
        """The process's noise level for times 0..1."""

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """x0 from x_t with the active adapter."""

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """Tokens (B, N, width) of the watched block with the active adapter."""

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Both from one pass."""

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Both from one pass; only the features keep their gradient, the rest keeps no graph."""


class Batches(Protocol):
    """Draws training data for one interval."""

    def steps(self, rng: random.Random) -> list[Interval]:
        """The whole schedule, at one of the finished sizes that there are."""

    def draw(
        self, interval: Interval, count: int, rng: random.Random, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None, Conditioning]:
        """Real latents at the interval's size, at the size before, and their conditioning: of a
        batch of `count`, which is the same for the same `rng`, the rows `part`."""

    def unconditional(self, count: int) -> Conditioning:
        """Conditioning of the empty prompt."""


@dataclass(frozen=True)
class Shown:
    """Pictures of the training data, all of one size, that the student is compared with.

    steps: the schedule at that size. real: their latents (B, C, H, W) at the finished size.
    pictures: whether there are any; of prompts alone `real` is zeros.
    """

    captions: tuple[str, ...]
    steps: Sequence[Interval]
    real: Tensor
    text: Conditioning
    pictures: bool = True


@dataclass(frozen=True)
class DistillConfig:
    """Weights and rates; the defaults are the paper's ratios at a rate that suits small models.

    mmd, dmd, gan: weights of the student's losses, gan_head of the discriminator's. mmd_sigma and
    dmd_sigma: least and largest noise level of the patch loss, and of the other two. levels: 'grid'
    draws them from the authors' 28 noise levels, of which these are numbers 18 to 27 and 12 to 27;
    'uniform' evenly. SDXL's are timesteps, always even. clip: most length of a gradient; 0 for any.
    ema: the student that is written is an average over about 1 / (1 - ema) steps; 0 for the last.
    batch_tokens: patches in one batch of one process. accumulate: batches to one optimiser step.
    autocast: compute in bfloat16 where the device is fast at it. regression: weight of the squared
    distance to the real latent, of use only where a prompt means one picture (not in the paper).
    backward_simulation: share of batches, 0 to 1, that go on from the student's own smaller
    pictures instead of real ones (arXiv 2405.14867, section 4.5).
    """

    mmd: float = 1.0
    dmd: float = 1.0
    gan: float = 5e-3
    gan_head: float = 1e-2
    kernel: str = "linear"
    mmd_per_batch: bool = False
    mmd_sigma: tuple[float, float] = (0.0, 0.6022)
    dmd_sigma: tuple[float, float] = (0.0, 0.7904)
    guidance: float = 4.5
    fake_steps: int = 2
    lr: float = 5e-4
    lr_fake: float = 1e-3
    batch_tokens: int = 4096
    clip: float = 10.0
    ema: float = 0.995
    warmup: int = 50
    seed: int = 0
    accumulate: int = 1
    autocast: bool = False
    regression: float = 0.0
    backward_simulation: float = 0.0
    levels: str = "grid"
