"""SAMPLERs that wrap a SAMPLER call its sampler_function with its extra_options, as a KSAMPLER has.

The two wrappers are written as the published ones are (Detail Daemon's pack): a function around the
model that changes sigma, with the model's `inner_model` and `sigmas` put on it.
"""

import pytest
import torch
from chain import FAMILIES, SIZE, cfg_guider, host_chain, scalewise, sized
from grown import growth, sample, sampler_of
from paper import guided, schedule_of


def lying_sigma(model, x, sigmas, *, wrapped, factor, **more):
    def lie(x, sigma, **extra_args):
        return model(x, sigma * factor, **extra_args)

    for name in ("inner_model", "sigmas"):
        setattr(lie, name, getattr(model, name))
    return wrapped.sampler_function(lie, x, sigmas, **more, **wrapped.extra_options)


def lying(wrapped, factor):
    import comfy.samplers

    return comfy.samplers.KSAMPLER(lying_sigma, {"wrapped": wrapped, "factor": factor})


def pure(wrapped):
    """The plain kind: hands everything on."""
    import comfy.samplers

    def function(model, x, sigmas, **more):
        return wrapped.sampler_function(model, x, sigmas, **more, **wrapped.extra_options)

    return comfy.samplers.KSAMPLER(function)


def copied(wrapped):
    """Another SAMPLER with the same function and options."""
    import comfy.samplers

    return comfy.samplers.KSAMPLER(
        wrapped.sampler_function, dict(wrapped.extra_options), dict(wrapped.inpaint_options)
    )


KEEPING = {
    "hands on": pure, "copies": copied, "changes nothing": lambda s: lying(s, 1.0),
    "two of them": lambda s: lying(lying(s, 1.0), 1.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


@pytest.fixture
def run(pack, small, models):
    def sample(family, wrap=None, latent=None, cut=None, callback=None):
        preset = FAMILIES[family]
        guider = cfg_guider(models[family], sized(guided(small, family)))
        sigmas = schedule_of(pack, models[family], preset)[1]
        sigmas = sigmas if cut is None else sigmas[slice(*cut)]
        return scalewise(
            pack, preset, guider, latent=latent, sigmas=sigmas, wrap=wrap, callback=callback
        )

    return sample


def picture(mask=False, batch=1, **more):
    generator = torch.Generator().manual_seed(5)
    latent = {"samples": torch.randn(batch, 16, *SIZE, generator=generator), **more}
    if mask:
        latent["noise_mask"] = torch.zeros(1, SIZE[0] * 8, SIZE[1] * 8)
        latent["noise_mask"][..., 64:] = 1
    return latent


@pytest.mark.parametrize("wrap", KEEPING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrapper_that_keeps_sigma_keeps_every_bit(run, family, wrap):
    assert torch.equal(run(family, KEEPING[wrap]), run(family))


@pytest.mark.parametrize("wrap", KEEPING)
@pytest.mark.parametrize(
    ("latent", "cut"),
    [
        (lambda: picture(mask=True), None),
        (lambda: picture(), (1, None)),
        (lambda: picture(mask=True), (2, None)),
        (lambda: {"samples": torch.zeros(2, 16, *SIZE), "batch_index": [3, 1]}, None),
    ],
    ids=["inpainting", "image to image", "inpainting a picture", "batch index"],
)
def test_pictures_masks_and_batches_come_through(run, latent, cut, wrap):
    ours, plain = (run("sd35-medium", w, latent(), cut) for w in (KEEPING[wrap], None))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_cut_above_zero_returns_its_clean_x0(run, family):
    ours, plain = (run(family, w, cut=(None, 3)) for w in (pure, None))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_sigma_is_the_host_s_own_wrapped_sampler_at_every_scale(
    pack, small, models, run, family
):
    import comfy.samplers

    lcm = lying(comfy.samplers.sampler_object("lcm"), 0.97)
    cond = sized(guided(small, family))

    def guider_at(step, size):
        return cfg_guider(models[family], cond)

    theirs = host_chain(pack, small, FAMILIES[family], models[family], guider_at, sampler=lcm)
    ours, most = run(family, lambda s: lying(s, 0.97)), float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * most)
    assert (ours - run(family)).abs().max() > 1e-3 * most, "the wrapper does something"


def test_the_preview_gets_every_step(run):
    plain, wrapped = [], []

    def note(into):
        return lambda step, x0, x, total: into.append((step, tuple(x0.shape), x0.sum(), total))

    run("flux", None, callback=note(plain))
    run("flux", pure, callback=note(wrapped))
    assert wrapped == plain and len(plain) == 4


class Hidden:
    """A wrapper's model that shows nothing of the host's."""

    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call

    def __call__(self, *args, **more):
        return self.call(*args, **more)


def hides(wrapped, model, x, sigmas, **more):
    return wrapped.sampler_function(Hidden(model), x, sigmas, **more)


def goes_on(wrapped, model, x, sigmas, **more):
    """The second part of what another sampler began."""
    return wrapped.sampler_function(model, 0.5 * x, sigmas[1:], **more)


def adds_options(wrapped, model, x, sigmas, **more):
    return wrapped.sampler_function(model, x, sigmas, **more, eta=0.5, s_noise=1.0)


@pytest.mark.parametrize(
    ("function", "says"),
    [(hides, "hides the model"), (goes_on, "middle of a run"), (adds_options, "eta, s_noise")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_t_be_right_is_said_in_a_sentence(pack, small, models, family, function, says):
    import comfy.samplers

    calls, model = [], models[family].clone()
    model.set_model_unet_function_wrapper(lambda apply, call: calls.append(1))

    def wrap(wrapped):
        return comfy.samplers.KSAMPLER(
            lambda model, x, sigmas, **more: function(wrapped, model, x, sigmas, **more)
        )

    with pytest.raises(ValueError, match=f"{says}.*SwD Sampler to SamplerCustomAdvanced directly"):
        scalewise(pack, FAMILIES[family], cfg_guider(model, guided(small, family)), wrap=wrap)
    assert not calls


def test_nothing_of_a_wrapped_run_stays(pack, small, models, run):
    """A wrapper may call one SAMPLER after another with the same model of the host's."""
    import comfy.samplers

    seen = []

    def wrap(wrapped):
        def function(model, x, sigmas, **more):
            noise, image = model.noise.clone(), model.latent_image.clone()
            out = wrapped.sampler_function(model, x, sigmas, **more)
            seen.append((torch.equal(model.noise, noise), torch.equal(model.latent_image, image)))
            return out

        return comfy.samplers.KSAMPLER(function)

    run("flux", wrap, picture(mask=True))
    assert seen == [(True, True)]


@pytest.mark.parametrize("kind", sorted(KEEPING))
def test_growing_runs_are_wrapped_and_wrap_too(pack, small, models, kind):
    """Around our SAMPLER, or as the one that it makes its steps by."""
    import comfy.samplers

    model, cond = models["sd35-medium"], guided(small, "sd35-medium")
    schedule, sigmas, *_ = growth(pack, model)
    latent, euler = torch.zeros(1, 16, *SIZE), comfy.samplers.sampler_object("euler")
    plain = sample(model, sampler_of(pack, schedule), sigmas, cond, latent)
    around = KEEPING[kind](sampler_of(pack, schedule))
    assert torch.equal(sample(model, around, sigmas, cond, latent), plain)
    inside = sampler_of(pack, schedule, KEEPING[kind](euler))
    assert torch.equal(sample(model, inside, sigmas, cond, latent), plain)
