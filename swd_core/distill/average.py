"""Exponential moving average of weights that forgets the random start."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """EMA whose decay grows from 0 with the number of steps up to `decay`."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, 1 - now)

    return AveragedModel(model, multi_avg_fn=update)
