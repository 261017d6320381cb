"""What shows on a graphics card alone, asked of the processor."""

import gc
import weakref

import pytest
import torch
from chain import call, cfg_guider, hosted, scalewise
from grown import growth
from host_training import packed
from paper import SEED, guided, schedule_of
from PIL import Image
from played_card import OnCard
from torch.utils._python_dispatch import TorchDispatchMode

SIDE = (32, 24)


@pytest.fixture
def no_collector():
    """Python without its look for circles, as between two of them."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Run:
    """Ways to make a picture with a MODEL."""

    def __init__(self, pack, small, model):
        self.pack, self.model, self.positive = pack, model, guided(small, "sd35-medium")
        self.latent = {"samples": torch.zeros(1, 16, *SIDE)}

    def host(self):
        call(
            "nodes:KSampler", self.model, SEED, 2, 1.0, "euler", "simple", self.positive,
            self.positive, self.latent,
        )  # fmt: skip

    def student(self):
        self._sample(schedule_of(self.pack, self.model, "sd35-medium-4")[0])

    def students_sampler(self):
        guider = cfg_guider(self.model, self.positive)
        scalewise(self.pack, "sd35-medium-4", guider, size=SIDE, latent=self.latent)

    def spectral(self):
        self._sample(self._grown(sampler_name="dpmpp_2m"))

    def drawing(self):
        self._sample(self._grown(sampler_name="euler_ancestral"))

    def enlarging(self):
        self._sample(self._grown(lift="swd"))

    def drafts(self):
        given = {"model": self.model, "positive": self.positive, "cfg": 1.0, "batch": 2}
        drafts = hosted(
            self.pack["SwDDrafts"], latent_image=self.latent, schedule=self._grown(), seed=SEED,
            count=2, stop_after=1, upscale_method="bicubic", **given,
        ).args[0]  # fmt: skip
        hosted(
            self.pack["SwDFinishDrafts"], drafts=drafts, pick="1", detail_seed=0, variations=1,
            stop_after=0, **given,
        )  # fmt: skip

    def _grown(self, **widgets):
        given = {"sizes": 3, "custom_tolerance": 0.1, **widgets}
        return growth(self.pack, self.model, self.latent["samples"], **given)[0]

    def _sample(self, schedule):
        self.pack["SwDSample"].execute(
            model=self.model, positive=self.positive, latent_image=self.latent, schedule=schedule,
            seed=SEED, cfg=1.0, upscale_method="bicubic",
        )  # fmt: skip


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "way",
    ["host", "student", "students_sampler", "spectral", "drawing", "enlarging", "drafts"],
)
def test_no_run_holds_its_model_longer_than_the_hosts_own(pack, small, models, way):
    """The host takes a model for used, and its memory on a card with it, while anything holds it.

    Its count of loaded models stumbles over one that goes while it makes room for another.
    """
    run = Run(pack, small, models["sd35-medium"].clone())
    with torch.inference_mode():
        getattr(run, way)()
    gone = weakref.ref(run.model)
    del run
    assert gone() is None


class Hurried(TorchDispatchMode):
    """Counts copies that nobody waits for."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += bool((kwargs or {}).get("non_blocking"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["latent2rgb", "taesd"])
def test_a_preview_waits_for_the_picture_that_it_shows(pack, method):
    """The host reads what it copies off the card at once, often before the step has come to it."""
    import comfy.latent_formats
    import comfy.model_management
    import latent_preview
    from comfy.taesd.taesd import TAESD

    device = comfy.model_management.get_torch_device()
    if method == "taesd":
        decoder = TAESD(None, None, latent_channels=16).to(device)
        previewer = latent_preview.TAESDPreviewerImpl(decoder)
    else:
        form = comfy.latent_formats.SD3
        previewer = latent_preview.Latent2RGBPreviewer(form().latent_rgb_factors)
    x0 = torch.randn(3, 16, 8, 12).to(device)
    with Hurried() as theirs:
        previewer.decode_latent_to_preview(x0)
    with Hurried() as ours:
        shown = packed("nodes.preview").decoded(previewer, x0)
    assert theirs.seen and not ours.seen and len(shown) == 3


