"""The tokens that leave the watched block of a model, seen from outside by a hook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import Conditioning

PATCH = 2  # latent cells in a row of what [train] batch_tokens counts, for most models


class Enough(Exception):
    """Ends a forward pass behind the watched block."""


def go_on(output: Any) -> None:
    """Leaves the block's output as it is."""


def stop(output: Any) -> None:
    """Ends the pass here."""
    raise Enough


def cut(output: Any) -> Any:
    """Ends the graph here: nothing behind the block keeps one."""
    torch.set_grad_enabled(False)
    if isinstance(output, Tensor):
        return output.detach()
    return tuple(None if part is None else part.detach() for part in output)


@contextmanager
def watch(
    block: nn.Module, tokens: Callable[[Any], Tensor], then: Callable[[Any], Any] = go_on
) -> Iterator[list[Tensor]]:
    """Collects the tokens (B, N, width) of what leaves `block`, and does `then` with it.

    Args:
        tokens: from the block's output to the picture's tokens.
        then: what it returns goes on in the output's place, unless it is None.
    """
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        seen.append(tokens(output))
        return then(output)

    handle = block.register_forward_hook(hook)
    enabled = torch.is_grad_enabled()  # `cut` turns it off
    try:
        yield seen
    finally:
        torch.set_grad_enabled(enabled)
        handle.remove()


class Watched:
    """What a `DistillModel` says of the watched block, given `predict` and where to look."""

    watched: nn.Module
    patch = PATCH

    def tokens(self, output: Any) -> Tensor:
        """The picture's tokens (B, N, width) of what `watched` returns."""
        raise NotImplementedError

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        raise NotImplementedError

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        with watch(self.watched, self.tokens, stop) as seen, suppress(Enough):
            self.predict(x, sigma, text)
        return seen[0]

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with watch(self.watched, self.tokens) as seen:
            x0 = self.predict(x, sigma, text)
        return x0, seen[0]

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with watch(self.watched, self.tokens, cut) as seen:
            x0 = self.predict(x, sigma, text)
        return x0.detach(), seen[0]
