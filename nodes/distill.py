"""SwDDistillData and SwDDistillTrain: a scale-wise student of one's own, made in the graph."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from ..swd_core.distill.buckets import shrink
from ..swd_core.distill.conditioning import Conditioning
from ..swd_core.distill.memory import MemoryData
from ..swd_core.families import ARCHITECTURES
from ..swd_core.files import check_name
from ..swd_core.lora_files import read_lora
from ..swd_core.pictures import pixels_of
from ..swd_core.schedule import ScaleSchedule
from ._host import CATEGORY, FIXED, Schedule, io, supported
from ._host_lora import apply_lora
from .fitting import check_vae
from .inputs import as_typed, checked

DistillData = io.Custom("SWD_DISTILL_DATA")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def encode_text(clip: Any, text: str) -> Conditioning:
    """What the teacher reads of a text.

    Raises:
        ValueError: if the text changes over the run.
    """
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(encoded) != 1:
        raise ValueError(
            "This CLIP encodes a text differently over the run; a student is trained with one "
            "encoding. Set schedule_clip of Set CLIP Hooks to false, or leave that node out."
        )
    [[context, extra]] = encoded
    return Conditioning(context, extra.get("pooled_output"))


def encode_pictures(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1].

    A VAE of videos, such as Qwen-Image's, would take a batch for the frames of one.
    """
    pixels = pictures.movedim(1, -1)
    if getattr(vae, "latent_dim", 2) != 3:
        return vae.encode(pixels)
    return torch.cat([vae.encode(picture[None])[:, :, 0] for picture in pixels])


def caption_lines(captions: Sequence[str], count: int) -> list[str]:
    """One caption for each picture: of one text its lines, or its only line for all; of several
    texts each.

    Raises:
        ValueError: for any other number of them.
    """
    lines = [text.strip() for text in captions]
    if len(lines) == 1:
        lines = [line.strip() for line in lines[0].splitlines() if line.strip()]
        if len(lines) == 1:
            return lines * count
    if len(lines) != count:
        raise ValueError(
            f"{len(lines)} captions for {count} pictures. Write one line for each picture, in "
            "their order, or a single line for all."
        )
    return lines


