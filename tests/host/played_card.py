"""A graphics card that the processor plays: its tensors refuse others, and can be read back."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = torch.device("meta")  # by the name of torch's device without numbers


class OnCard(Tensor):
    """A tensor of the card, around its numbers."""

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Tensor:
        return Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=CARD
        )

    def __init__(self, numbers: Tensor):
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        moved = func is torch.ops.aten._to_copy.default and named.get("device", CARD) != CARD
        others = [t for t in tree_leaves(args) if isinstance(t, Tensor) and type(t) is not cls]
        if any(t.ndim for t in others):
            raise RuntimeError("Expected all tensors to be on the same device")
        if "device" in named:
            named["device"] = torch.device("cpu")
        found = func(*tree_map_only(cls, lambda t: t.numbers, args), **named)
        return found if moved else tree_map_only(Tensor, cls, found)
