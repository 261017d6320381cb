"""The three losses of scale-wise distillation, as pure functions (arXiv 2503.16397, section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

HUBER_C = 1e-3


def mmd_linear(real: Tensor, fake: Tensor, c: float = HUBER_C) -> Tensor:
    """Patch loss with a linear kernel: distance between the mean tokens of real and fake pictures.

    Every channel counts by itself, as in the authors' code (yandex-research/swd, src/losses.py):
    the length of the whole difference would be the square root of D times stronger.

    Args:
        real, fake: tokens (B, N, D) of one block; the numbers of tokens may differ.
        c: width of the quadratic part of sqrt(d^2 + c^2) - c, for a channel's difference d.

    Returns:
        scalar, the mean over pictures and channels; 0 for equal means.
    """
    difference = real.float().mean(1) - fake.float().mean(1)
    return (torch.sqrt(difference.square() + c * c) - c).mean()


def mmd_rbf(real: Tensor, fake: Tensor, bandwidth: float = 100.0) -> Tensor:
    """Patch loss with a Gaussian kernel: unbiased squared MMD between two pictures' tokens.

    Args:
        real, fake: tokens (B, N, D), N at least 2.
        bandwidth: standard deviation of the kernel, in units of the tokens.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2))

    def within(a: Tensor) -> Tensor:
        n = a.shape[1]
        return (kernel(a, a).sum((1, 2)) - n) / (n * (n - 1))

    real, fake = real.float(), fake.float()
    return (within(real) + within(fake) - 2 * kernel(real, fake).mean((1, 2))).mean()


def mmd_loss(real: Tensor, fake: Tensor, kernel: str = "linear", per_batch: bool = False) -> Tensor:
    """The patch loss over each picture's tokens, or over the tokens of the whole batch at once."""
    if per_batch:
        real, fake = real.flatten(0, 1)[None], fake.flatten(0, 1)[None]
    if kernel == "linear":
        return mmd_linear(real, fake)
    if kernel == "rbf":
        return mmd_rbf(real, fake)
    raise ValueError(f"Unknown MMD kernel {kernel!r}; choose 'linear' or 'rbf'.")


def dmd_loss(x0: Tensor, real_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """Reverse KL by distribution matching (Yin et al., arXiv 2311.18828, eq. 7 and 8).

    Args:
        x0: the student's prediction (B, ...), with gradient.
        real_x0: the teacher's (guided) estimate from the re-noised x0.
        fake_x0: the fake score's estimate from the same re-noised x0.

    Returns:
        scalar whose gradient with respect to x0 is (fake_x0 - real_x0) / mean|x0 - real_x0|
        per picture, divided by the number of elements.
    """
    dims = tuple(range(1, x0.ndim))
    with torch.no_grad():
        weight = (x0 - real_x0).abs().mean(dims, keepdim=True).clamp(min=1e-6)
        target = x0 - (fake_x0 - real_x0) / weight
    return 0.5 * F.mse_loss(x0.float(), target.float())


def gan_student_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the student: softplus(-D(fake))."""
    return F.softplus(-fake_logits).mean()


def gan_head_loss(logits: Tensor, real: bool) -> Tensor:
    """A half of the discriminator head's loss: softplus(-D(real)) or softplus(D(fake))."""
    return F.softplus(-logits if real else logits).mean()
