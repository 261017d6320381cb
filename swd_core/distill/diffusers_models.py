"""diffusers' SD3, FLUX and SDXL behind the trainer's interface."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families import FLUX, SD3, SDXL, Architecture
from ..lora import LoraLayer
from ..process import FlowMatching, VarianceExploding
from .adapters import adapter, add_adapters, switch_of
from .attention import quick_attention
from .compiled import compile_blocks, is_compiled
from .conditioning import Conditioning
from .transfer import sent
from .watch import Watched, watch


def noise_table(betas: tuple[float, float, int]) -> Tensor:
    """Variance-exploding sigmas (N,), float64, of timesteps 0 to N - 1, by `Architecture.betas`."""
    start, end, count = betas
    kept = (1 - torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def active_adapter(module: nn.Module) -> str | None:
    """The adapter that `module` runs with now."""
    switch = switch_of(module)
    return None if switch is None else switch.active


def checkpointed(module: nn.Module, *args: Any) -> Any:
    """Runs a block without keeping its activations.

    The backward pass computes it again when another adapter, or none, is active: the one of the
    forward pass is put back for that.
    """
    name = active_adapter(module)

    def run(*inputs: Any) -> Any:
        with adapter(module, name), quick_attention(inputs[0].device):
            return module(*inputs)

    return checkpoint(run, *args, use_reentrant=False)


@contextmanager
def replaced(module: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """Runs the body with some children of `module` exchanged."""
    before = {name: getattr(module, name) for name in parts}
    for name, part in parts.items():
        setattr(module, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


@dataclass
class DiffusersModel(Watched):
    """What the three have in common; the subclasses say how to call the model and where to look.

    Args:
        module: the diffusers model, frozen here. It gets the adapters 'student' and 'fake'.
        rank: of both adapters.
        block: the block, counted from 0, whose tokens the losses compare; about the middle if None.
        checkpointing: compute activations again in the backward pass, to save memory.
        compile: have torch compile the blocks when they first run.
    """

    module: nn.Module
    rank: int = 64
    block: int | None = None
    checkpointing: bool = False
    compile: bool = False
    architecture: Architecture = field(init=False)
    process: Any = field(init=False, default_factory=FlowMatching)
    _end: nn.Module | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.check()
        adapted = self.architecture.diffusers.adapted
        add_adapters(self.module, adapted, ("student", "fake"), self.rank)
        self.width = self._width()
        if self.compile:
            compile_blocks(self.module)
        if self.checkpointing:
            self.module.enable_gradient_checkpointing(self.run_block)

    def check(self) -> None:
        """Raises ValueError if the block that is to be looked at does not exist."""
        count = len(self.module.transformer_blocks)
        if self.block is None:
            self.block = (count - 1) // 2
        if not 0 <= self.block < count:
            raise ValueError(
                f"Block {self.block} does not exist: the model has the blocks 0 to {count - 1}."
            )

    def level(self, t: Tensor) -> Tensor:
        """Noise level of the process for times 0..1."""
        return t

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        output = self._run(x, sigma, text)
        return self.process.to_x0(x, output.float(), sigma.view(-1, 1, 1, 1))

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        with self._first_half(), self._kept(self.watched), watch(self.watched, self.tokens) as seen:
            self._run(x, sigma, text, to_end=False)
        return seen[0]

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with self._kept(self._last()):
            return super().predict_with_features(x, sigma, text)

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with self._kept(self.watched):
            return super().score_with_features(x, sigma, text)

    def layers(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, LoraLayer]:
        """The student's matrices as published: half precision, alpha equal to the rank."""
        return {
            name: LoraLayer(down.half().cpu().contiguous(), up.half().cpu().contiguous(), 1.0)
            for name, (down, up) in pairs.items()
        }

    @contextmanager
    def _kept(self, block: nn.Module | None) -> Iterator[None]:
        """Keeps the activations of the block that a graph ends with.

        The backward pass begins there: computing them again would take as much memory at once.
        """
        self._end = block
        try:
            yield
        finally:
            self._end = None

    def run_block(self, block: nn.Module, *args: Any) -> Any:
        """What diffusers calls instead of a block where it is asked for checkpointing."""
        last = block is self._end
        if is_compiled(block):
            return block(*args) if last else block.forward.checkpointed(*args)
        if last:
            with quick_attention(self._device):
                return block(*args)
        return checkpointed(block, *args)

    def _last(self) -> nn.Module | None:
        """The block that a whole pass ends with."""
        return self.module.transformer_blocks[-1]

    @property
    def watched(self) -> nn.Module:
        return self.module.transformer_blocks[self.block]

    def tokens(self, output: Any) -> Tensor:
        return output[1]

    def _width(self) -> int:
        return self.module.inner_dim

    def _first_half(self) -> Any:
        return replaced(
            self.module, transformer_blocks=self.module.transformer_blocks[: self.block + 1]
        )

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        raise NotImplementedError

    def _run(self, *arguments: Any, to_end: bool = True) -> Tensor:
        # Checkpointed and compiled blocks see to it themselves; one mode less for every call.
        own = self.checkpointing or self.compile
        with nullcontext() if own else quick_attention(self._device):
            return self._call(*arguments, to_end=to_end)

    def _cast(self, *tensors: Tensor) -> list[Tensor]:
        dtype = next(self.module.parameters()).dtype
        return [t.to(self._device, dtype) for t in tensors]

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


