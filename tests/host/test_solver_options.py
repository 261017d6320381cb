"""What a solver's options and noise mean over a whole run stays so where the size changes."""

import inspect
import math

import pytest
import torch
from chain import call
from grown import growth, host_noise, sample, sampler_of
from paper import guided, relative

SIZE, STEPS = (32, 24), 20
CUSTOM = "comfy_extras.nodes_custom_sampler:"


def run_watched(pack, small, models, family, solver, scheduler="normal"):
    """The steps of a solver of our own at one size, then over several; gives the run's levels."""
    latent = torch.zeros(1, small.KINDS[family].channels, *SIZE)
    for sizes in (1, 3):
        schedule, sigmas, *_ = growth(
            pack, models[family], latent, sizes=sizes, steps=STEPS,
            custom_tolerance=0.1, scheduler=scheduler,
        )  # fmt: skip
        run = schedule.stretches(*SIZE, small.KINDS[family].multiple)
        assert (len(run) > 1) == (sizes > 1)
        ours = sampler_of(pack, schedule, solver)
        sample(models[family], ours, sigmas, guided(small, family), latent)
    return sigmas


def steps_of(model, x, sigmas, extra_args, callback):
    """Bare steps, of which each one's number and levels are given."""
    for i in range(len(sigmas) - 1):
        x0 = model(x, sigmas[i].expand(len(x)), **extra_args)
        callback({"x": x, "i": i, "denoised": x0})
        yield i, sigmas[i], sigmas[i + 1]


@pytest.mark.parametrize("solver", ["dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde"])
@pytest.mark.parametrize("family", ["sdxl", "sd35-medium"])
def test_a_path_s_noise_within_a_step(pack, small, models, family, solver):
    """DPM++ SDE asks for noise between a step's ends; at pure noise two grids' levels part."""
    latent = torch.zeros(1, small.KINDS[family].channels, *SIZE)
    schedule, sigmas, *_ = growth(
        pack, models[family], latent, sizes=2, steps=12, sampler_name=solver, scheduler="karras",
        tolerance="balanced",
    )  # fmt: skip
    out = sample(models[family], sampler_of(pack, schedule), sigmas, guided(small, family), latent)
    assert out.isfinite().all()


@pytest.mark.parametrize("family", ["sdxl", "sd35-medium"])
def test_a_path_s_parts_of_a_step_make_its_whole(pack, small, models, family):
    """By Brownian motion: increments are white, of disjoint times independent, and they add up."""
    import comfy.samplers

    parts = []

    def sample_dpmpp_watching_sde(
        model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None
    ):
        for _, sigma, after in steps_of(model, x, sigmas, extra_args, callback):
            if after > 0:
                between = (sigma * after).sqrt()
                parts.append(
                    [noise_sampler(*ends) for ends in
                     ((sigma, between), (between, after), (sigma, after))]
                )  # fmt: skip
        return x

    solver = comfy.samplers.KSAMPLER(sample_dpmpp_watching_sde)
    levels = run_watched(pack, small, models, family, solver)
    assert len(parts) == 2 * (STEPS - 1)
    for step, (first, second, whole) in enumerate(parts):
        assert all(x.isfinite().all() for x in (first, second, whole))
        assert abs(first.std() - 1) < 0.2 and abs(second.std() - 1) < 0.2
        assert (first * second).mean().abs() < 0.2
        # whole = a first + b second with a^2 + b^2 = 1, the shares of the step's time
        both = torch.stack([first.flatten(), second.flatten()], 1).double()
        found = torch.linalg.lstsq(both, whole.flatten().double()).solution
        torch.testing.assert_close(both @ found, whole.flatten().double(), rtol=0, atol=1e-3)
        assert found.square().sum() == pytest.approx(1, abs=1e-3)
        if family == "sdxl":  # in the middle by the logarithm, on every grid
            before, after = levels[step % (STEPS - 1) :][:2].tolist()
            assert found[0] ** 2 == pytest.approx(1 / (1 + math.sqrt(after / before)), abs=1e-3)


