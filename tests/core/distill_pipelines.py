"""Small random diffusers pipelines of every family, as folders on the disk."""

import contextlib
import io
import shutil
import string
from pathlib import Path

import diffusers
import torch
import transformers
from distill_runs import DEVICE
from tokenizers import pre_tokenizers

from swd_core.commands import main

WIDTH, POOLED, SIDE = 32, 32, 64
LETTERS = sorted(set(pre_tokenizers.ByteLevel.alphabet()) | set(string.ascii_lowercase))
FAMILIES = {
    "sd3": "sd35-medium", "sd3-two": "sd35-large", "flux": "flux", "sdxl": "sdxl",
    "zimage": "zimage", "qwen-image": "qwen-image", "flux2": "flux2-klein", "krea2": "krea2",
}  # fmt: skip
LANGUAGE = ("zimage", "qwen-image", "flux2", "krea2")  # whose text encoder is a language model
PROMPTS = ("a fox", "happy dog", "a rocket")
SCHEDULES = {
    "sdxl": "scales = [0.5, 1.0]\nsigmas = [1000, 500]",
    "flow": "scales = [0.5, 0.75, 1.0]\nsigmas = [1.0, 0.8, 0.6]",
}
CONFIG = """
[model]
family = "{family}"
base = '{base}'
device = "{device}"
dtype = "float32"
rank = 4
[schedule]
{schedule}
[teacher]
prompts = "prompts.txt"
steps = 2
guidance = 3.0
seed = 5
[data]
source = "pictures"
prepared = "prepared"
size = 64
shard_size = 2
encode_batch = 2
[train]
steps = 3
batch_tokens = 16
fake_steps = 1
warmup = 1
lr = 2e-2
[output]
run = "run"
save_every = 2
log_every = 1
"""
TRANSFORMER = {
    "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED,
}  # fmt: skip


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """Every letter is a token; so is each of them at the end of a word."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.T5Tokenizer:
    words = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return transformers.T5Tokenizer(
        vocab=[(w, -float(i)) for i, w in enumerate(words)], extra_ids=0
    )


def clip_encoder(width: int, projected: int, kind: type) -> torch.nn.Module:
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_attention_heads=2, num_hidden_layers=3, projection_dim=projected,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return kind(config)


def t5_encoder() -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def autoencoder(channels: int, **options) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=SIDE, **options,
    )  # fmt: skip


def sd3() -> diffusers.StableDiffusion3Pipeline:
    projected = transformers.CLIPTextModelWithProjection
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, in_channels=16, caption_projection_dim=32, pos_embed_max_size=16,
        qk_norm="rms_norm", dual_attention_layers=(0,), **TRANSFORMER,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
                        use_post_quant_conv=False),
        text_encoder=clip_encoder(16, 16, projected), tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(16, 16, projected), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux() -> diffusers.FluxPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_single_layers=2, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        **TRANSFORMER,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                        use_post_quant_conv=False),
        text_encoder=clip_encoder(POOLED, POOLED, transformers.CLIPTextModel),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_encoder(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, norm_num_groups=8,
        projection_class_embeddings_input_dim=POOLED + 48, cross_attention_dim=WIDTH,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            timestep_spacing="leading", steps_offset=1,
        ),
        vae=autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_encoder(16, 16, transformers.CLIPTextModel),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(16, POOLED, transformers.CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(), force_zeros_for_empty_prompt=True,
    )  # fmt: skip


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    """Every byte is a token."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = transformers.Qwen2Tokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(kind: type, layers: int) -> torch.nn.Module:
    return kind(
        transformers.Qwen3Config(
            vocab_size=len(qwen_tokenizer()),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )  # fmt: skip
    )


def zimage() -> diffusers.ZImagePipeline:
    transformer = diffusers.ZImageTransformer2DModel(
        dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                        use_post_quant_conv=False),
        text_encoder=qwen3(transformers.Qwen3Model, 3), tokenizer=qwen_tokenizer(),
    )  # fmt: skip


def video_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip


def qwen25() -> transformers.Qwen2_5_VLForConditionalGeneration:
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(qwen_tokenizer()),
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "intermediate_size": 16,
                "fullatt_block_indexes": [0],
            },
        )  # fmt: skip
    )


def qwen_image() -> diffusers.QwenImagePipeline:
    transformer = diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, in_channels=64,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=video_vae(), text_encoder=qwen25(), tokenizer=qwen_tokenizer(),
    )  # fmt: skip


def flux2() -> diffusers.Flux2KleinPipeline:
    transformer = diffusers.Flux2Transformer2DModel(
        num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        timestep_guidance_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2)
    return diffusers.Flux2KleinPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae, text_encoder=qwen3(transformers.Qwen3ForCausalLM, 28),
        tokenizer=qwen_tokenizer(),
    )  # fmt: skip


def krea2() -> diffusers.Krea2Pipeline:
    transformer = diffusers.Krea2Transformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, timestep_embed_dim=32, text_hidden_dim=WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    text = transformers.Qwen3VLModel(
        transformers.Qwen3VLConfig(
            text_config={
                "vocab_size": len(qwen_tokenizer()),
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [2, 3, 3],
                    "rope_theta": 1e4,
                },
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "intermediate_size": 16,
                "deepstack_visual_indexes": [0],
            },
        )  # fmt: skip
    )
    return diffusers.Krea2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=video_vae(), text_encoder=text, tokenizer=qwen_tokenizer(),
        text_encoder_select_layers=(1, 2),
    )  # fmt: skip


BUILDERS = {"sd3": sd3, "sd3-two": sd3, "flux": flux, "sdxl": sdxl, "zimage": zimage}
BUILDERS |= {"qwen-image": qwen_image, "flux2": flux2, "krea2": krea2}


def shake(module: torch.nn.Module) -> None:
    """Biases, norms and zero layers too get random parts, so that each of them matters."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))


def make_place(name: str, folder: Path, device: str = DEVICE) -> Path:
    """A folder with the pipeline, prompts and a config, as a user would set it up."""
    save_pipeline(name, folder / "base")
    schedule = SCHEDULES["sdxl" if name == "sdxl" else "flow"]
    text = CONFIG.format(family=FAMILIES[name], base="base", device=device, schedule=schedule)
    (folder / "config.toml").write_text(text)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def save_pipeline(name: str, folder: Path) -> Path:
    """sd3-two is one whose third text encoder was deleted."""
    torch.manual_seed(4)
    pipe = BUILDERS[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            shake(part)
    pipe.save_pretrained(folder)
    if name == "sd3-two":
        for part in ("text_encoder_3", "tokenizer_3"):
            shutil.rmtree(folder / part)
    return folder


def run(place: Path, *arguments: str) -> tuple[int, str]:
    """`python -m swd_core ARGUMENTS` in this process: (exit code, what it wrote)."""
    written = io.StringIO()
    with contextlib.chdir(place):
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            code = main(list(arguments))
    return code, written.getvalue()
