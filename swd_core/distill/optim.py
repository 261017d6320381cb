"""Muon for matrices and convolutions, AdamW for the rest."""

import torch
from torch import Tensor, nn

from .precision import has_fast_bfloat16


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix (Jordan et al., 2024).

    torch.optim.Muon does the same for matrices only, and always in bfloat16, which is hopeless on
    processors without bfloat16 instructions; the autoencoder has convolutions.
    """
    fast = torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32
    x = (matrix / matrix.norm().clamp(min=1e-7)).to(fast)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (https://kellerjordan.github.io/posts/muon/).

    Args:
        lr: each element moves by 0.4 lr (RMS), twice AdamW's typical step, so AdamW's rates fit.
    """

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                update = orthogonalise(update) * (0.4 * max(update.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"])


class Optimisers:
    """Muon and AdamW behind one `step`, `zero_grad`, `set_lr` and state."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0, adamw_only=()):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim >= 2 and not any(s in n for s in adamw_only)]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0))
        self.lr = lr

    def set_lr(self, factor: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * factor

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