def test_drafts_that_were_run_before_are_shown_by_the_previewers_device(pack, models, monkeypatch):
    """A decoder of previews lies on the card; what is remembered lies in main memory."""
    preview, core = packed("nodes.preview"), packed("swd_core.drafts")
    model, seen = models["sd35-medium"].clone(), []
    model.load_device = torch.device("meta")

    class Previewer:
        def decode_latent_to_preview_image(self, kind, row):
            seen.append(row.device.type)
            return kind, Image.new("RGB", (8, 8)), 512

    monkeypatch.setattr(preview, "previewer_of", lambda _: Previewer())
    images = (core.Draft(SEED, 0), core.Draft(SEED, 1))
    schedule = schedule_of(pack, models["sd35-medium"], "sd35-medium-4")[0]
    drafts = core.Drafts(schedule, "sd35-medium", SIDE, images)
    live = preview.LiveSheet(model, drafts, [SIDE])
    live.show(0, 0, torch.zeros(2, 16, *SIDE))
    assert seen == ["meta"] * 2


def test_a_sheet_whose_latents_are_on_the_card_is_kept_beside_files(pack, models, folders):
    """As with --gpu-only: which drafts lie on the tray is asked of files, in main memory."""
    core, tray = packed("swd_core.drafts"), packed("nodes.tray_files")
    schedule = schedule_of(pack, models["sd35-medium"], "sd35-medium-4")[0]
    x0 = torch.randn(2, 16, 16, 12)
    drafts = core.Drafts(
        schedule, "sd35-medium", SIDE, (core.Draft(SEED, 0), core.Draft(SEED, 1)), (x0,), x0,
        latent=torch.zeros(1, 16, *SIDE), mask=torch.ones(1, 1, *SIDE),
    )  # fmt: skip
    sheets = packed("nodes.shown").Shown()
    sheets.add("sheet", drafts.map(OnCard))
    [name] = tray.keep(drafts, "2")
    assert tray.lying(sheets.sheets["sheet"], range(2)) == {1: name}


def test_what_is_remembered_of_drafts_is_in_main_memory(pack, models):
    """The host counts on the card's memory, and a run finds what it remembers where it computes."""
    core, lately = packed("swd_core.drafts"), packed("nodes.lately").Lately()
    schedule = schedule_of(pack, models["sd35-medium"], "sd35-medium-4")[0]
    x0 = torch.randn(1, 16, 16, 12)
    drafts = core.Drafts(schedule, "sd35-medium", SIDE, (core.Draft(SEED, 0),), (x0,), x0, x_t=x0)
    number = packed("nodes.lately").number_of(models["sd35-medium"])
    lately._remember((number, "run"), drafts.map(OnCard))
    [row] = lately.rows.values()
    assert {type(x) for x in (*row.scales, row.samples, row.x_t)} == {torch.Tensor}


def test_drafts_are_fetched_once_all_steps_are_queued(pack, small, models, monkeypatch):
    """Each copy off a card waits for all that it has to do still."""
    run, order = Run(pack, small, models["sd35-medium"].clone()), []
    host = packed("nodes._host")
    fetch = host.to_output_device

    def noted(samples):
        order.append("copy")
        return fetch(samples)

    def called(apply, args):
        order.append("step")
        return apply(args["input"], args["timestep"], **args["c"])

    monkeypatch.setattr(host, "to_output_device", noted)
    run.model.set_model_unet_function_wrapper(called)
    schedule = schedule_of(pack, run.model, "sd35-medium-4")[0]
    with torch.inference_mode():
        hosted(
            pack["SwDDrafts"], model=run.model, positive=run.positive, latent_image=run.latent,
            schedule=schedule, seed=SEED, count=2, batch=2, stop_after=3, cfg=1.0,
            upscale_method="bicubic",
        )  # fmt: skip
    assert order[:3] == ["step"] * 3 and "step" not in order[3:]
