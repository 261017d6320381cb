"""Small random diffusers models of every architecture, and data for them."""

import random

import diffusers
import pytest
import torch

from swd_core.distill.conditioning import Conditioning
from swd_core.distill.interface import DistillModel
from swd_core.distill.scalewise import Interval, intervals
from swd_core.distill.trainer import DistillConfig, Trainer

FLOW = (1.0, 0.8, 0.6)
SIGMAS = {"sdxl": (14.6146, 2.2846, 1.1644)}
SIZES = [(4, 8), (8, 12), (8, 16)]
CHANNELS = {"sdxl": 4, "flux2": 128}
LANGUAGE = (
    "zimage",
    "qwen-image",
    "flux2",
    "krea2",
)  # those that read a language model's tokens, as many as a prompt has
CONTEXT, POOLED = 24, 32


def small_model(family: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if family == "sd3":
        model = diffusers.SD3Transformer2DModel(
            sample_size=32, num_layers=4, attention_head_dim=16, num_attention_heads=2,
            in_channels=16, joint_attention_dim=CONTEXT, caption_projection_dim=32,
            pooled_projection_dim=POOLED, pos_embed_max_size=16, qk_norm="rms_norm",
            dual_attention_layers=(0, 1),
        )  # fmt: skip
    elif family == "flux":
        model = diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=3, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=CONTEXT, pooled_projection_dim=POOLED,
            guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    elif family == "zimage":
        model = diffusers.ZImageTransformer2DModel(
            dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=CONTEXT,
            axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
        )  # fmt: skip
    elif family == "qwen-image":
        model = diffusers.QwenImageTransformer2DModel(
            num_layers=3, attention_head_dim=16, num_attention_heads=2, in_channels=64,
            joint_attention_dim=CONTEXT, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    elif family == "flux2":
        model = diffusers.Flux2Transformer2DModel(
            num_layers=3, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=CONTEXT, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
            timestep_guidance_channels=32,
        )  # fmt: skip
    elif family == "krea2":
        model = diffusers.Krea2Transformer2DModel(
            num_layers=3, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=64, timestep_embed_dim=32, text_hidden_dim=CONTEXT // 2,
            num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2,
            text_intermediate_size=32, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    else:
        model = diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8, norm_num_groups=8,
            projection_class_embeddings_input_dim=POOLED + 48, cross_attention_dim=CONTEXT,
        )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1 or family == "krea2" and len(p) < 7:  # its tables are 0
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


class RandomBatches:
    """Unrelated random latents at the sizes of SIZES; the same for the same random state."""

    def __init__(self, family: str):
        self.family = family

    def text(self, generator: torch.Generator, count: int) -> Conditioning:
        if self.family in LANGUAGE:
            lengths = torch.randint(2, 6, (count, 1), generator=generator)
            lengths = lengths.clamp(min=5) if self.family == "flux2" else lengths  # has no mask
            return Conditioning(
                context=torch.randn(count, 5, CONTEXT, generator=generator),
                mask=torch.arange(5) < lengths,
            )
        return Conditioning(
            context=torch.randn(count, 5, CONTEXT, generator=generator),
            pooled=torch.randn(count, POOLED, generator=generator),
            size=torch.tensor([[64.0, 128.0]]).repeat(count, 1),
        )

    def steps(self, rng: random.Random) -> list[Interval]:
        return steps(self.family)

    def draw(self, interval: Interval, count: int, rng: random.Random, part=slice(None)):
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        channels = CHANNELS.get(self.family, 16)
        real = torch.randn(count, channels, *interval.size, generator=generator)
        previous = None
        if interval.previous:
            previous = torch.randn(count, channels, *interval.previous, generator=generator)[part]
        text = self.text(generator, count)
        return real[part], previous, text.map(lambda t: t[part])

    def unconditional(self, count: int) -> Conditioning:
        return self.text(torch.Generator().manual_seed(0), count)


def steps(family: str) -> list[Interval]:
    return intervals(SIZES, SIGMAS.get(family, FLOW))


def trainer_of(model: DistillModel, family: str) -> Trainer:
    config = DistillConfig(batch_tokens=16, fake_steps=1, warmup=1, lr=2e-3)
    return Trainer(model, RandomBatches(family), config)


def assert_trains_alike(one: Trainer, other: Trainer, count: int, atol: float) -> None:
    """The same losses over `count` steps, and the same student after them."""
    for _ in range(count):
        one.train_step(1.0)
        other.train_step(1.0)
    assert other.means() == pytest.approx(one.means(), rel=1e-4)
    for a, b in zip(one.student, other.student, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)
