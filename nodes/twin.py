"""The host's modules with gradients: a twin of plain torch layers around the same weights."""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..swd_core.distill.adapters import active_adapter, adapter
from . import _host


@contextmanager
def training_mode() -> Iterator[None]:
    """Tells the host to use the functions that gradients can pass, as its own training node does.

    Nothing else stays loaded meanwhile: a LoRA of another MODEL may lie merged in shared weights.
    """
    management = comfy.model_management
    management.unload_all_models()
    try:
        with _host.said_to_train():
            yield
    finally:
        gc.collect()  # the trained twin has cycles, and the memory of a graphics card
        management.soft_empty_cache()


class CastLinear(nn.Linear):
    """A linear layer whose weight may wait in another number format or on another device."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # of a slice of attention's output, torch copies the weight per picture
        bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
        return F.linear(x, self.weight.to(x.device, x.dtype), bias)


class CopyingLayerNorm(nn.LayerNorm):
    """A layer norm whose input may be changed in place afterwards, as FLUX's blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone())


PLAIN = {nn.Linear: CastLinear, nn.LayerNorm: CopyingLayerNorm}


def _alias(value: Tensor) -> Tensor:
    """The same storage as a tensor that gradients may pass; inference tensors refuse them."""
    fresh = torch.empty(0, dtype=value.dtype, device=value.device)
    return fresh.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())


def twin(module: nn.Module) -> nn.Module:
    """A frozen copy of the host's modules around the same weights, of plain torch layers.

    The host's own layers cast through shared buffers, which a backward pass can't rely on, and
    raise the interrupt in the middle of a step.
    """
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(_alias(p), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = _alias(b)
    for part in module.modules():
        # What the host hangs on its layers to stream and pin their weights.
        loading = [v for k, v in vars(part).items() if k.startswith(("_v", "_pin", "_prefetch"))]
        memo |= {id(value): None for value in loading if value is not None}
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        if isinstance(part, comfy.ops.CastWeightBiasOp):
            plain = next(
                c for c in type(part).__mro__ if not issubclass(c, comfy.ops.CastWeightBiasOp)
            )
            part.__class__ = PLAIN.get(plain, plain)
    return copied


def checkpointed(block: nn.Module, plain: Callable) -> Callable:
    """A block's forward that keeps no activations and computes them again with its adapter."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        name = active_adapter(block)

        def run(*args: Any, **kwargs: Any) -> Any:
            with adapter(block, name):
                return plain(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return forward
