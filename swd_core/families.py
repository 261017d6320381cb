"""What a model family is: one record each, read by everything that must know it.

A new family is a record here and a few lines in nodes/_host_families.py: how the host tells it and,
for a new architecture, holds it. To be trained by the command line too, an architecture needs a
class in distill/diffusers_models.py, how diffusers' is called, and a prompt encoder in
distill/encoders.py.
"""

from dataclasses import dataclass, field

_ATTENTION_AND_MLP = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
_PARTS = ("qkv", "proj")
_MLP = ("mlp.fc1", "mlp.fc2")
_JOINT = (
    *(".to_q", ".to_k", ".to_v", ".to_out.0"),
    *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
)
_IMAGE_AND_TEXT_MLP = ("_mlp.net.0.proj", "_mlp.net.2")
_GATED = (".feed_forward.w1", ".feed_forward.w2", ".feed_forward.w3")


@dataclass(frozen=True)
class Diffusers:
    """diffusers' names for a model.

    pipeline: its class. network: the class of the transformer or UNet, which the pipeline holds as
    `part`. adapted: endings of the layers that get an adapter. guidance: the pipeline's argument
    for the guidance of its pictures, and the value of it that means none. negative: the prompt that
    the guidance compares with, where the pipeline has to be given it.
    """

    pipeline: str
    network: str
    part: str
    adapted: tuple[str, ...]
    guidance: tuple[str, float] = ("guidance_scale", 1.0)
    negative: str | None = None


@dataclass(frozen=True)
class Architecture:
    """What all families have in common that the same code runs.

    name: as in the names of LoRA layers and of prepared data. prediction: "flow", or "epsilon" for
    a model whose noise levels are timesteps. channels: of its latents. pixels: of the picture along
    a side of a latent cell. multiple: the latent's sides must be of it. adapted: endings of the
    host's layers that get an adapter in training. betas: first, last and number of the noise
    table's, whose square roots are spaced evenly; () for flow matching. guided: whether guidance is
    embedded in it. layers: pattern that finds the name of one of its layers in a LoRA, with _ for
    every dot; "" if it has no students. text_tokens: that diffusers' pipeline reads of a prompt at
    most (its `check_inputs`), or by default where it sets no limit; 0 where it has one length only.
    ComfyUI sets none: it encodes as many tokens as a prompt has.
    """

    name: str
    title: str
    prediction: str = "flow"
    channels: int = 16
    pixels: int = 8
    multiple: int = 2
    adapted: tuple[str, ...] = ()
    betas: tuple[float, float, int] | tuple[()] = ()
    diffusers: Diffusers | None = None
    guided: bool = False
    layers: str = ""
    text_tokens: int = 512

    @property
    def patch(self) -> int:
        """Cells along a side of the patches that [train] batch_tokens counts."""
        return min(2, self.multiple)

    @property
    def sigma_kind(self) -> str:
        """How a schedule for it counts noise: see `ScaleSchedule`."""
        return "timestep" if self.prediction == "epsilon" else "flow"


@dataclass(frozen=True)
class Family:
    """Models that take the same students.

    name: in presets, drafts and configs. preset: the schedule it is trained for unless another is
    asked for. width: of its tokens, where it tells families of one architecture apart by a LoRA.
    block: whose tokens the paper's losses compare, counted from 0, in a model of `depth`
    such blocks. mmd_sigma: least and largest noise level of the patch loss. encoders: whose VAE and
    text encoders it reads, so that prepared data of one serves the other; the architecture's if "".
    """

    name: str
    title: str
    architecture: Architecture
    preset: str = ""
    width: int = 0
    block: int = 0
    depth: int = 0
    mmd_sigma: tuple[float, float] = (0.0, 0.6022)
    adapted: tuple[str, ...] = ()
    encoders: str = ""
    trainable: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for part in ("adapted", "encoders"):
            inherited = {"adapted": self.architecture.adapted, "encoders": self.architecture.name}
            object.__setattr__(self, part, getattr(self, part) or inherited[part])

    @property
    def embedded(self) -> bool:
        """Whether it is the model that comes with the pack, which needs no diffusers."""
        return self.encoders != self.architecture.name

    def takes(self, architecture: str, width: int) -> bool:
        """Whether a student of this architecture and token width may be meant for it.

        Of a width that no family has, only its layers can tell.
        """
        others = {family.width for family in _ALL if family.architecture is self.architecture}
        wrong = self.width and width in others - {self.width, 0}
        return architecture == self.architecture.name and not wrong

    def watched_block(self, count: int, chosen: int | None = None) -> int | None:
        """The block whose tokens the losses compare, in a model with `count` of them.

        Returns:
            the chosen one, else the paper's, else None for the middle one: where the paper names
            none or the model isn't as deep as the paper's.
        """
        if chosen is not None:
            return chosen
        return self.block if self.depth and self.depth == count else None


def existing_block(count: int, block: int | None) -> int:
    """The number of a block in a model with `count` of them; None is the middle one.

    Raises:
        ValueError: if there is no such block.
    """
    if block is None:
        return (count - 1) // 2
    if not 0 <= block < count:
        raise ValueError(
            f"Block {block} does not exist: the model has the blocks 0 to {count - 1}."
        )
    return block


