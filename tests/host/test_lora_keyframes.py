"""LoRA hooks with keyframes: at the step they are set to, at every size, and after a stop."""

import pytest
import torch
from chain import call, drafted, finished, sized
from grown import growth, sample, sampler_of
from paper import SEED, guided, schedule_of
from test_patches import lora_of

SIDE = (32, 48)
STRENGTHS = (0.0, 0.3, 0.6, 1.0)


@pytest.fixture
def model(models):
    return models["sdxl"]


@pytest.fixture
def hooked(small, model):
    """Conditioning with a LoRA whose strength changes at shares of the run."""
    nodes = "comfy_extras.nodes_hooks:"

    def make(*starts: float) -> list:
        import comfy.hooks

        frames = None
        for strength, start in zip(STRENGTHS, starts, strict=True):
            frames = call(nodes + "CreateHookKeyframe", strength, start, frames)
        hooks = comfy.hooks.create_hook_lora(lora_of(model), 1.0, 0.0)
        hooks = call(nodes + "SetHookKeyframes", hooks, frames)
        return [[c, {**more, "hooks": hooks}] for c, more in sized(guided(small, "sdxl"), SIDE)]

    return make


@pytest.fixture
def strengths(monkeypatch):
    """Of the LoRA in every call of the model, in order."""
    import comfy.hooks

    seen = []
    group = comfy.hooks.HookKeyframeGroup
    plain = group.prepare_current_keyframe

    def spied(self, curr_t, transformer_options):
        changed = plain(self, curr_t, transformer_options)
        seen.append(self.strength)
        return changed

    monkeypatch.setattr(group, "prepare_current_keyframe", spied)
    return seen


def straight(pack, model, cond, schedule):
    return pack["SwDSample"].execute(
        model=model, positive=cond, latent_image={"samples": torch.zeros(1, 4, *SIDE)},
        schedule=schedule, seed=SEED, cfg=1.0, upscale_method="bicubic",
    ).args[0]["samples"]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "stop", "starts"),
    [
        ("student", 1, (0.0, 0.05, 0.1, 0.15)),
        ("student", 2, (0.0, 0.05, 0.1, 0.15)),
        ("growth", 1, (0.0, 0.1, 0.3, 0.5)),
    ],
)
def test_a_finished_draft_goes_on_with_the_strength_of_the_whole_run(
    pack, model, hooked, strengths, kind, stop, starts
):
    """The host holds each keyframe for a step, counted from where the sampler begins."""
    cond = hooked(*starts)
    if kind == "student":
        schedule, _ = schedule_of(pack, model, "sdxl-4")
    else:
        schedule = growth(pack, model, torch.zeros(1, 4, *SIDE), steps=8, custom_tolerance=0.3)[0]
    whole = straight(pack, model, cond, schedule)
    of_whole = strengths[:]
    assert len(set(of_whole)) > 2
    strengths.clear()
    given = {"model": model, "positive": cond}
    empty = {"samples": torch.zeros(1, 4, *SIDE)}
    drafts = drafted(pack, stop, schedule=schedule, seed=SEED, latent_image=empty, **given)
    before = len(strengths)
    done = finished(pack, drafts, **given)
    ahead = len(of_whole) - before
    assert strengths[:before] == of_whole[:before]
    assert strengths[-ahead:] == of_whole[before:]
    assert torch.equal(done, whole)


def test_keyframes_of_a_default_are_passed_on_too(pack, model, hooked):
    """A default is run where the other entries' masks leave room; here the right half."""
    [[tokens, more]] = hooked(0.0, 0.05, 0.1, 0.15)
    left = torch.zeros(1, *SIDE)
    left[..., : SIDE[1] // 2] = 1
    region = {key: value for key, value in more.items() if key != "hooks"}
    region |= {"mask": left, "mask_strength": 1.0, "set_area_to_bounds": False}
    cond = [[tokens, region], [tokens, {**more, "default": True}]]
    schedule, _ = schedule_of(pack, model, "sdxl-4")
    given = {"model": model, "positive": cond}
    empty = {"samples": torch.zeros(1, 4, *SIDE)}
    drafts = drafted(pack, 2, schedule=schedule, seed=SEED, latent_image=empty, **given)
    whole = straight(pack, model, cond, schedule)
    assert torch.equal(finished(pack, drafts, **given), whole)
    plain = [[tokens, region], [tokens, {**region, "mask": 1 - left}]]
    assert not torch.allclose(straight(pack, model, plain, schedule), whole, atol=1e-3)


def test_a_negative_that_isn_t_asked_passes_no_keyframes(pack, model, hooked, strengths):
    """At cfg 1 the host leaves it out, whose keyframes the positive shares from the middle on."""
    positive, negative = hooked(0.0, 0.05, 0.1, 0.15), hooked(0.0, 0.05, 0.1, 0.15)
    negative[0][1]["hooks"] = positive[0][1]["hooks"]
    positive[0][1].update(start_percent=0.05, end_percent=1.0)
    schedule, _ = schedule_of(pack, model, "sdxl-4")
    empty = {"samples": torch.zeros(1, 4, *SIDE)}
    given = {"model": model, "positive": positive, "negative": negative, "cfg": 1.0}
    pack["SwDSample"].execute(
        latent_image=empty, schedule=schedule, seed=SEED, upscale_method="bicubic", **given
    )
    of_whole = strengths[:]
    drafts = drafted(pack, 2, schedule=schedule, seed=SEED, latent_image=empty, **given)
    strengths.clear()
    finished(pack, drafts, **given)
    assert len(of_whole) >= 3 and strengths[-2:] == of_whole[-2:]


def test_keyframes_before_the_run_are_passed_over_where_it_grows(pack, model, hooked, strengths):
    """A run begun in the middle, as the second half of SIGMAS is, holds none of them for a step."""
    empty, cond = torch.zeros(1, 4, *SIDE), hooked(0.0, 0.3, 0.35, 0.4)
    one, sigmas, *_ = growth(pack, model, empty, steps=10, sizes=1)
    latent = torch.ones(1, 4, *SIDE)
    sample(model, sampler_of(pack, one), sigmas[5:], cond, latent)
    at_full_size = strengths[:]
    strengths.clear()
    grown = growth(pack, model, empty, steps=10, custom_tolerance=0.9)[0]
    sample(model, sampler_of(pack, grown), sigmas[5:], cond, latent)
    assert strengths == at_full_size


def test_a_keyframe_holds_from_the_same_step_on_where_the_run_grows(pack, model, hooked, strengths):
    """As a prompt's range does: a small size is asked at lower levels than the schedule shows."""
    empty, cond = torch.zeros(1, 4, *SIDE), hooked(0.0, 0.2, 0.6, 0.8)
    one, sigmas, *_ = growth(pack, model, empty, steps=10, sizes=1)
    sample(model, sampler_of(pack, one), sigmas, cond, empty)
    at_full_size = strengths[:]
    strengths.clear()
    grown = growth(pack, model, empty, steps=10, custom_tolerance=0.9)[0]
    assert len({part.size for part in grown.stretches(*SIDE, 1)}) == 2
    sample(model, sampler_of(pack, grown), sigmas, cond, empty)
    assert strengths == at_full_size and len(set(strengths)) == 4
    keyframes = cond[0][1]["hooks"].hooks[0].hook_keyframe.keyframes
    sampling = model.get_model_object("model_sampling")
    for keyframe, start in zip(keyframes, (0.0, 0.2, 0.6, 0.8), strict=True):
        assert keyframe.start_t == sampling.percent_to_sigma(start), "as the host left it"
