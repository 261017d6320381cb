"""From the CPU to where the training computes."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for what a graphics card still computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def picked(tensor: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a tensor wherever it is: picked by a list they would be waited for."""
    return tensor.index_select(0, sent(torch.tensor(rows), tensor.device))
