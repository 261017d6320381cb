"""SwDGrowthSchedule: any model over growing sizes; when it grows, and what that costs."""

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..swd_core.growth import DELTAS, MOST_SIZES, GrowthSchedule
from ..swd_core.schedule import MAX_STEPS
from . import _host, _host_latent, _host_model, solvers
from ._host import CATEGORY, Schedule, io, supported, ui
from .fitting import check_vae
from .growth_sampler import PixelGrowth
from .inputs import checked
from .levels import latent_kind, model_levels
from .plot import steps_plot, steps_table
from .schedule_choice import USUAL_TARGET
from .spectra import law_of

AUTO, CUSTOM = "auto", "custom"
LIFTS = (AUTO, "spectral", "swd", "pixels")
MANY_STEPS = 10  # from here on `auto` doesn't go through pixels


def model_sigmas(
    model: Any, solver: str, scheduler: str, steps: int, size: Sequence[int]
) -> tuple[Tensor, str]:
    """SIGMAS (steps + 1,) as the host's KSampler makes them, and how they were made.

    auto is FLUX.2's own rule for FLUX.2, which goes by steps and size, and else "simple".

    Args:
        size: of the target in latent cells, (height, width).
    """
    if scheduler != AUTO:
        return _plain_sigmas(model, solver, scheduler, steps), f"sigmas: {scheduler}"
    if type(model.model).__name__ == "Flux2":  # not by its latents, which ERNIE-Image has too
        sigmas = _host.flux2_sigmas(steps, size[0] * size[1])
        return sigmas, "sigmas: auto, FLUX.2's own for this size"
    return _plain_sigmas(model, solver, "simple", steps), "sigmas: auto, simple"


def _plain_sigmas(model: Any, solver: str, scheduler: str, steps: int) -> Tensor:
    return comfy.samplers.KSampler(
        model, steps=steps, device=torch.device("cpu"), sampler=solver, scheduler=scheduler
    ).sigmas


def growth_levels(sigmas: Tensor) -> tuple[float, ...]:
    """SIGMAS as a `GrowthSchedule` has them, without the last.

    Raises:
        ValueError: if they don't fall to 0.
    """
    levels = [float(s) for s in sigmas.flatten()]
    if len(levels) < 2 or levels[-1] != 0:
        raise ValueError(
            f"The sigmas have {len(levels)} values"
            + (f" and end at {levels[-1]:g}" if levels else "")
            + "; a growth schedule needs the whole run, down to 0. Cut them after this node, at "
            "SamplerCustomAdvanced."
        )
    return tuple(levels[:-1])


def chosen_lift(lift: str, steps: int, vae: Any) -> tuple[str, str]:
    """The lift that is meant, and why.

    Raises:
        ValueError: if it needs a VAE that isn't there.
    """
    if lift == "pixels" and vae is None:
        raise ValueError(
            "lift is pixels, which enlarges the picture and encodes it again, but no VAE is "
            "connected. Connect the model's, or choose spectral."
        )
    if lift != AUTO:
        return lift, f"lift: {lift}, as chosen"
    if steps >= MANY_STEPS:
        return "spectral", f"lift: auto, spectral, as there are {MANY_STEPS} steps or more"
    if vae is not None:
        return "pixels", (
            f"lift: auto, through pixels, as there are less than {MANY_STEPS} steps and a VAE"
        )
    return "spectral", (
        f"lift: auto, spectral, though pixels suit less than {MANY_STEPS} steps better: no VAE is "
        "connected"
    )


class SwDGrowthSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDGrowthSchedule",
            display_name="SwD Growth Schedule",
            category=CATEGORY,
            description="Lets any model begin small and grow: it works out at which noise level "
            "each size is enough and shows what that saves. In place of SwD Scale Schedule, for "
            "models that are no SwD students.",
            inputs=[
                io.Model.Input("model", tooltip="Any picture or video model; no LoRA is needed."),
                io.Combo.Input(
                    "sampler_name",
                    options=solvers.solver_names(),
                    default="euler",
                    tooltip="Makes the steps, as in KSampler. One with options of its own goes "
                    "into the sampler input.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[AUTO, *comfy.samplers.KSampler.SCHEDULERS],
                    default=AUTO,
                    tooltip="Noise levels, as in KSampler. auto: FLUX.2's own for the size, and "
                    "simple for every other model. Not used where sigmas are connected.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps of the whole run, as many as the model usually takes.",
                ),
                io.Float.Input(
                    "start_size",
                    default=0.5,
                    min=0.1,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Side of the smallest size, as a share of the finished one.",
                ),
                io.Int.Input(
                    "sizes",
                    default=2,
                    min=1,
                    max=MOST_SIZES,
                    tooltip="How many sizes there are, each larger by the same factor. 1: no "
                    "growing.",
                ),
                io.Combo.Input(
                    "tolerance",
                    options=[*DELTAS, CUSTOM],
                    default="balanced",
                    tooltip="What a small size may lose: the more, the longer it is used. "
                    + ", ".join(f"{name} {delta:g}" for name, delta in DELTAS.items())
                    + ".",
                ),
                io.Float.Input(
                    "custom_tolerance",
                    default=0.05,
                    min=0.0001,
                    max=0.99,
                    step=0.005,
                    round=0.0001,
                    tooltip="For custom: the share of the model's own direction that may be lost.",
                ),
                io.Combo.Input(
                    "lift",
                    options=list(LIFTS),
                    default=AUTO,
                    tooltip="How a picture gets to the next size. spectral keeps latent and "
                    "noise; swd enlarges the clean prediction and noises it afresh, as students "
                    "are trained to; pixels does so by way of the picture. auto: pixels below 10 "
                    "steps where a VAE is connected, else spectral.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="The target-size latent: for table and plot, and for FLUX.2's sigmas.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="From any scheduler node, down to 0; in place of scheduler and steps.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's, for the lift pixels."),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="A sampler with options of its own, in place of sampler_name; it goes "
                    "along with the schedule, to drafts, too.",
                ),
            ],
            outputs=[
                Schedule.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="For SwD Sample, SwD Sampler and SwD Drafts.",
                ),
                io.Sigmas.Output(
                    "sigmas_out", display_name="sigmas", tooltip="For SamplerCustomAdvanced."
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="What each step does and costs."
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Size and sigma against cost."
                ),
            ],
            **supported(
                io.Schema,
                search_aliases=["scale-wise", "sigmas", "scheduler", "progressive", "faster"],
            ),
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        sampler_name: str,
        scheduler: str,
        steps: int,
        start_size: float,
        sizes: int,
        tolerance: str,
        custom_tolerance: float,
        lift: str,
        latent_image: Any = None,
        sigmas: Any = None,
        vae: Any = None,
        sampler: Any = None,
    ) -> io.NodeOutput:
        options: dict[str, float | str] = {}
        if sampler is not None:
            sampler_name, options = solvers.settings_of(sampler)
        levels = model_levels(model)
        target = _target(model, latent_image)
        given, made = (
            model_sigmas(model, sampler_name, scheduler, steps, target[-2:])
            if sigmas is None
            else (sigmas, "sigmas: as connected")
        )
        law, whose = law_of(model)
        check_vae(vae, model)
        falling = growth_levels(given)
        lift, why = chosen_lift(lift, len(falling), vae)
        schedule = GrowthSchedule(
            sigmas=falling,
            start=start_size,
            count=sizes,
            delta=DELTAS.get(tolerance, custom_tolerance),
            law=law,
            lift=lift,
            solver=sampler_name,
            options=options,
            kind=levels.kind,
            top=levels.top,
            noise_scale=levels.noise_scale,
            name=f"growth, {tolerance}",
            latents=latent_kind(model),
        )
        if lift == "pixels":
            schedule = PixelGrowth(**vars(schedule), vae=vae)
        text, picture = _shown(schedule, model, target, [made, why, whose])
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(schedule, given, text, picture, ui=shown)


def _target(model: Any, latent_image: Any) -> tuple[int, ...]:
    """Latent (height, width), or (frames, height, width); of 1024 pixels where there is none."""
    if latent_image is not None:
        return tuple(_host_latent.check_latent(latent_image, model)["samples"].shape[2:])
    pixels, multiple = _host_model.cell_pixels(model), _host_model.patch_multiple(model)
    side = max(multiple, USUAL_TARGET // pixels // multiple * multiple)
    video = model.get_model_object("latent_format").latent_dimensions == 3
    return (1, side, side) if video else (side, side)


def _shown(
    schedule: GrowthSchedule, model: Any, target: Sequence[int], reasons: list[str]
) -> tuple[str, Tensor]:
    """The table and the plot."""
    *frames, height, width = target
    multiple = _host_model.patch_multiple(model)
    run = schedule.stretches(
        height,
        width,
        multiple,
        shortest=solvers.shortest(solvers.solver_of(schedule)),
        frames=frames[0] if frames else None,
    )
    steps = [part.size for part in run for _ in range(part.steps)]
    pixels = _host_model.cell_pixels(model)
    seen = [sigma for part in run for sigma in part.sigmas[:-1]]
    others = seen if len(run) > 1 and schedule.lift == "spectral" else ()
    lines = steps_table(schedule.name, steps, schedule.sigmas, pixels, others)
    found = len(schedule.sizes(height, width, multiple))
    if schedule.grows and found < schedule.count:
        reasons = [*reasons, f"sizes: {found} of {schedule.count}; rounding makes the others alike"]
    if schedule.grows and len(run) == 1:
        reasons = [*reasons, "no step is run smaller: raise tolerance, or take more steps"]
    return "\n".join([*lines, *reasons]), steps_plot(schedule.name, steps, schedule.sigmas, pixels)


NODES = [SwDGrowthSchedule]