@dataclass
class SD3Model(DiffusersModel):
    """SD3Transformer2DModel: latents (B, 16, H, W)."""

    def __post_init__(self) -> None:
        self.architecture = SD3
        super().__post_init__()

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        x, context, pooled = self._cast(x, text.context, text.pooled)
        return self.module(x, context, pooled, sigma * 1000, return_dict=False)[0]


@dataclass
class FluxModel(DiffusersModel):
    """FluxTransformer2DModel: latents (B, 16, H, W), packed here.

    Args:
        guidance: embedded guidance of student and teacher; the fake score has 1.
    """

    guidance: float = 4.5

    def __post_init__(self) -> None:
        self.architecture = FLUX
        super().__post_init__()

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        x, context, pooled = self._cast(x, text.context, text.pooled)
        tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
        guidance = None
        if self.module.config.guidance_embeds:
            value = 1.0 if active_adapter(self.module) == "fake" else self.guidance
            guidance = torch.full((len(x),), value, device=x.device)
        ids = torch.zeros(height, width, 3, device=x.device)
        ids[..., 1] = torch.arange(height, device=x.device)[:, None]
        ids[..., 2] = torch.arange(width, device=x.device)[None]
        output = self.module(
            tokens,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=ids.flatten(0, 1),
            txt_ids=torch.zeros(context.shape[1], 3, device=x.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return rearrange(output, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)

    def _last(self) -> nn.Module | None:
        return [*self.module.transformer_blocks, *self.module.single_transformer_blocks][-1]

    def _first_half(self) -> Any:
        return replaced(
            self.module,
            transformer_blocks=self.module.transformer_blocks[: self.block + 1],
            single_transformer_blocks=nn.ModuleList(),
        )


@dataclass
class SDXLModel(DiffusersModel):
    """UNet2DConditionModel of SDXL in the variance-exploding form: x_t = x0 + sigma noise.

    Latents (B, 4, H, W). The size conditioning is the finished picture's at every scale.
    """

    def __post_init__(self) -> None:
        self.architecture = SDXL
        self.process = VarianceExploding()
        self.table = noise_table(self.architecture.betas).float().to(self._device)
        super().__post_init__()

    def check(self) -> None:
        if self.block is not None:
            raise ValueError("SDXL's losses look at the UNet's middle; leave out 'block'.")

    def level(self, t: Tensor) -> Tensor:
        """Sigma of timesteps t * 1000, between the table's entries on a log scale.

        1000 and 999 are both the table's last entry, about 14.61.
        """
        steps = (t * 1000).clamp(0, len(self.table) - 1)
        low = steps.floor().long()
        high = (low + 1).clamp(max=len(self.table) - 1)
        logs = self.table.log().to(t.device)
        return logs[low].lerp(logs[high], steps - low).exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The inverse of `level`, in 0..999."""
        logs = self.table.log().to(sigma.device)
        wanted = sigma.log().clamp(logs[0], logs[-1])
        high = torch.searchsorted(logs, wanted.contiguous()).clamp(1, len(logs) - 1)
        return high - (logs[high] - wanted) / (logs[high] - logs[high - 1])

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        if text.size is None:
            raise ValueError("SDXL needs the finished picture's size beside context and pooled.")
        scale = (1 + sigma.square()).rsqrt().view(-1, 1, 1, 1)
        x, context, pooled = self._cast(x * scale, text.context, text.pooled)
        target = sent(text.size, self._device).to(x.dtype)
        return self.module(
            x,
            self.timestep(sigma),
            context,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": torch.cat([target, torch.zeros_like(target), target], dim=1),
            },
            return_dict=False,
        )[0]

    def _last(self) -> nn.Module | None:
        return None

    @property
    def watched(self) -> nn.Module:
        return self.module.mid_block

    def tokens(self, output: Tensor) -> Tensor:
        return rearrange(output, "b c h w -> b (h w) c")

    def _width(self) -> int:
        return self.module.config.block_out_channels[-1]

    def _first_half(self) -> Any:
        nothing = nn.Identity()
        return replaced(
            self.module,
            up_blocks=nn.ModuleList(),
            conv_norm_out=nothing,
            conv_act=nothing,
            conv_out=nothing,
        )


def wrap(module: nn.Module, **options: Any) -> DiffusersModel:
    """The adapter for a loaded diffusers model, by its class.

    Raises:
        ValueError: if it is none of the three kinds.
    """
    models = {SD3: SD3Model, FLUX: FluxModel, SDXL: SDXLModel}
    kinds = {kind.diffusers.network: model for kind, model in models.items()}
    kind = kinds.get(type(module).__name__)
    if kind is None:
        raise ValueError(
            f"{type(module).__name__} can't be distilled; give one of {', '.join(kinds)}."
        )
    return kind(module, **options)
