"""SwDSample and SwDSampler: scale-wise sampling in one node, or as a SAMPLER for any guider."""

from typing import Any

import torch

from ..swd_core.growth import AnySchedule
from ..swd_core.noise import MAX_SEED, SeededNoise
from ..swd_core.resample import METHODS
from . import _host, _host_latent, _host_model
from ._host import CATEGORY, Schedule, io, supported
from .checks import check_run
from .growth_sampler import sampler_of
from .inputs import checked
from .preview import run_callback

METHOD_TIP = (
    "How the clean prediction is enlarged between steps. The students are trained with bicubic."
)
MODEL_TIP = "A SwD student: base model with its LoRA. Or any model, with SwD Growth Schedule."
SCHEDULE_TIP = "From SwD Scale Schedule or SwD Growth Schedule."
SAMPLER_TIP = (
    "For SwD Growth Schedule: a sampler with options of its own, in place of the schedule's."
)
NEGATIVE_TIP = "What to avoid; while cfg is 1.0 only patches of the model such as NAG read it."


class SwDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDSampler",
            display_name="SwD Sampler",
            category=CATEGORY,
            description="Scale-wise sampling as a SAMPLER for SamplerCustomAdvanced and "
            "every guider. Give "
            "that node the latent of the finished size and this schedule's sigmas.",
            inputs=[
                Schedule.Input(
                    "schedule", tooltip="From SwD Scale Schedule; gives the size of every step."
                ),
                io.Combo.Input(
                    "upscale_method", options=list(METHODS), default="bicubic", tooltip=METHOD_TIP
                ),
                io.Sampler.Input("sampler", optional=True, tooltip=SAMPLER_TIP),
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler_out", display_name="sampler", tooltip="For SamplerCustomAdvanced."
                )
            ],
            **supported(io.Schema, search_aliases=["scale-wise", "SwD", "LCM scalewise"]),
        )

    @classmethod
    @checked()
    def execute(
        cls, schedule: AnySchedule, upscale_method: str, sampler: Any = None
    ) -> io.NodeOutput:
        return io.NodeOutput(sampler_of(schedule, upscale_method, solver=sampler))


def start_sigmas(model: Any, sigmas: torch.Tensor, strength: float) -> torch.Tensor:
    """The rest of `sigmas` (steps + 1,) that an image-to-image run of a denoise strength takes.

    The strength means the host's own noise level for it. The run begins at the first step whose
    sigma is not above that; below the last step's, one step at exactly that level.
    """
    top = float(_host_model.noise_table(model).percent_to_sigma(1 - strength))
    for step, sigma in enumerate(sigmas.tolist()[:-1]):
        if sigma <= 1.01 * top:
            return sigmas[step:]
    return sigmas.new_tensor([top, 0.0])


class SwDSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDSample",
            display_name="SwD Sample",
            category=CATEGORY,
            description="Generates images scale by scale with a SwD student: starts small, "
            "enlarges its clean prediction at every step and ends at the latent's size.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input("positive", tooltip="What to show."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the finished size."),
                Schedule.Input("schedule", tooltip=SCHEDULE_TIP),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Same seed, same picture, whatever else is in the batch.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Leave at exactly 1.0: students are trained without guidance, "
                    "and any other value runs the model twice.",
                ),
                io.Combo.Input(
                    "upscale_method", options=list(METHODS), default="bicubic", tooltip=METHOD_TIP
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=NEGATIVE_TIP,
                ),
                io.Float.Input(
                    "start_at",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of latent_image to make anew. 1 starts from noise. "
                    "Less keeps its picture and skips the first scales, by the same strengths as "
                    "the denoise of KSampler; 0 returns it as it is.",
                ),
                io.Sampler.Input("sampler", optional=True, tooltip=SAMPLER_TIP),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The finished latent, to decode."
                )
            ],
            **supported(io.Schema, search_aliases=["scale-wise", "SwD", "KSampler"]),
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: Any,
        schedule: AnySchedule,
        seed: int,
        cfg: float,
        upscale_method: str,
        negative: Any = None,
        start_at: float = 1.0,
        sampler: Any = None,
    ) -> io.NodeOutput:
        latent = _host_latent.check_latent(latent_image, model)
        _host_model.check_prediction(model, schedule)
        samples = latent["samples"]
        _host.check_cfg(cfg, negative, model)
        sigmas = _host_model.schedule_sigmas(model, schedule)
        if start_at < 1:
            if not samples.any():
                raise ValueError(
                    f"start_at is {start_at:g}, but latent_image is empty: there is no picture to "
                    "start from. Connect a VAE Encode node, or set start_at to 1."
                )
            sigmas = start_sigmas(model, sigmas, start_at)
            if sigmas[0] <= 0:  # at 0, and at what rounds to it
                return io.NodeOutput(latent)
        guider = _host.cfg_guider(model, positive, negative, cfg)
        check_run(guider, schedule, samples, sigmas.tolist())
        indices = _host_latent.image_indices(latent)
        ours = sampler_of(schedule, upscale_method, indices, solver=sampler)
        sizes = ours.sizes(model, sigmas.tolist(), tuple(samples.shape[2:]))
        _host.seed_patches(seed)
        samples = guider.sample(
            SeededNoise(seed, indices)(0, samples.shape),
            samples,
            ours,
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=run_callback(model, sizes),
            disable_pbar=_host.pbar_disabled(),
            seed=seed,
        )
        return io.NodeOutput({**latent, "samples": _host.to_output_device(samples)})


NODES = [SwDSampler, SwDSample]
