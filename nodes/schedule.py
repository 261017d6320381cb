"""SwDScaleSchedule: which size and which noise level each step runs at, and what that costs."""

from dataclasses import replace
from typing import Any

from ..swd_core.presets import presets
from . import _host_latent, _host_lora, _host_model
from ._host import CATEGORY, Schedule, io, supported, ui
from .inputs import checked
from .plot import schedule_plot, steps_table
from .schedule_choice import (
    AUTO,
    CUSTOM,
    USER_FILE,
    USUAL_TARGET,
    choose,
    custom_schedule,
    eta_note,
    longer,
    named_schedule,
    origin,
    travelling_name,
    user_presets,
)

STRETCH, EXTEND = "stretch", "extend"


class SwDScaleSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        menu = [
            AUTO,
            *presets(),
            *(travelling_name(n, p) for n, p in user_presets().items()),
            CUSTOM,
        ]
        return io.Schema(
            node_id="SwDScaleSchedule",
            display_name="SwD Scale Schedule",
            category=CATEGORY,
            description="Chooses the size and the noise level of every step of a scale-wise "
            "run and shows what it costs. Auto picks the preset of the loaded student.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The student: auto picks by it, and a wrong preset is refused."
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="The target-size latent, for the table, the plot and extend. "
                    "Without it they show the preset's own size.",
                ),
                io.Combo.Input(
                    "preset",
                    options=menu,
                    default=AUTO,
                    tooltip="Leave on auto for published students. Your own presets come from "
                    f"{USER_FILE} in ComfyUI's user folder. custom reads the two lists below.",
                ),
                io.String.Input(
                    "custom_sizes",
                    default="0.5 0.625 0.75 1",
                    tooltip="For custom: one size per step, never falling, as fractions of "
                    "the target, or in pixels or latent cells with the target last.",
                ),
                io.String.Input(
                    "custom_sigmas",
                    default="1 0.8959 0.7371 0.6022",
                    tooltip="For custom: one noise level per step, falling, without the last "
                    "0. 0 to 1 for "
                    "SD3.5 and FLUX; timesteps up to 1000 for SDXL.",
                ),
                io.Combo.Input(
                    "large_targets",
                    options=[STRETCH, EXTEND],
                    default=STRETCH,
                    optional=True,
                    tooltip="For a latent_image larger than the student was trained for: stretch "
                    "enlarges every step with it; extend keeps the trained sizes and adds steps.",
                ),
                io.String.Input(
                    "custom_frames",
                    default="",
                    optional=True,
                    tooltip="For custom and a video: frames of each step, never falling, as "
                    "fractions of the time, or as numbers of frames with the target last. Empty: "
                    "all frames in every step.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Where a step has the size of the one before: how much of the noise "
                    "that the model found it goes on with; the rest is fresh. Steps that grow "
                    "always get fresh noise.",
                ),
            ],
            outputs=[
                Schedule.Output(
                    "schedule", display_name="schedule", tooltip="For SwD Sample and SwD Sampler."
                ),
                io.Sigmas.Output(
                    "sigmas", display_name="sigmas", tooltip="For SamplerCustomAdvanced."
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="What each step does and costs."
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Size and sigma against cost."
                ),
            ],
            **supported(
                io.Schema, search_aliases=["scale-wise", "sigmas", "scheduler", "SwD preset"]
            ),
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any, custom_sizes: Any, custom_sigmas: Any, custom_frames: Any = ""
    ) -> bool | str:
        lists = (custom_sizes, custom_sigmas, custom_frames)
        try:
            # None is linked, so not known yet: execute looks again.
            if preset == CUSTOM and None not in lists:
                custom_schedule(*lists)
            elif preset not in (None, AUTO, CUSTOM):
                named_schedule(preset)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @checked("preset")
    def execute(
        cls,
        model: Any,
        preset: str,
        custom_sizes: str,
        custom_sigmas: str,
        latent_image: Any = None,
        large_targets: str = STRETCH,
        custom_frames: str = "",
        eta: float = 0.0,
    ) -> io.NodeOutput:
        family = _host_model.model_family(model)
        own = _host_lora.own_schedule(model)
        schedule, entry = choose(preset, family, custom_sizes, custom_sigmas, own, custom_frames)
        _host_model.check_prediction(model, schedule)
        source = origin(preset, family, schedule, own)
        samples = None
        pixels, multiple = _host_model.cell_pixels(model), _host_model.patch_multiple(model)
        side = max(multiple, USUAL_TARGET // pixels // multiple * multiple)
        frames, height, width = entry.latent_target(pixels) if entry else (None, side, side)
        if latent_image is not None:
            samples = _host_latent.check_latent(latent_image, model)["samples"]
            frames = samples.shape[2] if samples.ndim == 5 else None
            height, width = samples.shape[-2:]
            if frames is None:
                schedule.check_picture()
        if large_targets == EXTEND:
            schedule = longer(schedule, entry, samples, pixels)
        schedule = replace(schedule, eta=eta or schedule.eta)
        sigmas = _host_model.schedule_sigmas(model, schedule)
        levels = sigmas.tolist()
        sizes = schedule.sizes(height, width, multiple, frames)
        rows = steps_table(schedule.name, sizes, levels, pixels)
        table = "\n".join([*rows, source, *eta_note(schedule.eta, sizes)])
        plot = schedule_plot(schedule, height, width, multiple, levels, frames, pixels)
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), **ui.PreviewText(table).as_dict()}
        return io.NodeOutput(schedule, sigmas, table, plot, ui=shown)


NODES = [SwDScaleSchedule]