def one_batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures (B, 3, H, W) of all batches (B, H, W, C).

    Raises:
        ValueError: if they have several sizes.
    """
    sizes = dict.fromkeys(f"{batch.shape[2]}x{batch.shape[1]}" for batch in images)
    if len(sizes) > 1:
        raise ValueError(
            f"The pictures are {' and '.join([*sizes][:3])} px large. Scale or crop them to one "
            "size first."
        )
    whole = images[0] if len(images) == 1 else torch.cat([batch[..., :3] for batch in images])
    return whole[..., :3].movedim(-1, 1)  # BHWC -> BCHW


class SwDDistillData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDDistillData",
            display_name="SwD Distill Data",
            category=CATEGORY,
            description="Encodes pictures at every size of a schedule, and their captions, once. "
            "Training then needs neither VAE nor text encoder.",
            inputs=[
                io.Image.Input("images", tooltip="Finished pictures, best made by the teacher."),
                io.Clip.Input("clip", tooltip="The teacher's text encoder."),
                io.Vae.Input("vae", tooltip="The teacher's VAE."),
                Schedule.Input(
                    "schedule", tooltip="Sizes and noise levels the student will run at."
                ),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    tooltip="One line for each picture, in their order, or a single line for all.",
                ),
            ],
            outputs=[
                DistillData.Output("data", display_name="data", tooltip="For SwD Distill Train.")
            ],
            is_input_list=True,
            **supported(io.Schema, search_aliases=["train", "distill", "dataset", "SwD"]),
        )

    @classmethod
    @checked(lists=("images", "captions"))
    def execute(
        cls,
        images: list[torch.Tensor],
        clip: Any,
        vae: Any,
        schedule: ScaleSchedule,
        captions: list[str],
    ) -> io.NodeOutput:
        if not isinstance(schedule, ScaleSchedule):
            raise ValueError(
                "The schedule is one of growing, for models without a student. A student is "
                "trained for sizes of its own: connect SwD Scale Schedule."
            )
        schedule.check_picture()
        pixels = one_batch(images)
        lines = caption_lines(captions, len(pixels))
        height, width = pixels.shape[2:]
        cell = int(vae.spacial_compression_encode())
        kinds = [a for a in ARCHITECTURES.values() if a.sigma_kind == schedule.sigma_kind]
        multiple = max((a.multiple for a in kinds if a.pixels == cell), default=0)
        if not multiple:
            raise ValueError(
                f"This VAE shrinks pictures {cell} times, as that of no model which can be "
                "distilled. Connect the teacher's own VAE."
            )
        step = cell * multiple
        if height % step or width % step:
            raise ValueError(
                f"The pictures are {width}x{height} px; each side must be a multiple of {step}. "
                "Scale or crop them first."
            )
        sizes = schedule.sizes(height // cell, width // cell, multiple)
        latents = {
            size: encode_pictures(vae, shrink(pixels, (size[0] * cell, size[1] * cell)))
            for size in dict.fromkeys(sizes)
        }
        found = tuple(latents[sizes[0]].shape[2:])
        if found != sizes[0]:
            raise ValueError(
                f"This VAE makes {found} latent cells where {sizes[0]} are wanted: it is of videos "
                "or audio. Connect the teacher's own VAE."
            )
        if not all(bool(x.isfinite().all()) for x in latents.values()):
            raise ValueError(
                "The encoded pictures hold NaN or infinity: a picture does, or the VAE overflows "
                "in half precision. Look at the pictures, or start ComfyUI with --fp32-vae."
            )
        known = {line: encode_text(clip, line) for line in dict.fromkeys([*lines, ""])}
        data = MemoryData(
            schedule,
            tuple(sizes),
            latents,
            tuple(known[line] for line in lines),
            known[""],
            tuple(lines),
            (height, width),
        )
        return io.NodeOutput(data)


def check_lora_name(name: str) -> None:
    """Raises ValueError if no folder can have the name on every system."""
    if NAME.fullmatch(name) is None:
        raise ValueError(
            f"lora_name {name[:40]!r} can't name a folder: use letters, digits, _ . and -, and "
            "begin with a letter or digit."
        )
    check_name(name, "lora_name")


class SwDDistillTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDDistillTrain",
            display_name="SwD Distill Train",
            category=CATEGORY,
            description="Trains a scale-wise student of the teacher as a LoRA in models/loras. "
            "Interrupting saves first; running again with resume goes on.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The teacher as loaded, without LoRAs: SD3.5, FLUX.1, SDXL, Z-Image, "
                    "Qwen-Image, FLUX.2 klein, Krea 2, or Load SwD Scene Student with strength 0.",
                ),
                DistillData.Input(
                    "data", tooltip="From SwD Distill Data or Load SwD Prepared Data."
                ),
                io.String.Input(
                    "lora_name", default="my_student", tooltip="Its folder in models/loras."
                ),
                io.Int.Input("steps", default=500, min=1, max=1_000_000, tooltip="Steps in all."),
                io.Int.Input("rank", default=64, min=1, max=256, tooltip="Rank of the LoRA."),
                io.Float.Input(
                    "lr", default=5e-4, min=1e-7, max=1e-1, step=1e-6, round=False, tooltip="Rate."
                ),
                io.Int.Input(
                    "batch_tokens",
                    default=2048,
                    min=1,
                    max=1_000_000,
                    tooltip="Patches in a batch: smaller scales get more pictures.",
                ),
                io.Float.Input(
                    "mmd",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Weight of the patch loss.",
                ),
                io.Float.Input(
                    "dmd",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Weight of distribution matching; 0 with gan 0 is faster.",
                ),
                io.Float.Input(
                    "gan",
                    default=5e-3,
                    min=0.0,
                    max=100.0,
                    step=1e-3,
                    tooltip="Discriminator's weight.",
                ),
                io.Float.Input(
                    "guidance",
                    default=4.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Teacher's cfg for dmd.",
                ),
                io.Int.Input(
                    "fake_steps",
                    default=2,
                    min=1,
                    max=20,
                    tooltip="Fake score's steps to one of the student.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=FIXED,
                    tooltip="Of all that is random. Keep it fixed: resume needs the same.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on from the checkpoint of this name, if any.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Shows samples while the student learns."
                ),
                io.Float.Input(
                    "lr_fake",
                    default=1e-3,
                    min=1e-7,
                    max=1e-1,
                    step=1e-6,
                    round=False,
                    optional=True,
                    tooltip="Rate of the fake score. The paper's rates are 4e-6 to 5e-6 for both.",
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    optional=True,
                    tooltip="Batches to one step: larger steps without more memory.",
                ),
                io.Int.Input(
                    "block",
                    default=-1,
                    min=-1,
                    max=63,
                    optional=True,
                    tooltip="Block whose tokens the losses compare, from 0; -1 is the paper's, or "
                    "the middle. SDXL has its middle block alone.",
                ),
                io.Float.Input(
                    "embedded_guidance",
                    default=4.5,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    optional=True,
                    tooltip="FLUX.1's own guidance of teacher and student.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    optional=True,
                    tooltip="Saves a graphics card's memory: every block is computed again for its "
                    "gradient. Without effect on a CPU.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "student", display_name="model", tooltip="Teacher with the student's LoRA."
                ),
                io.String.Output("lora", display_name="lora_name", tooltip="For SwD LoRA loaders."),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Losses; samples if vae is connected."
                ),
            ],
            **supported(io.Schema, search_aliases=["train", "distill", "LoRA", "student", "SwD"]),
        )

    @classmethod
    def validate_inputs(cls, lora_name: Any) -> bool | str:
        return as_typed(check_lora_name, lora_name)

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        data: Any,
        lora_name: str,
        rank: int,
        resume: bool,
        vae: Any = None,
        block: int = -1,
        embedded_guidance: float = 4.5,
        checkpointing: bool = True,
        **widgets: Any,
    ) -> io.NodeOutput:
        from .distill_run import settings_for, train  # the trainer; it would slow every start

        check_lora_name(lora_name)
        check_vae(vae, model)
        options = {
            "rank": rank,
            "block": block,
            "embedded_guidance": embedded_guidance,
            "checkpointing": checkpointing,
        }
        settings = settings_for(model, data, lora_name, options, widgets)
        folder, picture = train(model, data, settings, vae, resume)
        student, report = apply_lora(model, read_lora(folder), 1.0, lora_name)
        report.raise_if_partial()
        return io.NodeOutput(student, lora_name, pixels_of(picture)[None])


NODES = [SwDDistillData, SwDDistillTrain]
