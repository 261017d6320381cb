"""The discriminator: a small head on the tokens of the watched block."""

import torch
from torch import nn


def discriminator_head(width: int, layers: int = 4) -> nn.Sequential:
    """MLP on mean-pooled tokens; widths fall evenly from `width` to 1."""
    widths = torch.linspace(width, 1, layers + 1).int().tolist()
    parts = [
        nn.Sequential(nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b))
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    return nn.Sequential(*parts)
