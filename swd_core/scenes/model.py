"""A compact SD3 MMDiT (Esser et al., arXiv 2403.03206) that runs ComfyUI's own SD3 weight files.

Key names, head width (64), rms qk-norm and the relative position grid are those of the host's SD3
class, so one file serves `python -m swd_core` and the host's stock loader.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PATCH = 2
HEAD = 64


def timestep_embedding(t: Tensor, dim: int = 256) -> Tensor:
    """Sinusoidal features (B, dim) of timesteps t (B,) in 0..1000, cosines first."""
    frequencies = torch.exp(
        -math.log(10_000)
        * torch.arange(dim // 2, device=t.device, dtype=torch.float32)
        / (dim // 2)
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_embedding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Sine-cosine grid (H*W, dim) whose shorter side always spans 0..15, as the host's SD3 has it
    for files without a `pos_embed` table: a place in the picture keeps its code at every scale."""

    def axis(positions: Tensor) -> Tensor:
        omega = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim / 4)
        angles = positions.flatten()[:, None] * (1.0 / 10_000**omega)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def span(n: int) -> Tensor:
        reach = 7.5 * n / min(height, width)
        return torch.linspace(7.5 - reach, 7.5 + reach, n, device=device)

    rows, columns = torch.meshgrid(span(height), span(width), indexing="ij")
    return torch.cat([axis(columns), axis(rows)], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class Embedder(nn.Module):
    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        return F.linear(patches, weight, self.proj.bias)


class Attention(nn.Module):
    def __init__(self, dim: int, pre_only: bool):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.ln_q = nn.RMSNorm(HEAD, eps=1e-6)
        self.ln_k = nn.RMSNorm(HEAD, eps=1e-6)
        if not pre_only:
            self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, d=HEAD)
        return self.normed(q, self.ln_q), self.normed(k, self.ln_k), v

    @staticmethod
    def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
        return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, N, D); on a CPU its backward is quickest written out."""
    if q.device.type == "cpu" and torch.is_grad_enabled():
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class StreamBlock(nn.Module):
    """One stream (picture or text) of a joint block: adaLN, its half of the attention, an MLP."""

    def __init__(self, dim: int, pre_only: bool = False):
        super().__init__()
        self.pre_only = pre_only
        self.attn = Attention(dim, pre_only)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(dim, (2 if pre_only else 6) * dim)
        )
        if not pre_only:
            self.mlp = Mlp(dim)

    def before(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        shift, scale, *rest = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.heads(
            modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)
        ), rest

    def after(self, x: Tensor, attended: Tensor, rest: list[Tensor]) -> Tensor:
        gate_attn, shift, scale, gate_mlp = rest
        x = torch.addcmul(x, gate_attn[:, None], self.attn.proj(attended))
        hidden = self.mlp(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))
        return torch.addcmul(x, gate_mlp[:, None], hidden)


class JointBlock(nn.Module):
    def __init__(self, dim: int, last: bool):
        super().__init__()
        self.context_block = StreamBlock(dim, pre_only=last)
        self.x_block = StreamBlock(dim)

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        context_heads, context_rest = self.context_block.before(context, c)
        x_heads, x_rest = self.x_block.before(x, c)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(context_heads, x_heads, strict=True))
        attended = rearrange(attend(q, k, v), "b h n d -> b n (h d)")
        n = context.shape[1]
        x = self.x_block.after(x, attended[:, n:].contiguous(), x_rest)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.after(context, attended[:, :n].contiguous(), context_rest), x


class FinalLayer(nn.Module):
    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(dim, PATCH * PATCH * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))


class MMDiT(nn.Module):
    """Velocity model of a flow-matching process, v = noise - x0.

    Args:
        depth: number of joint blocks; the hidden width is 64 * depth, as the host infers it.
        channels: latent channels.
        context_dim: width of the text tokens; pooled_dim: width of the pooled text vector.
    """

    def __init__(
        self, depth: int, channels: int = 16, context_dim: int = 256, pooled_dim: int = 256
    ):
        super().__init__()
        dim = HEAD * depth
        self.channels = channels
        self.x_embedder = PatchEmbed(channels, dim)
        self.t_embedder = Embedder(256, dim)
        self.y_embedder = Embedder(pooled_dim, dim)
        self.context_embedder = nn.Linear(context_dim, dim)
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, last=i == depth - 1) for i in range(depth)
        )
        self.final_layer = FinalLayer(dim, channels)

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "MMDiT":
        """Builds the model that a weight file describes.

        Raises:
            ValueError: if the tensors are not those of such a model.
        """
        try:
            width, channels = state["x_embedder.proj.weight"].shape[:2]
            model = cls(
                width // HEAD,
                channels,
                state["context_embedder.weight"].shape[1],
                state["y_embedder.mlp.0.weight"].shape[1],
            )
            model.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                "These weights are not an SD3-type MMDiT as the embedded student uses it (rms "
                f"qk-norm, patch 2, no pos_embed table): {str(error).splitlines()[0]}"
            ) from error
        return model

    def embed(
        self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text tokens (B, T, D), picture tokens (B, N, D) and adaLN input (B, D)."""
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        c = self.t_embedder(timestep_embedding(sigma * 1000).to(x.dtype)) + self.y_embedder(pooled)
        tokens = self.x_embedder(x)
        places = position_embedding(height, width, tokens.shape[-1], x.device).to(x.dtype)
        return self.context_embedder(context), tokens + places, c

    def head(self, tokens: Tensor, c: Tensor, height: int) -> Tensor:
        """Velocity (B, C, H, W) from the last block's tokens; `height` is H."""
        patches = self.final_layer(tokens, c)
        return rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=height // PATCH, p=PATCH, q=PATCH
        )

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """Velocity at x_t.

        Args:
            x: noisy latent (B, C, H, W), sides even.
            sigma: noise level (B,) in 0..1.
            context: text tokens (B, T, context_dim). pooled: (B, pooled_dim).
        """
        context, tokens, c = self.embed(x, sigma, context, pooled)
        for block in self.joint_blocks:
            context, tokens = block(context, tokens, c)
        return self.head(tokens, c, x.shape[-2])