def test_lcm_s_multiplier_goes_on_over_the_sizes(pack, small, models):
    """By the host's own rule, of which each size is told its part."""
    import comfy.samplers

    rows = []

    def watching(
        model, x, sigmas, extra_args=None, callback=None, disable=None, s_noise=1.0,
        s_noise_end=None,
    ):  # fmt: skip
        for i, *_ in steps_of(model, x, sigmas, extra_args, callback):
            share = i / (len(sigmas) - 2) if len(sigmas) > 2 else 0.0
            rows.append(s_noise + (s_noise_end - s_noise) * share)
        return x

    solver = comfy.samplers.KSAMPLER(watching, {"s_noise": 1.2, "s_noise_end": 0.4})
    run_watched(pack, small, models, "sd35-medium", solver)
    one, several = rows[:STEPS], rows[STEPS:]
    assert one == pytest.approx(torch.linspace(1.2, 0.4, STEPS).tolist())
    assert several == pytest.approx(one)


def test_clipped_noise_is_a_picture_s_own(pack, small, models):
    """SamplerLCM's noise_clip_std, by the host's rule for that picture alone."""
    import comfy.samplers

    lcm = comfy.samplers.sampler_object("lcm").sampler_function
    if "noise_clip_std" not in inspect.signature(lcm).parameters:
        pytest.skip("this ComfyUI's lcm clips nothing")
    model, cond = models["sd35-medium"], guided(small, "sd35-medium")
    schedule, sigmas, *_ = growth(pack, model, torch.zeros(1, 16, *SIZE))

    def run(images, **options):
        sampler = sampler_of(pack, schedule, comfy.samplers.ksampler("lcm", options))
        sampler.indices = images
        noise = torch.cat([host_noise(16, SIZE, i) for i in images])
        return sample(model, sampler, sigmas, cond, torch.zeros_like(noise), noise=noise)

    both, alone = run((0, 1), noise_clip_std=0.5), run((1,), noise_clip_std=0.5)
    assert relative(alone, both[1:]) < 1e-5
    assert relative(run((1,)), alone) > 0.01, "it clips"
    drawn = {0.0: [], 0.5: []}
    for clip, rows in drawn.items():

        def watching(model, x, sigmas, extra_args=None, callback=None, disable=None,
                     noise_sampler=None, noise_clip_std=0.0, rows=rows):  # fmt: skip
            for _, *levels in steps_of(model, x, sigmas, extra_args, callback):
                rows.append(noise_sampler(*levels))
                assert not noise_clip_std, "the host would clip again, by the batch"
            return x

        solver = comfy.samplers.KSAMPLER(watching, {"noise_clip_std": clip})
        sample(model, sampler_of(pack, schedule, solver), sigmas, cond, torch.zeros(1, 16, *SIZE))
    assert len({noise.shape for noise in drawn[0.0]}) == 2, "both sizes"
    for noise, clipped in zip(*drawn.values(), strict=True):
        most = 0.5 * noise.std()
        assert torch.equal(clipped, noise.clamp(-most, most))


@pytest.mark.parametrize("given", [None, (0.3, 0.6)])
@pytest.mark.parametrize(
    ("family", "scheduler"), [("sdxl", "normal"), ("sd35-medium", "normal"), ("flux", "simple")]
)
def test_sa_solver_adds_noise_in_the_same_steps_at_every_size(
    pack, small, models, family, scheduler, given
):
    """Its window, also its usual one, is meant by the run's levels, not by a grid's own.

    FLUX's simple levels have one at the window's edge, where the last bit decides.
    """
    import comfy.samplers

    rows = []

    def watching(model, x, sigmas, extra_args=None, callback=None, disable=None, tau_func=None):
        for _, sigma, _ in steps_of(model, x, sigmas, extra_args, callback):
            rows.append(tau_func(sigma))
        return x

    window, eta = given or (0.2, 0.8), 0.7 if given else 1.0
    made = call(CUSTOM + "SamplerSASolver", models[family], eta, *window, 1.0, 3, 4, False, False)
    tau = made.extra_options["tau_func"]
    options = {"tau_func": tau} if given else {}
    solver = comfy.samplers.KSAMPLER(watching, options)
    theirs = [*map(tau, run_watched(pack, small, models, family, solver, scheduler)[:-1])]
    assert rows == theirs * 2 and 0 in theirs and eta in theirs


