"""diffusers' SD3, FLUX and SDXL behind the trainer's interface: how each is called."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..families import FLUX, SD3, SDXL
from ..process import VarianceExploding
from ..transfer import sent
from .adapters import active_adapter
from .conditioning import Conditioning
from .diffusers_base import DiffusersModel, DoubleAndSingle, replaced
from .diffusers_language import Flux2Model, Krea2Model, QwenImageModel, ZImageModel


def noise_table(betas: tuple[float, float, int]) -> Tensor:
    """Variance-exploding sigmas (N,), float64, of timesteps 0 to N - 1, by `Architecture.betas`."""
    start, end, count = betas
    kept = (1 - torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2).cumprod(0)
    return ((1 - kept) / kept).sqrt()


@dataclass
class SD3Model(DiffusersModel):
    """SD3Transformer2DModel: latents (B, 16, H, W)."""

    architecture = SD3

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        context = (77 + t5_tokens, shape["joint_attention_dim"])
        return {"context": context, "pooled": (shape["pooled_projection_dim"],)}

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        x, context, pooled = self._cast(x, text.context, text.pooled)
        return self.module(x, context, pooled, sigma * 1000, return_dict=False)[0]


@dataclass
class FluxModel(DoubleAndSingle):
    """FluxTransformer2DModel: latents (B, 16, H, W), packed here.

    Args:
        guidance: embedded guidance of student and teacher; the fake score has 1.
    """

    architecture = FLUX
    guidance: float = 4.5

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        context = (t5_tokens, shape["joint_attention_dim"])
        return {"context": context, "pooled": (shape["pooled_projection_dim"],)}

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


@dataclass
class SDXLModel(DiffusersModel):
    """UNet2DConditionModel of SDXL in the variance-exploding form: x_t = x0 + sigma noise.

    Latents (B, 4, H, W). The size conditioning is the finished picture's at every scale.
    """

    architecture = SDXL

    def __post_init__(self) -> None:
        self.process = VarianceExploding()
        self.table = noise_table(self.architecture.betas).float().to(self._device)
        super().__post_init__()

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        context, sizes = (77, shape["cross_attention_dim"]), 6 * shape["addition_time_embed_dim"]
        pooled = (shape["projection_class_embeddings_input_dim"] - sizes,)
        return {"context": context, "pooled": pooled, "size": (2,)}

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
        logs = self._logs(t.device)
        return logs[low].lerp(logs[high], steps - low).exp()

    def _logs(self, device: torch.device) -> Tensor:
        """Of the table, which follows a module that is spread after it was wrapped (FSDP)."""
        self.table = self.table.to(device)
        return self.table.log()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The inverse of `level`, in 0..999."""
        logs = self._logs(sigma.device)
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


MODELS = (
    *(SD3Model, FluxModel, SDXLModel),
    *(ZImageModel, QwenImageModel, Flux2Model, Krea2Model),
)


def wrap(module: nn.Module, **options: Any) -> DiffusersModel:
    """The adapter for a loaded diffusers model, by its class.

    Raises:
        ValueError: if it is none of these kinds.
    """
    kinds = {model.architecture.diffusers.network: model for model in MODELS}
    kind = kinds.get(type(module).__name__)
    if kind is None:
        raise ValueError(
            f"{type(module).__name__} can't be distilled; give one of {', '.join(kinds)}."
        )
    return kind(module, **options)
