"""SwDSceneStudent: the embedded student as MODEL, CLIP and VAE, without a download."""

import logging
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ..swd_core.presets import presets
from ..swd_core.scenes.student import (
    LORA_FOLDER,
    MODEL_FILE,
    PRESET,
    TEXT_FILE,
    VAE_FILE,
    WEIGHTS,
    load_text_encoder,
    read_student,
    read_weights,
)
from ..swd_core.scenes.text import SceneTextEncoder, SceneTokenizer
from . import _host
from ._host import CATEGORY, Schedule, io, reloadable, supported
from ._host_lora import apply_lora
from .inputs import checked

log = logging.getLogger(__name__)
# Red, green and blue of -1 to 1 that one unit of each latent channel adds to BLANK, for previews:
# least squares over 1,000 training pictures. Those of the host are SD3's, in other colours.
RGB = (
    (-0.032, -0.033, -0.022),
    (-0.025, -0.007, 0.08),
    (-0.116, -0.034, 0.002),
    (-0.052, 0.028, 0.081),
    (0.092, 0.048, -0.024),
    (-0.109, -0.017, -0.049),
    (-0.08, 0.03, 0.051),
    (0.019, 0.15, 0.046),
    (-0.052, 0.005, -0.026),
    (-0.002, 0.037, 0.105),
    (0.038, 0.063, -0.082),
    (-0.09, 0.05, -0.035),
    (-0.005, 0.055, 0.016),
    (0.03, -0.049, -0.019),
    (0.027, 0.015, 0.061),
    (-0.026, -0.052, -0.041),
)
BLANK = (0.175, 0.103, 0.095)


class Tokens(dict):
    """Tokens by text encoder, of which there is one; the host's nodes for several ask for others.

    Raises:
        ValueError: for another one.
    """

    def __missing__(self, encoder: str) -> None:
        raise ValueError(
            f"The scene student has one text encoder and no {encoder!r}, which this node writes "
            "for. Write the prompt in ComfyUI's plain CLIP Text Encode node."
        )


class HostTokenizer:
    """The tokenizer with the methods the host's CLIP calls; prompt weights have no effect."""

    def __init__(self, tokenizer: SceneTokenizer):
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: Any
    ) -> dict[str, list]:
        parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        plain = comfy.sd1_clip.unescape_important("".join(part for part, _ in parts))
        ids, messages = self.tokenizer.encode(plain)
        for message in messages:
            log.info("Scene student: %s", message)
        return Tokens(scenes=[[(i, 1.0, 0) if return_word_ids else (i, 1.0) for i in ids]])

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        return [(pair, self.tokenizer.meanings[pair[0]]) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class HostTextEncoder(nn.Module):
    """The text encoder with the methods the host's CLIP calls."""

    dtypes = {torch.float32}

    def __init__(self, encoder: SceneTextEncoder, device: Any = None):
        super().__init__()
        self.encoder = encoder.to(device=device, dtype=torch.float32)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Clip skip and projections mean nothing here."""

    def reset_clip_options(self) -> None:
        """See set_clip_options."""

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[token[0] for token in row] for row in tokens["scenes"]])
        with torch.no_grad():
            context, pooled = self.encoder(ids.to(self.encoder.words.weight.device))
        return _host.to_output_device(context), _host.to_output_device(pooled)


def load_model(disable_dynamic: bool = False) -> Any:
    load = comfy.sd.load_diffusion_model_state_dict
    state = {k: v.float() for k, v in read_weights(WEIGHTS / MODEL_FILE).items()}
    extras = supported(load, disable_dynamic=disable_dynamic)
    model = load(state, model_options={"dtype": torch.float32}, **extras)
    latents = model.model.latent_format
    latents.latent_rgb_factors, latents.latent_rgb_factors_bias = RGB, BLANK
    reloadable(model, load_model)
    return model


def load_clip(disable_dynamic: bool = False) -> comfy.sd.CLIP:
    tokenizer, encoder = load_text_encoder(WEIGHTS / TEXT_FILE)
    target = SimpleNamespace(
        params={},
        clip=lambda device=None, **_: HostTextEncoder(encoder, device),
        tokenizer=lambda **_: HostTokenizer(tokenizer),
    )
    extras = supported(comfy.sd.CLIP, disable_dynamic=disable_dynamic)
    parameters = sum(p.numel() for p in encoder.parameters())
    clip = comfy.sd.CLIP(target, parameters=parameters, **extras)
    reloadable(clip.patcher, lambda disable_dynamic=False: load_clip(disable_dynamic).patcher)
    return clip


def load_vae() -> comfy.sd.VAE:
    vae = comfy.sd.VAE(sd={k: v.float() for k, v in read_weights(WEIGHTS / VAE_FILE).items()})
    reloadable(vae.patcher, lambda disable_dynamic=False: load_vae().patcher)
    return vae


class SwDSceneStudent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDSceneStudent",
            display_name="Load SwD Scene Student",
            category=CATEGORY,
            description="The small scale-wise student that comes with this pack: one or two of 40 "
            "things in a landscape, at 256 pixels in four steps. Nothing is downloaded.",
            inputs=[
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Strength of the student's LoRA: 1 is the student, 0 the teacher "
                    "it was distilled from (which wants 25 steps, cfg 3 and a core sampler).",
                )
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="SD3-type model with the student's LoRA."
                ),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip="For CLIP Text Encode; knows things, places and times of day.",
                ),
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="Decodes 16-channel latents, factor 8."
                ),
                Schedule.Output(
                    "schedule", display_name="schedule", tooltip="The student's own four steps."
                ),
            ],
            **supported(io.Schema, search_aliases=["scene", "demo model", "tiny model", "SwD"]),
        )

    @classmethod
    @checked()
    def execute(cls, strength: float) -> io.NodeOutput:
        model = load_model()
        if strength:
            lora = read_student(WEIGHTS / LORA_FOLDER)
            model, report = apply_lora(model, lora, strength, "the scene student")
            report.raise_if_partial()
        return io.NodeOutput(model, load_clip(), load_vae(), presets()[PRESET].schedule)


NODES = [SwDSceneStudent]
