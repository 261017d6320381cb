"""What the names in a LoRA file mean: which layer, which base model, what the host calls it."""

import re
from collections.abc import Mapping

from .families import ARCHITECTURES, FAMILIES, FLUX, FLUX2, SD3, SDXL, ZIMAGE

LUMINA2 = 2304  # the width of its tokens; its layers are called as Z-Image's
MOST_LETTERS = 256  # of a tensor's name; the longest of a known file has 120
_PART = re.compile(
    r"(?P<stem>.+?)(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<part>A|B|down|up)"
    r"(?:(?:\.(?P<adapter>[^.]+))?\.weight)?"
)
_PREFIX = re.compile(
    r"^(?:base_model\.model\.|model\.|transformer\.|unet\.|diffusion_model\.|module\.)+"
)
# What torch.compile, FSDP and recomputation put around a module.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_FLAT_WRAPPER = re.compile(r"(?<=_)_orig_mod_")
_KINDS = {
    "a DoRA's scale": r"dora_scale|lora_magnitude_vector",
    "part of a LoHa": r"\.hada_",
    "part of a LoKr": r"\.lokr_",
    "part of an OFT": r"\.b?oft_",
    "a LoRA's bias": r"lora_(?:A|B|up|down)\.(?:[^.]+\.)?bias$",
    "the middle part of a LoCon": r"\.lora_mid\.",
    "a weight of its own": r"\.(?:diff|diff_b|set_weight)$"
    r"|^(?!.*(?:lora|\.(?:down|up)\.)).*\.(?:weight|bias)$",
}
_FLAT_PREFIX = re.compile(r"^(lora_unet|lora_transformer|lycoris)_")
_TEXT_ENCODER = re.compile(r"(lora_te|text_encoder|te\d?[._]|clip_[lgh][._]|conditioner\.)")
_WIDTH_LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "qkv",
    "ff.net.0.proj",
    "fc1",
    "linear1",
)

_OLD_UNET = re.compile(r"^(down_blocks_0_attentions|up_blocks_3|input_blocks_[12]_1)_")
_CROSS = re.compile(r"attn2[._]to_[kv]$")
_OTHERS = {
    "Wan": re.compile(r"^blocks_\d+_(self_attn|cross_attn|ffn|attn1)_"),
    "PixArt": re.compile(r"^transformer_blocks_\d+_attn1_"),
}


def part_of(key: str) -> tuple[str, str] | None:
    """(module, "down" | "up" | "alpha") of a tensor's name, or None if it is no part of a LoRA."""
    if len(key) > MOST_LETTERS:
        return None
    if key.endswith(".alpha"):
        return module_name(key.removesuffix(".alpha")), "alpha"
    found = _PART.fullmatch(key)
    if found is None:
        return None
    return module_name(found["stem"]), "down" if found["part"] in ("A", "down") else "up"


def adapter_of(key: str) -> str | None:
    """The adapter's name in a tensor's, as in `to_q.lora_A.default.weight`; None without one."""
    found = _PART.fullmatch(key)
    return found and found["adapter"]


def kind_of(key: str) -> str:
    """What a tensor that is no part of a plain LoRA is, by its name."""
    found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, key[:MOST_LETTERS]))
    return next(found, "neither a LoRA matrix nor an alpha")


def module_name(stem: str) -> str:
    """The layer's name without the prefixes of the tool that wrote it; flat kohya names stay."""
    stem = ".".join(part for part in stem.split(".") if part not in _WRAPPERS)
    stem = _FLAT_WRAPPER.sub("", _PREFIX.sub("", stem))
    if ".processor." in stem:  # diffusers before 0.20 hung its layers on the attention processor
        stem = re.sub(r"\.to_out$", ".to_out.0", stem.replace(".processor.", "."))
    return stem


def is_text_encoder(module: str) -> bool:
    return _TEXT_ENCODER.match(module) is not None


def architecture_of(widths: Mapping[str, int]) -> str:
    """Which architecture that has students a LoRA was made for, by name.

    Args:
        widths: the input width of each layer, by module name.

    Raises:
        ValueError: names the base where it is another known one, the layers where it isn't.
    """
    flat = {_FLAT_PREFIX.sub("", module).replace(".", "_") for module in widths}
    students = [a for a in ARCHITECTURES.values() if a.layers]
    fitting = [a for a in students if any(map(re.compile(a.layers).search, flat))]
    if FLUX2 in fitting:  # its blocks are called as FLUX.1's
        fitting = [FLUX2]
    if SD3 in fitting:  # others have layers of the same names, and FLUX's double blocks no other
        others = [a for a in fitting if a is not SD3]
        fitting = others or ([FLUX] if base_width(widths) == 3072 else fitting)
    if fitting == [SDXL]:
        context = {width for module, width in widths.items() if _CROSS.search(module)}
        old = any(_OLD_UNET.search(name) for name in flat)
        if context & {768, 1024} or (old and not context):
            raise ValueError("it was made for SD 1.x or 2.x")
    if fitting == [ZIMAGE] and base_width(widths) == LUMINA2:
        raise ValueError("it was made for Lumina 2")
    if fitting:
        return fitting[0].name
    for title, pattern in _OTHERS.items():
        if any(pattern.search(name) for name in flat):
            raise ValueError(f"it was made for {title}")
    known = ", ".join(architecture.title for architecture in students)
    raise ValueError(f"its layers ({', '.join(list(widths)[:3])}, ...) belong to none of {known}")


def base_width(widths: Mapping[str, int]) -> int:
    """The base model's token width, from the layers that read tokens; 0 without any."""
    ends = (*_WIDTH_LAYERS, *(name.replace(".", "_") for name in _WIDTH_LAYERS))
    found = [width for module, width in widths.items() if module.endswith(ends)]
    return max(set(found), key=found.count) if found else 0


def base_title(architecture: str, widths: Mapping[str, int]) -> str:
    """The base as people call it; SD3.5 Medium and Large differ in their width."""
    width = base_width(widths)
    if architecture != SD3.name or not width:
        return ARCHITECTURES[architecture].title
    known = (f.title for f in FAMILIES.values() if f.architecture is SD3 and f.width == width)
    return next(known, f"an SD3 type {width} wide")


def host_names(architecture: str, module: str) -> tuple[str, ...]:
    """The names under which the host's LoRA loader may know a module, its own first."""
    if _FLAT_PREFIX.match(module):
        return (module,)
    flat = "lora_unet_" + module.replace(".", "_")
    dotted = f"transformer.{module}"
    own = (flat, dotted) if architecture == SDXL.name else (dotted, flat)
    return (*own, f"diffusion_model.{module}")
