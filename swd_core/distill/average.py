"""Exponential moving average of weights that forgets the random start."""

from copy import deepcopy

import torch
from torch import nn


class Average(nn.Module):
    """EMA of a model's parameters in `module`, whose decay grows from 0 with the steps to `decay`.

    Other than torch's AveragedModel it never waits for a graphics card: the count stays on the CPU.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = deepcopy(model)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the parameters after another step; the first ones as they are."""
        count = int(self.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        averages = [p.detach() for p in self.module.parameters()]
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], 1 - decay)
        self.n_averaged += 1
