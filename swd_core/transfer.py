"""From the CPU to where it is computed with."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; one of the CPU without waiting for what a graphics card still computes.

    Elsewhere the copy is waited for: some devices (MPS) would read what is gone by then.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def picked(tensor: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a tensor wherever it is: picked by a list they would be waited for."""
    return tensor.index_select(0, sent(torch.tensor(rows), tensor.device))
