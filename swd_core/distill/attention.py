"""Attention whose gradient a processor is quick at."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW = 512  # tokens up to which the whole matrix of weights is small beside a block's activations


class WrittenOut(TorchFunctionMode):
    """Replaces `scaled_dot_product_attention` where it is to be differentiated.

    torch's kernel for CPUs computes the gradient several times slower than matrix products do.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        options = kwargs or {}
        if func is F.scaled_dot_product_attention and torch.is_grad_enabled():
            named = [options[n] for n in ("query", "key", "value") if n in options]
            q, k, v, *more = (*args, *named)
            others = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
            unusual = more or any(options.get(n) not in (None, 0, False) for n in others)
            if not unusual and max(q.shape[-2], k.shape[-2]) <= FEW:
                return attend(q, k, v)
        return func(*args, **options)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, N, D)."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def quick_attention(device: torch.device) -> AbstractContextManager:
    """Runs the body with the attention that `device` is quick at."""
    return WrittenOut() if device.type == "cpu" else nullcontext()
