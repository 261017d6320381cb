"""A MODEL as ComfyUI has loaded it, behind the trainer's interface; the MODEL stays as it is."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..swd_core.distill.adapters import active_adapter, add_adapters
from ..swd_core.distill.conditioning import Conditioning
from ..swd_core.distill.watch import Watched
from ..swd_core.families import FAMILIES, Family, existing_block
from ..swd_core.lora import LoraLayer
from ..swd_core.process import FlowMatching, VarianceExploding
from ..swd_core.transfer import picked, sent
from . import _host, _host_model
from ._host_families import held
from .trainable import adapted_layers
from .twin import CastLinear, checkpointed, twin

log = logging.getLogger(__name__)

# Of the graphics card's free memory, what activations and the optimiser may need.
RESERVE = 0.4


class HostModel(Watched):
    """A loaded MODEL; see `DistillModel`.

    Its layers are copies around the MODEL's own weights, which nothing writes to.

    Args:
        model: the MODEL, checked by `check_trainable`.
        rank: of both adapters.
        block: the block, counted from 0, whose tokens the losses compare; the paper's if None.
        guidance: embedded guidance (FLUX) of student and teacher; the fake score has 1.
        checkpointing: compute activations again in the backward pass, to save memory.

    Raises:
        ValueError: if there is no such block.
    """

    def __init__(
        self,
        model: Any,
        rank: int,
        block: int | None = None,
        guidance: float = 4.5,
        checkpointing: bool = False,
    ):
        family = FAMILIES[_host_model.model_family(model)]
        self.held, self.guidance = held(model), guidance
        self.patch = family.architecture.patch
        self.parts = adapted_layers(model)
        # Of its own, where it is computed: the MODEL's may wait outside the graphics card.
        self.sampling = _host_model.noise_table(model).to(model.load_device)
        flow = isinstance(self.sampling, comfy.model_sampling.CONST)
        self.process = FlowMatching() if flow else VarianceExploding()
        self.module = twin(model.model.diffusion_model)
        self.watched = self._block(block, family)
        self.width = self.held.width(self.module)
        add_adapters(self.module, tuple(self.parts), ("student", "fake"), rank)
        # The MODEL's class around the twin: it knows the conditioning and what a prediction means.
        self.base = copy.copy(model.model)
        self.base._modules = {
            **model.model._modules,
            "diffusion_model": self.module,
            "model_sampling": self.sampling,
        }
        self.base.current_patcher = None
        self._place(model)
        for part in self.held.blocks(self.module):
            part.forward = self.held.trainable(part.forward)
            if checkpointing:
                part.forward = checkpointed(part, part.forward)

    def _block(self, block: int | None, family: Family) -> nn.Module:
        blocks = self.held.watched(self.module)
        if self.held.middle_alone:
            return blocks[0]
        count = len(blocks)
        return blocks[existing_block(count, family.watched_block(count, block))]

    def _place(self, model: Any) -> None:
        """Weights onto the MODEL's device, in the number format that it trains in.

        Where they don't all fit, linear layers stay where they are and are sent at each use.
        """
        device, dtype = model.load_device, self.base.manual_cast_dtype or self.base.get_dtype()
        if dtype == torch.float16:  # too narrow for gradients
            bf16 = comfy.model_management.should_use_bf16(device)
            dtype = torch.bfloat16 if bf16 else torch.float32
        self.base.manual_cast_dtype = dtype
        room, waiting = room_for(model), 0
        for part in self.module.modules():
            linear = isinstance(part, CastLinear)
            # Convolutions and norms, which the host would cast at each use, are cast once.
            cast = isinstance(part, (nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))
            for p in part.parameters(recurse=False):
                size = p.numel() * p.element_size()
                if linear and size > room:
                    waiting += size
                    continue
                room -= size
                p.data = p.data.to(device, dtype if cast else p.dtype)
            for name, b in part.named_buffers(recurse=False):
                setattr(part, name, b.to(device))
        if waiting:
            log.info("%.1f GB of the teacher stay outside the graphics card", waiting / 1e9)

    def level(self, t: Tensor) -> Tensor:
        """The model's noise level for times 0..1."""
        if isinstance(self.process, FlowMatching):
            return t
        last = len(self.sampling.sigmas) - 1
        return self.sampling.sigma((t * 1000).clamp(0, last)).to(t.device)

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        return self._by_length(self._predict, x, sigma, text)

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        return self._by_length(super().features, x, sigma, text)

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        return self._by_length(super().predict_with_features, x, sigma, text)

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        return self._by_length(super().score_with_features, x, sigma, text)

    def _by_length(self, run: Callable, x: Tensor, sigma: Tensor, text: Conditioning) -> Any:
        """`run` on the pictures whose prompts have as many tokens, group by group.

        The host's models read all tokens that they are given; a mask means little to most.
        """
        text = text.trimmed()
        if text.mask is None:
            return run(x, sigma, text)
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(text.lengths):
            groups.setdefault(length, []).append(row)
        order = [row for rows in groups.values() for row in rows]
        back = torch.tensor(order).argsort().tolist()
        found = [
            run(picked(x, rows), picked(sigma, rows), text.rows(rows).trimmed())
            for rows in groups.values()
        ]
        if isinstance(found[0], Tensor):
            return picked(torch.cat(found), back)
        return tuple(picked(torch.cat(parts), back) for parts in zip(*found, strict=True))

    def _predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        height, width = (int(side) for side in text.size[0])
        guidance = 1.0 if active_adapter(self.module) == "fake" else self.guidance
        self.count = x.shape[-2] * x.shape[-1] // self.held.architecture.multiple**2
        # Of some a picture is a video of one frame.
        framed = x[:, :, None] if self.base.latent_format.latent_dimensions == 3 else x
        conds = self.held.conds(
            self.base, text.pooled, noise=framed, device=x.device, cross_attn=text.context,
            guidance=guidance, width=width, height=height, target_width=width, target_height=height,
        )  # fmt: skip

        def told(cond: Any) -> Any:
            part = cond.process_cond(batch_size=len(x), device=x.device).cond
            return sent(part, x.device) if isinstance(part, Tensor) else part

        given = {name: told(cond) for name, cond in conds.items()}
        options = {"optimized_attention_override": _attention}
        x0 = self.base.apply_model(framed, sigma, transformer_options=options, **given)
        return x0[:, :, 0] if framed.ndim == 5 else x0

    def tokens(self, output: Any) -> Tensor:
        return self.held.tokens(output, self.count)

    def layers(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, LoraLayer]:
        """The student's matrices under diffusers' names, as published: alpha equal to the rank."""
        return {
            module: LoraLayer(
                down.cpu().half(), up[first : first + rows].cpu().half().contiguous(), 1.0
            )
            for name, (down, up) in pairs.items()
            for module, first, rows in self.parts[name]
        }


def room_for(model: Any) -> float:
    """Bytes that a MODEL's weights may take where it computes; on a CPU they stay in any case."""
    if model.load_device.type == "cpu":
        return float("inf")
    return (1 - RESERVE) * _host.free_memory(model, model.load_device)


def _attention(_: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """torch's attention instead of the chosen one, which may know no backward pass."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
