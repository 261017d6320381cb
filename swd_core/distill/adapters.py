"""LoRA adapters that share one copy of the base weights: student, fake score and teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Switch:
    """The adapter that all layers of a model have active now; None is the bare teacher."""

    active: str | None = None


class SwitchedLinear(nn.Module):
    """A frozen linear layer with several named low-rank updates, at most one of them active."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...], rank: int, switch: Switch):
        super().__init__()
        self.switch = switch
        self.base = base.requires_grad_(False)
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        device = base.weight.device
        for name in names:
            # peft's "gaussian", as published; of the CPU, as two kinds of cards draw two of them.
            drawn = torch.normal(0.0, 1 / rank, (rank, base.in_features))
            self.down[name] = nn.Parameter(drawn.to(device))
            self.up[name] = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def active(self) -> str | None:
        return self.switch.active

    def forward(self, x: Tensor) -> Tensor:
        # As a matrix: with a batch of slices, such as attention's two streams, torch copies the
        # weights for every picture.
        rows = x.reshape(-1, x.shape[-1])
        if torch.compiler.is_compiling():
            y = self._in_sums(rows)
        else:
            y = self.base(rows)
            if self.active is not None:
                y.addmm_(*self._update(rows, y.dtype))
        return y.view(*x.shape[:-1], -1)

    def _update(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is the active update."""
        down, up = self.down[self.active].to(dtype), self.up[self.active].to(dtype)
        return rows.to(dtype) @ down.T, up.T

    def _in_sums(self, rows: Tensor) -> Tensor:
        """Plain products and their sum: compiled code adds while it does what comes next."""
        y = rows @ self.base.weight.T
        if self.active is not None:
            narrow, up = self._update(rows, y.dtype)
            y = y + narrow @ up
        return y if self.base.bias is None else y + self.base.bias


def switch_of(model: nn.Module) -> Switch | None:
    """The switch of `model` or of the model that it is a part of; None if it has no adapters."""
    layers = (m for m in model.modules() if isinstance(m, SwitchedLinear))
    first = next(layers, None)
    return None if first is None else first.switch


def switched_layers(model: nn.Module) -> dict[str, SwitchedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SwitchedLinear)}


def add_adapters(
    model: nn.Module, targets: tuple[str, ...], names: tuple[str, ...], rank: int
) -> None:
    """Freezes `model` and gives each linear layer whose name ends in one of `targets` the adapters.

    Raises:
        ValueError: if no layer matches.
    """
    model.requires_grad_(False)
    chosen = [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(targets)
    ]
    if not chosen:
        raise ValueError(f"No linear layer of the model ends in {', '.join(targets)}.")
    switch = switch_of(model) or Switch()
    for name, layer in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, SwitchedLinear(layer, names, rank, switch))


def active_adapter(module: nn.Module) -> str | None:
    """The adapter that `module` runs with now."""
    switch = switch_of(module)
    return None if switch is None else switch.active


@contextmanager
def adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Runs the body with the adapter `name` active in all of the model; None is the teacher."""
    switch = switch_of(model) or Switch()
    before, switch.active = switch.active, name
    try:
        yield
    finally:
        switch.active = before


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable tensors of one adapter."""
    return [p for m in switched_layers(model).values() for p in (m.down[name], m.up[name])]


def adapter_state(model: nn.Module, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """layer name -> (down (rank, in), up (out, rank))."""
    return {
        n: (m.down[name].detach(), m.up[name].detach()) for n, m in switched_layers(model).items()
    }


@contextmanager
def frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Runs the body without gradients for `parameters`."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
