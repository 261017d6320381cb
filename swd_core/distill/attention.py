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
        if func is F.scaled_dot_product_attention and torch.is_grad_enabled():
            func = written_out
        return func(*args, **kwargs or {})


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """`scaled_dot_product_attention`, as matrix products where it is plain and has few tokens."""
    unusual = attn_mask is not None or dropout_p or is_causal or any(options.values())
    if unusual or max(query.shape[-2], key.shape[-2]) > FEW:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **options
        )
    return attend(query, key, value)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, N, D)."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def quick_attention(device: torch.device) -> AbstractContextManager:
    """Runs the body with the attention that `device` is quick at."""
    return WrittenOut() if device.type == "cpu" else nullcontext()