SD3 = Architecture(
    "sd3",
    "SD3.5",
    adapted=(
        *(f".x_block.{attention}.{part}" for attention in ("attn", "attn2") for part in _PARTS),
        *_MLP,
    ),
    diffusers=Diffusers(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel", "transformer", _ATTENTION_AND_MLP
    ),
    layers=r"(^|_)joint_blocks_\d|^transformer_blocks_\d+_(attn|attn2|ff|norm1)(_|$)",
)
# How FLUX's student was trained isn't published; its file holds more layers than these.
FLUX = Architecture(
    "flux",
    "FLUX.1",
    adapted=("_attn.qkv", "_attn.proj", "_mlp.0", "_mlp.2", ".linear1", ".linear2"),
    diffusers=Diffusers(
        "FluxPipeline",
        "FluxTransformer2DModel",
        "transformer",
        (
            *_ATTENTION_AND_MLP,
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            *(".proj_mlp", ".proj_out"),
        ),
    ),
    guided=True,
    layers=r"(^|_)(single_transformer_blocks|single_blocks|double_blocks)_\d",
)
SDXL = Architecture(
    "sdxl",
    "SDXL",
    prediction="epsilon",
    channels=4,
    multiple=4,
    adapted=(".to_q", ".to_k", ".to_v", ".to_out.0", ".net.0.proj", ".net.2"),
    betas=(0.00085, 0.012, 1000),
    diffusers=Diffusers(
        "StableDiffusionXLPipeline", "UNet2DConditionModel", "unet", _ATTENTION_AND_MLP
    ),
    text_tokens=0,
    layers=r"^(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)_",
)
# Z-Image; also in this class of the host's: Lumina 2, which reads its text differently.
ZIMAGE = Architecture(
    "zimage",
    "Z-Image",
    adapted=(".attention.qkv", ".attention.out", *_GATED),
    diffusers=Diffusers(
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        "transformer",
        (".to_q", ".to_k", ".to_v", ".to_out.0", *_GATED),
        guidance=("guidance_scale", 0.0),
    ),
    layers=r"^(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward|adaLN)",
)
QWEN_IMAGE = Architecture(
    "qwen-image",
    "Qwen-Image",
    adapted=(*_JOINT, *_IMAGE_AND_TEXT_MLP),
    diffusers=Diffusers(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        "transformer",
        (*_JOINT, *_IMAGE_AND_TEXT_MLP),
        guidance=("true_cfg_scale", 1.0),
        negative=" ",
    ),
    text_tokens=1024,
    layers=r"(^|_)transformer_blocks_\d+_(img_mlp|txt_mlp|img_mod|txt_mod)_",
)
FLUX2 = Architecture(
    "flux2",
    "FLUX.2",
    channels=128,
    pixels=16,
    multiple=1,
    adapted=("_attn.qkv", "_attn.proj", "_mlp.0", "_mlp.2", ".linear1", ".linear2"),
    diffusers=Diffusers(
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        "transformer",
        (*_JOINT, ".linear_in", ".linear_out", ".to_qkv_mlp_proj", ".attn.to_out"),
    ),
    layers=r"(^|_)single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out)(_|$)"
    r"|^transformer_blocks_\d+_ff(_context)?_linear_(in|out)",
)
KREA2 = Architecture(
    "krea2",
    "Krea 2",
    adapted=tuple(
        f".{part}" for part in ("wq", "wk", "wv", "wo", "mlp.gate", "mlp.up", "mlp.down")
    ),
    diffusers=Diffusers(
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        "transformer",
        (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.gate", ".ff.up", ".ff.down"),
        guidance=("guidance_scale", 0.0),
    ),
    layers=r"^(transformer_blocks|text_fusion_\w+_blocks)_\d+_(ff_(gate|up|down)|attn_to_gate)$",
)
WAN = Architecture("wan", "Wan")

_ALL = (
    Family(
        "scenes",
        "the embedded scene student",
        SD3,
        preset="scenes-4",
        adapted=(".attn.qkv", ".attn.proj", *_MLP),
        encoders="scenes",
        trainable=True,
    ),
    Family(
        "sd35-medium",
        "SD3.5 Medium",
        SD3,
        preset="sd35-medium-4",
        width=1536,
        block=11,
        depth=24,
        trainable=True,
    ),
    Family(
        "sd35-large",
        "SD3.5 Large",
        SD3,
        preset="sd35-large-4",
        width=2432,
        block=20,
        depth=38,
        trainable=True,
    ),
    Family("flux", "FLUX.1", FLUX, preset="flux-4", block=15, depth=19, trainable=True),
    Family("sdxl", "SDXL", SDXL, preset="sdxl-4", mmd_sigma=(0.0, 0.4), trainable=True),
    Family("zimage", "Z-Image", ZIMAGE, preset="zimage-4", width=3840, trainable=True),
    Family("qwen-image", "Qwen-Image", QWEN_IMAGE, preset="qwen-image-4", trainable=True),
    # Of its 5 double blocks the last, as far into the model as FLUX.1's block is.
    Family(
        "flux2-klein",
        "FLUX.2 klein",
        FLUX2,
        preset="flux2-klein-4",
        block=4,
        depth=5,
        trainable=True,
    ),
    Family("krea2", "Krea 2", KREA2, preset="krea2-4", trainable=True),
    Family("wan", "Wan", WAN),
    # Of an architecture that has students, but of none of the families above.
    Family("sd3", "an SD3 type", SD3),
    Family("wan-other", "Wan", WAN),
)
FAMILIES = {family.name: family for family in _ALL}
ARCHITECTURES = {family.architecture.name: family.architecture for family in _ALL}
TRAINABLE = tuple(family.name for family in _ALL if family.trainable)
