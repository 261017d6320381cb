"""How good pictures of scenes are, where the truth about them is known.

Features are those of `SceneClassifier`; everything is measured against real pictures that nothing
was trained on, and beside what other real pictures get.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..scenes.catalogue import Scene
from ..spectrum import top_octave_ratio
from .classifier import Labels, SceneClassifier

NEIGHBOURS = 5


@dataclass(frozen=True)
class Interval:
    """A value and the bounds within which it lies with a probability of 95 %."""

    value: float
    low: float
    high: float

    def rounded(self) -> list[float]:
        """Value and bounds to five digits, as files keep them."""
        return [float(f"{number:.5g}") for number in (self.value, self.low, self.high)]


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, rounds: int = 200, seed: int = 0
) -> Interval:
    """A statistic of `count` pictures, given by their numbers (N,), and its percentile interval.

    The interval is moved so that the mean of the drawn statistics is the value: drawing pictures
    more than once makes a set less varied, which shifts the Fréchet distance.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.tensor(
        [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(rounds)]
    )
    value = statistic(torch.arange(count))
    low, high = (drawn.quantile(torch.tensor([0.025, 0.975])) - drawn.mean() + value).tolist()
    return Interval(value, low, high)


@torch.inference_mode()
def examined(model: SceneClassifier, pictures: Tensor) -> tuple[Labels, Tensor]:
    """The classifier's answers about uint8 pictures (N, 3, H, W), and their features (N, D).

    Both come back on the CPU, whatever device the classifier is on.
    """
    answers, features = [], []
    for part in pictures.split(64):
        x = part.to(model.device).float() / 255
        answers.append(model.answers(x).to("cpu"))
        features.append(model.features(x).cpu())
    names = ("things", "count", "place", "time")
    whole = Labels(*(torch.cat([getattr(a, name) for a in answers]) for name in names))
    return whole, torch.cat(features)


def prompt_accuracy(answers: Labels, scenes: Sequence[Scene]) -> dict[str, Interval]:
    """Share of pictures with everything as prompted, and of each part alone."""
    right = answers.right(Labels.of(scenes))
    return {part: mean(found) for part, found in right.items()}


def mean(values: Tensor) -> Interval:
    """The mean of (N,); of truths it is a share, and so are its bounds."""
    found = bootstrap(lambda chosen: float(values[chosen].float().mean()), len(values))
    if values.dtype != torch.bool:
        return found
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    x = features.double()
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), Heusel et al., arXiv 1706.08500. The trace of the
    root is the sum of the roots of the eigenvalues of C1^1/2 C2 C1^1/2, which is symmetric.
    """
    (m1, c1), (m2, c2) = moments(features), moments(reference)
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross)


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Distance (N,) of each of (N, D) to its `neighbours`-th nearest other."""
    parts = [torch.cdist(part, features) for part in features.split(512)]
    return torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in parts])


def _covered(points: Tensor, features: Tensor, radii: Tensor) -> float:
    """Share of points (M, D) that lie in the ball of one of the features (N, D)."""
    inside = [(torch.cdist(p, features) <= radii).any(1) for p in points.split(512)]
    return float(torch.cat(inside).float().mean())


def precision_recall(
    features: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """How many of the pictures are like real ones, and how many of the real ones they reach.

    Kynkäänniemi et al., arXiv 1904.06991, on features (N, D) and (M, D).
    """
    features, reference = features.float(), reference.float()
    precision = _covered(features, reference, _radii(reference, neighbours))
    return precision, _covered(reference, features, _radii(features, neighbours))


def spread(groups: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Variety within a prompt against that of real pictures of the same scene; 1 is right.

    Args:
        groups, reference: features (K, D) of the pictures of each prompt; K may differ.

    Returns:
        root of the variance within the prompts over that within the real ones.
    """

    def within(parts: Sequence[Tensor]) -> float:
        return float(torch.stack([part.var(0).sum() for part in parts]).mean())

    return (within(groups) / within(reference)) ** 0.5


def top_octave(pictures: Tensor, reference: Tensor) -> float:
    """Strength of the finest detail of uint8 pictures (N, 3, H, W) against real ones."""
    grey = (x.float().mean(1, keepdim=True) / 255 for x in (pictures, reference))
    return top_octave_ratio(*grey)


def nearest(features: Tensor, training: Tensor) -> Tensor:
    """The number (N,) of the training picture (M, D) nearest to each of (N, D)."""
    return torch.cdist(features.float(), training.float()).argmin(1)
