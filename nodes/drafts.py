"""SwDDrafts and SwDFinishDrafts: see many, finish few."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ..swd_core.drafts import (
    MAX_DRAFTS,
    AnotherSheet,
    Drafts,
    check_count,
    check_stop,
    parse_picks,
)
from ..swd_core.growth import AnySchedule
from ..swd_core.noise import MAX_SEED
from ..swd_core.resample import METHODS
from ..swd_core.schedule import MAX_STEPS
from . import draft_sheet, drafting
from ._host import CATEGORY, FIXED, Schedule, io, say, supported
from .drafting import Sampling
from .fitting import check_vae
from .inputs import checked
from .lately import LATELY
from .prompts import by_prompt, matching, named, text_in_graph
from .sampler import METHOD_TIP, MODEL_TIP, NEGATIVE_TIP, SCHEDULE_TIP

CFG = dict(default=1.0, min=0.0, max=30.0, step=0.1, round=0.01)
CFG_TIP = "Leave at exactly 1.0: students are trained without guidance."
BATCH_TIP = "Most images run at once; halved by itself where the memory does not hold them."
LISTS = ("positive", "negative")
DROPPED: Counter[str] = Counter()  # how often such clicks of another sheet were none
VAE_TIP = "Decodes the drafts for the sheet; without it the colours are rough."


def picked(node: type[io.ComfyNode], pick: str, drafts: Drafts) -> tuple[int, ...]:
    """Positions of what is picked.

    Clicks of another sheet are none where an artist runs a graph that she has changed since; a
    script that sends them, which has no page to click on, is told.

    Raises:
        ValueError: as `parse_picks`.
    """
    try:
        return parse_picks(pick, drafts)
    except AnotherSheet:
        # The page alone sends the graph as it is drawn along with each run.
        if not getattr(node.hidden, "extra_pnginfo", None):
            raise
        DROPPED[pick] += 1
        say("The drafts are new: what was picked on the sheet before is not finished")
        return ()


class SwDDrafts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDDrafts",
            display_name="SwD Drafts",
            category=CATEGORY,
            description="Runs only the first scales of many images and shows them on a contact "
            "sheet. Click those you like, or type their numbers, in the finishing node.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to show. A list, as of SwD Prompts, has a row on the sheet for "
                    "each.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the finished size, batch size 1."
                ),
                Schedule.Input("schedule", tooltip=SCHEDULE_TIP),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=FIXED,
                    tooltip="Of all drafts of the sheet. Fix it while you pick: another seed, "
                    "other drafts.",
                ),
                io.Int.Input(
                    "count",
                    default=16,
                    min=1,
                    max=MAX_DRAFTS,
                    tooltip="How many drafts of a prompt.",
                ),
                io.Int.Input(
                    "stop_after",
                    default=1,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps a draft runs; with SwD Growth Schedule, sizes. 1 is cheapest; "
                    "more look more like the finished image.",
                ),
                io.Int.Input("batch", default=16, min=1, max=MAX_DRAFTS, tooltip=BATCH_TIP),
                io.Float.Input("cfg", **CFG, tooltip=CFG_TIP),
                io.Combo.Input(
                    "upscale_method", options=list(METHODS), default="bicubic", tooltip=METHOD_TIP
                ),
                io.Vae.Input("vae", optional=True, tooltip=VAE_TIP),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=NEGATIVE_TIP,
                ),
            ],
            outputs=[
                io.Latent.Output("drafts", display_name="drafts", tooltip="For Finish SwD Drafts."),
                io.Image.Output(
                    "images", display_name="images", tooltip="Every draft, at its own size."
                ),
                io.Image.Output(
                    "sheet",
                    display_name="sheet",
                    tooltip="The contact sheet with numbers and seeds.",
                ),
            ],
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.prompt],
            **supported(
                io.Schema, search_aliases=["preview", "contact sheet", "pick", "scale-wise", "SwD"]
            ),
        )

    @classmethod
    @checked(lists=LISTS)
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        latent_image: Any,
        schedule: AnySchedule,
        seed: int,
        count: int,
        stop_after: int,
        batch: int,
        cfg: float,
        upscale_method: str,
        vae: Any = None,
        negative: Sequence[Any] = (None,),
    ) -> io.NodeOutput:
        names = named(positive, text_in_graph(cls))
        texts = by_prompt(names, positive, negative)
        total = count * len(texts)
        check_count(total, "count" if len(texts) == 1 else f"count times {len(texts)} prompts")
        drafts = drafting.begin(
            model, latent_image, schedule, seed, count, upscale_method, vae, names
        )
        check_stop(stop_after, drafts)
        check_vae(vae, model)
        sampling = Sampling(model, texts, cfg, vae)
        drafts = LATELY.draft(sampling, drafts, stop_after, batch)
        share = sampling.share(drafts)
        whole = "run at full size" if drafts.stretches else "full run"
        say(f"{total} drafts, each {share:.3f} of a {whole}; all of them {total * share:.2f} runs")
        images = draft_sheet.decode(drafts, vae, model, batch)
        sheet, shown = draft_sheet.show(drafts, images, cls, share)
        return io.NodeOutput(drafting.to_latent(drafts), images, sheet, ui=shown)


class SwDFinishDrafts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDFinishDrafts",
            display_name="Finish SwD Drafts",
            category=CATEGORY,
            description="Runs the remaining scales of the picked drafts: the same images as if "
            "they had been run straight through. Nothing picked, nothing runs.",
            inputs=[
                io.Model.Input("model", tooltip="The model the drafts were made with."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the drafts were made with; of several prompts all, in any order.",
                ),
                io.Latent.Input(
                    "drafts", tooltip="From SwD Drafts, or from this node with stop_after."
                ),
                io.String.Input(
                    "pick",
                    default="",
                    tooltip="Numbers of the contact sheet: 3, or 1,4-6, or all. Empty: none. "
                    "Click them on the sheet instead of typing; a click also names its sheet, and "
                    "on another one nothing is finished.",
                ),
                io.Int.Input(
                    "detail_seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    tooltip="0: the draft's own noise, so the image a straight run gives. Other "
                    "numbers keep the composition and roll the details anew.",
                ),
                io.Int.Input(
                    "variations",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Images of each pick: the second has detail_seed + 1, the third + 2, "
                    "...",
                ),
                io.Int.Input(
                    "stop_after",
                    default=0,
                    min=0,
                    max=MAX_STEPS,
                    tooltip="0: finish. Else stop after this step, with SwD Growth Schedule this "
                    "size, and show another sheet to pick from.",
                ),
                io.Int.Input("batch", default=4, min=1, max=MAX_DRAFTS, tooltip=BATCH_TIP),
                io.Float.Input("cfg", **CFG, tooltip=CFG_TIP),
                io.Vae.Input("vae", optional=True, tooltip=VAE_TIP + " Only used with stop_after."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=NEGATIVE_TIP,
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The finished latents, in the order picked.",
                ),
                io.Latent.Output(
                    "scales",
                    display_name="scales",
                    is_output_list=True,
                    tooltip="A latent for every scale, to decode for SwD Scale Strip.",
                ),
            ],
            is_input_list=True,
            hidden=[io.Hidden.extra_pnginfo],
            **supported(
                io.Schema, search_aliases=["continue", "pick", "variations", "scale-wise", "SwD"]
            ),
        )

    @classmethod
    def fingerprint_inputs(cls, pick: Sequence[str | None] = ("",), **_: Any) -> int:
        """So that what the host keeps of clicks that were none is no answer to a script.

        What a link will bring isn't known here: it may be any of them.
        """
        return DROPPED.total() if pick[0] is None else DROPPED[pick[0]]

    @classmethod
    @checked(lists=LISTS)
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        drafts: Any,
        pick: str,
        detail_seed: int,
        variations: int,
        stop_after: int,
        batch: int,
        cfg: float,
        vae: Any = None,
        negative: Sequence[Any] = (None,),
    ) -> io.NodeOutput:
        known = drafting.from_latent(drafts)
        positions = picked(cls, pick, known)
        if not positions:
            return io.NodeOutput(ExecutionBlocker(None), [ExecutionBlocker(None)])
        check_count(len(positions) * variations, "The number of picks times variations")
        if stop_after:
            check_stop(stop_after, known)
            check_vae(vae, model)
        chosen = known.choose(positions).vary(detail_seed, variations)
        texts = matching(by_prompt(named(positive), positive, negative), chosen.images)
        sampling, until = Sampling(model, texts, cfg, vae), stop_after or known.last
        done = LATELY.finish(sampling, chosen, until, batch)
        scales = drafting.every_scale(done, model)
        if not stop_after:
            return io.NodeOutput({"samples": done.samples}, scales)
        images = draft_sheet.decode(done, vae, model, batch)
        _, shown = draft_sheet.show(done, images, cls, sampling.share(done))
        return io.NodeOutput(drafting.to_latent(done), scales, ui=shown)


NODES = [SwDDrafts, SwDFinishDrafts]
