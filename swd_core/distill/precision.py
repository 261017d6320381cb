"""bfloat16 where the processor is fast at it."""

import contextlib

import torch


def has_fast_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 pays off: on CUDA, and on CPUs with AVX512-BF16.

    Without those instructions a CPU emulates it and is a hundred times slower than in float32.
    """
    return torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def fast_autocast(device: torch.device | str = "cpu") -> contextlib.AbstractContextManager:
    """bfloat16 autocast where it pays off, else nothing."""
    if not has_fast_bfloat16(device):
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def single_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """No autocast, also within one."""
    if not torch.amp.is_autocast_available(device.type):  # tensors without content
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
