"""What a model is told of a picture beside its noise level: every part under its name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from ..transfer import picked, sent

PROMPT = ("context", "pooled", "mask")  # what text encoders make, and prepared data holds
ON_CPU = ("mask", "size")  # what is read as numbers


@dataclass(frozen=True)
class Conditioning:
    """Of a batch of pictures; a part that a family doesn't have is None.

    context: the prompt's tokens (B, T, C). pooled: the prompt in one vector (B, P). mask: (B, T),
    true for the first tokens of a prompt, those that count. guidance: embedded guidance (B,). size:
    the finished picture's (height, width) in pixels (B, 2). Mask and size stay on the CPU: who
    wants them as numbers need not wait for a graphics card.
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

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each prompt count."""
        if self.mask is None:
            return [self.context.shape[1]] * len(self.context)
        return self.mask.sum(1).clamp(min=1).tolist()

    def trimmed(self) -> Self:
        """The same up to the last token that counts; without a mask where all of them then do."""
        lengths = self.lengths
        longest = max(lengths)
        mask = None if min(lengths) == longest else self.mask[:, :longest]
        return replace(self, context=self.context[:, :longest], mask=mask)

    def rows(self, chosen: list[int]) -> Self:
        """Some pictures of the batch."""
        return self.map(lambda part: picked(part, chosen))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every part passed through a function."""
        return replace(self, **{name: change(part) for name, part in self.parts.items()})

    def sent(self, device: torch.device) -> Self:
        """The same where it is computed with; see `transfer.sent`."""
        parts = {name: part for name, part in self.parts.items() if name not in ON_CPU}
        return replace(self, **{name: sent(part, device) for name, part in parts.items()})

    def expand(self, count: int) -> Self:
        """A batch of one picture as one of `count` of them."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def prompted(self, other: "Conditioning") -> Self:
        """The same pictures with the prompts of another batch."""
        return replace(self, **{name: getattr(other, name) for name in PROMPT})


def with_mask(prompts: list[Tensor], length: int) -> Conditioning:
    """Prompts of different numbers of tokens (T, C) as one batch, each `length` long.

    Raises:
        ValueError: if one is longer, or has none.
    """
    most, least = max(map(len, prompts)), min(map(len, prompts))
    if most > length or not least:
        raise ValueError(f"Prompts of {least} to {most} tokens don't fit into {length}.")
    context = torch.zeros(
        len(prompts), length, prompts[0].shape[1], dtype=prompts[0].dtype, device=prompts[0].device
    )
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for i, tokens in enumerate(prompts):
        context[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = True
    return Conditioning(context, mask=mask)


def masked(text: Conditioning) -> Conditioning:
    """The same with a mask; where it had none, all its tokens count."""
    if text.mask is not None:
        return text
    return replace(text, mask=torch.ones(text.context.shape[:2], dtype=torch.bool))


def joined(batches: Iterable[Conditioning]) -> Conditioning:
    """Batches with the same parts as one; what fills shorter prompts up is not in the mask."""
    named = [batch.parts for batch in batches]
    longest = max(parts["context"].shape[1] for parts in named)

    def filled(name: str, part: Tensor) -> Tensor:
        if name not in ("context", "mask") or part.shape[1] == longest:
            return part
        whole = part.new_zeros(len(part), longest, *part.shape[2:])
        whole[:, : part.shape[1]] = part
        return whole

    return Conditioning(
        **{name: torch.cat([filled(name, parts[name]) for parts in named]) for name in named[0]}
    )


def as_number(part: Tensor) -> Tensor:
    """In single precision, unless it only says yes or no."""
    return part.float() if part.is_floating_point() else part