@pytest.mark.parametrize("share", [0.3, 0.48, 0.52, 0.7])
def test_within_the_first_step_all_goes_by_the_full_size_s_level(pack, small, models, share):
    """A solver that asks in a step's middle gets there what it gets at one size.

    In a step from pure noise that is not the small grid's level times a factor; in the middle by
    the logarithm, where dpm_2 asks, it is between the step's ends by the logarithm at both sizes.
    """
    latent = torch.zeros(1, 4, *SIZE)
    picture = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(3))
    told, seen = [], []

    def at_level(sigma, mask, extra_options):
        told.append(float(sigma[0]))
        return mask

    def watch(apply, args):
        seen.append(float(args["c"]["c_crossattn"].sum()))
        return apply(args["input"], args["timestep"], **args["c"])

    model = models["sdxl"].clone()
    model.set_model_denoise_mask_function(at_level)
    model.set_model_unet_function_wrapper(watch)
    sampling = model.get_model_object("model_sampling")
    for sizes in (1, 2):
        schedule, sigmas, *_ = growth(
            pack, model, latent, sizes=sizes, steps=8, sampler_name="dpm_2", scheduler="normal"
        )
        top, second = sigmas[:2].tolist()
        edge = top ** (1 - share) * second**share
        percent = next(p / 1e4 for p in range(10001) if sampling.percent_to_sigma(p / 1e4) < edge)
        assert second < sampling.percent_to_sigma(percent) < top
        conds = guided(small, "sdxl", 3), guided(small, "sdxl", 4)
        windows = ((conds[0][0], 0.0, percent), (conds[1][0], percent, 1.0))
        both = [[c, {**more, "start_percent": a, "end_percent": b}] for (c, more), a, b in windows]
        ours, mask = sampler_of(pack, schedule), torch.full((1, 1, *SIZE), 0.5)
        sample(model, ours, sigmas, both, picture, mask=mask)
    calls = len(told) // 2
    assert calls == 15 and told[calls:] == pytest.approx(told[:calls], rel=1e-4)
    assert math.sqrt(top * second) == pytest.approx(told[1], rel=1e-4)
    texts = [float(cond[0][0].sum()) for cond in conds]
    expected = [texts[0], texts[share < 0.5], *[texts[1]] * 13]
    assert seen == pytest.approx(expected * 2, rel=1e-4)


@pytest.mark.parametrize("family", ["sdxl", "sd35-medium"])
@pytest.mark.parametrize("first", [0, 2])
def test_of_what_begins_below_pure_noise_the_level_is_known_everywhere(
    pack, small, models, family, first
):
    """Cut SIGMAS, image to image, and flow models in every step: noise over signal by the ratio."""
    import comfy.samplers

    told, asked = [], []
    latent = torch.randn(
        1, small.KINDS[family].channels, *SIZE, generator=torch.Generator().manual_seed(3)
    )
    model = models[family].clone()

    def at_level(sigma, mask, extra_options):
        told.append(float(sigma[0]))
        return mask

    def watching(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ratio = math.sqrt(math.prod(SIZE) / math.prod(x.shape[-2:]))
        for i in range(len(sigmas) - 1):
            between = 0.4 * sigmas[i] + 0.6 * sigmas[i + 1]
            asked.append((float(between), ratio))
            x0 = model(x, between.expand(len(x)), **extra_args)
            callback({"x": x, "i": i, "denoised": x0})
        return x

    model.set_model_denoise_mask_function(at_level)
    schedule, sigmas, *_ = growth(pack, model, latent, steps=8, scheduler="normal")
    solver, mask = comfy.samplers.KSAMPLER(watching), torch.full((1, 1, *SIZE), 0.5)
    ours = sampler_of(pack, schedule, solver)
    sample(model, ours, sigmas[first:], guided(small, family), latent, mask=mask)
    flow = family != "sdxl"
    if not flow and not first:  # the step from pure noise is the test's above
        del told[0], asked[0]
    for level, (own, ratio) in zip(told, asked, strict=True):
        odds = ratio * (own / (1 - own) if flow else own)
        assert level == pytest.approx(odds / (1 + odds) if flow else odds, rel=1e-4)
    assert max(ratio for _, ratio in asked) > 1.9
