"""Muon for matrices and convolutions, AdamW for the rest."""

import torch
from torch import Tensor, nn

from .precision import has_fast_bfloat16


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix (Jordan et al., 2024), for
    one matrix or a stack of them (..., R, C).

    torch.optim.Muon does the same for matrices only, and always in bfloat16, which is hopeless on
    processors without bfloat16 instructions; the autoencoder has convolutions.
    """
    fast = torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32
    length = matrix.norm(dim=(-2, -1), keepdim=True)
    x = (matrix / length.clamp(min=1e-7)).to(fast)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


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
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for parameters in alike.values():
                self._step(parameters, **group)

    def _step(self, parameters: list[Tensor], lr, momentum, weight_decay, **_) -> None:
        """Moves parameters of one shape, at once: a graphics card waits for few large products."""
        for p in parameters:
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        gradients = [p.grad for p in parameters]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        stack = torch.stack([update.flatten(1) for update in ahead])
        moves = orthogonalise(stack) * (0.4 * max(stack.shape[1:]) ** 0.5)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, [m.view(parameters[0].shape) for m in moves], alpha=-lr)


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
            self.parts.append(
                torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
            )
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
