"""What a model is told of a picture beside its noise level: every part under its name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

PROMPT = ("context", "pooled", "mask")  # what text encoders make, and prepared data holds


@dataclass(frozen=True)
class Conditioning:
    """Of a batch of pictures; a part that a family doesn't have is None.

    context: the prompt's tokens (B, T, C). pooled: the prompt in one vector (B, P). mask: (B, T),
    true where a token counts. guidance: embedded guidance (B,). size: the finished picture's
    (height, width) in pixels (B, 2), which stays on the CPU: who wants it as numbers need not wait
    for a graphics card.
    """

    context: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None
    size: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every part passed through a function."""
        return replace(self, **{name: change(part) for name, part in self.parts.items()})

    def expand(self, count: int) -> Self:
        """A batch of one picture as one of `count` of them."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def prompted(self, other: "Conditioning") -> Self:
        """The same pictures with the prompts of another batch."""
        return replace(self, **{name: getattr(other, name) for name in PROMPT})


def joined(batches: Iterable[Conditioning]) -> Conditioning:
    """Batches with the same parts as one."""
    named = [batch.parts for batch in batches]
    return Conditioning(**{name: torch.cat([parts[name] for parts in named]) for name in named[0]})


def as_number(part: Tensor) -> Tensor:
    """In single precision, unless it only says yes or no."""
    return part.float() if part.is_floating_point() else part
