"""Lifts through pixels: what the VAE is given, where its picture is taken, drafts and files."""

import gc
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from chain import call, hosted
from grown import growth, sampler_of
from paper import SEED, guided, relative

SIZE, SMALL = (16, 24), (8, 12)


class WatchedVAE:
    """Writes down what it is given. Decodes to plain grey; encodes to a latent of ones."""

    def __init__(self):
        self.decoded, self.encoded = [], []

    def decode(self, samples):
        self.decoded.append(samples.cpu())
        *_, height, width = samples.shape
        return torch.full((len(samples), height * 8, width * 8, 3), 0.5)

    def encode(self, pixels):
        self.encoded.append(pixels)
        count, height, width, _ = pixels.shape
        return torch.ones(count, 16, height // 8, width // 8)


def run(pack, small, model, schedule, **more):
    with torch.inference_mode():
        return call(
            pack["SwDSample"], model=model, positive=guided(small, "sd35-medium"),
            latent_image={"samples": torch.zeros(1, 16, *SIZE)}, schedule=schedule, seed=SEED,
            cfg=1.0, upscale_method="bicubic", **more,
        )["samples"]  # fmt: skip


def schedule_of(pack, model, vae, **widgets):
    given = {"lift": "pixels", "steps": 6, "custom_tolerance": 0.5, **widgets}
    return growth(pack, model, vae=vae, **given)


def test_the_picture_of_the_small_size_goes_through_the_vae_once(pack, small, models):
    """Its latents are in the VAE's units, and the levels of the run are those of the SIGMAS."""
    vae, seen, model = WatchedVAE(), [], models["sd35-medium"].clone()
    schedule = schedule_of(pack, model, vae)[0]

    def watch(apply, args):
        seen.append((args["input"].detach().clone().cpu(), float(args["timestep"][0])))
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    out = run(pack, small, model, schedule)
    assert out.shape == (1, 16, *SIZE) and torch.isfinite(out).all()
    [given], [picture] = vae.decoded, vae.encoded
    assert tuple(given.shape) == (1, 16, *SMALL)
    assert tuple(picture.shape) == (1, SIZE[0] * 8, SIZE[1] * 8, 3)
    levels = torch.tensor([level for _, level in seen])
    assert torch.allclose(levels / levels[0], torch.tensor(schedule.sigmas), atol=1e-3)
    # SelfLift: 0.4 of the places take .5 to 1 of what the VAE made, all others the nearest cells.
    clean = model.model.process_latent_in(given)
    ones = model.model.process_latent_in(torch.ones(1, 16, *SIZE))
    nearest = F.interpolate(clean, SIZE, mode="nearest-exact")
    sigma = schedule.sigmas[len([x for x, _ in seen if x.shape[-2:] == SMALL])]
    first = next(x for x, _ in seen if x.shape[-2:] == SIZE)
    noise = sys.modules["swd_pack.swd_core.noise"].draw_noise
    step = schedule.sigmas.index(sigma)
    x0 = (first - sigma * noise(SEED, (0,), step, (16, *SIZE))) / (1 - sigma)
    weight = ((x0 - nearest) * (ones - nearest)).sum(1) / (ones - nearest).square().sum(1)
    assert relative(x0, nearest + weight[:, None] * (ones - nearest)) < 1e-3
    taken = weight > 0.25
    assert abs(float(taken.float().mean()) - 0.4) < 0.01
    assert weight[taken].min() > 0.49 and weight[~taken].abs().max() < 1e-3


def test_auto_says_which_lift_and_why(pack, models):
    model, vae = models["sd35-medium"], WatchedVAE()
    for steps, one, lift, says in (
        (8, vae, "pixels", "through pixels, as there are less than 10 steps"),
        (8, None, "spectral", "no VAE is connected"),
        (12, vae, "spectral", "as there are 10 steps or more"),
    ):
        schedule, _, table, _ = schedule_of(pack, model, one, lift="auto", steps=steps)
        assert schedule.lift == lift and says in table
    with pytest.raises(ValueError, match="no VAE is connected"):
        schedule_of(pack, model, None)


def test_drafts_from_a_file_need_the_vae_at_the_finishing_node(pack, small, models, tmp_path):
    model, vae = models["sd35-medium"], WatchedVAE()
    files, drafting = (
        sys.modules[f"swd_pack.{name}"] for name in ("swd_core.draft_files", "nodes.drafting")
    )
    schedule = schedule_of(pack, model, vae)[0]
    shared = {"model": model, "positive": guided(small, "sd35-medium"), "cfg": 1.0, "batch": 1}
    with torch.inference_mode():
        drafts = hosted(
            pack["SwDDrafts"], **shared, latent_image={"samples": torch.zeros(1, 16, *SIZE)},
            schedule=schedule, seed=SEED, count=1, stop_after=1, upscale_method="bicubic",
        ).args[0]  # fmt: skip
        files.save_drafts(drafting.from_latent(drafts), tmp_path / "x.drafts.safetensors")
        back = drafting.to_latent(files.load_drafts(tmp_path / "x.drafts.safetensors"))
        finish = {**shared, "pick": "1", "detail_seed": 0, "variations": 1, "stop_after": 0}
        with pytest.raises(ValueError, match="finishing node"):
            hosted(pack["SwDFinishDrafts"], drafts=back, **finish)
        again = hosted(pack["SwDFinishDrafts"], drafts=back, vae=vae, **finish).args[0]["samples"]
        here = hosted(pack["SwDFinishDrafts"], drafts=drafts, **finish).args[0]["samples"]
    assert torch.equal(again, here)
    assert torch.equal(here, run(pack, small, model, schedule))


def test_a_sampler_of_the_schedule_has_the_vae_with_it(pack, small, models):
    schedule = schedule_of(pack, models["sd35-medium"], WatchedVAE())[0]
    assert sampler_of(pack, schedule).vae is schedule.vae
    assert "vae" not in schedule.to_dict()


def drafted(pack, small, model, schedule):
    with torch.inference_mode():
        return hosted(
            pack["SwDDrafts"], model=model, positive=guided(small, "sd35-medium"), cfg=1.0, batch=1,
            latent_image={"samples": torch.zeros(1, 16, *SIZE)}, schedule=schedule, seed=SEED,
            count=1, stop_after=1, upscale_method="bicubic",
        ).args[0]  # fmt: skip


def test_what_is_remembered_of_drafts_keeps_no_vae_alive(pack, small, models, folders):
    model, vae = models["sd35-medium"], WatchedVAE()
    drafts = drafted(pack, small, model, schedule_of(pack, model, vae)[0])
    assert drafts["swd_drafts"].schedule.vae is vae, "as finishing needs it"
    again = drafted(pack, small, model, schedule_of(pack, model, vae)[0])
    assert again["swd_drafts"].schedule.vae is vae
    gone = weakref.ref(vae)
    del vae, drafts, again
    gc.collect()
    assert gone() is None


def test_drafts_through_another_vae_are_others(pack, small, models, folders):
    model, vaes = models["sd35-medium"], [WatchedVAE(), WatchedVAE()]
    three = {"sizes": 3, "steps": 9}
    for vae in vaes:
        drafts = drafted(pack, small, model, schedule_of(pack, model, vae, **three)[0])
        with torch.inference_mode():
            hosted(
                pack["SwDFinishDrafts"], model=model, positive=guided(small, "sd35-medium"),
                cfg=1.0, batch=1, drafts=drafts, pick="1", detail_seed=0, variations=1,
                stop_after=0,
            )  # fmt: skip
    assert vaes[0].encoded and vaes[1].encoded


def test_a_draft_on_the_tray_is_known_on_its_sheet(pack, small, models, folders):
    model = models["sd35-medium"]
    drafts = drafted(pack, small, model, schedule_of(pack, model, WatchedVAE())[0])["swd_drafts"]
    tray, shown = (sys.modules[f"swd_pack.nodes.{name}"] for name in ("tray_files", "shown"))
    tray.keep(drafts, "1")
    assert tray.kept_of(drafts.sheet, shown.LATELY.sheets[drafts.sheet]) == [1]
