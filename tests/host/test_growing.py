"""Growing runs of any model: the host's own sampler at one size, its own runs at several."""

import math

import pytest
import torch
from chain import call
from grown import grid, growth, host_chain, host_noise, sample, sampler_of
from paper import SEED, guided, relative

SIZE = (16, 24)
FAMILIES = ("sd35-medium", "flux", "sdxl")
SMALL = (SIZE[0] // 2, SIZE[1] // 2)
PLAIN = (
    "euler", "heun", "dpm_2", "dpmpp_2m", "res_multistep", "ipndm", "deis", "lms",
    "gradient_estimation", "euler_cfg_pp",
)  # fmt: skip


def host_sampler(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def empty(small, family, batch=1):
    return torch.zeros(batch, small.KINDS[family].channels, *SIZE)


def cut_of(schedule, size=SIZE, multiple=2):
    first, *_ = schedule.stretches(*size, multiple)
    return first.steps


@pytest.mark.parametrize("solver", PLAIN)
def test_one_size_is_the_hosts_own_sampler(pack, small, models, solver):
    for family in FAMILIES:
        schedule, sigmas, *_ = growth(
            pack, models[family], sizes=1, sampler_name=solver, steps=4, scheduler="normal"
        )
        against = {"negative": guided(small, family, 2), "cfg": 2.0}
        ours, theirs = (
            sample(
                models[family], one, sigmas, guided(small, family), empty(small, family), **against
            )
            for one in (sampler_of(pack, schedule), host_sampler(solver))
        )
        assert torch.equal(ours, theirs), (family, relative(ours, theirs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "res_multistep"])
def test_each_size_is_the_hosts_own_run_of_its_levels(pack, small, models, family, solver):
    model, cond = models[family], guided(small, family)
    schedule, sigmas, *_ = growth(pack, model, sampler_name=solver, steps=6)
    cut = cut_of(schedule, multiple=small.KINDS[family].multiple)
    assert 0 < cut < 6
    ours = sample(model, sampler_of(pack, schedule), sigmas, cond, empty(small, family))
    noise = host_noise(small.KINDS[family].channels, SIZE)
    if family == "sdxl":  # its size conditioning is the target's throughout
        cond = [[c, {"width": SIZE[1] * 8, "height": SIZE[0] * 8, **more}] for c, more in cond]
    theirs = host_chain(
        model, lambda: host_sampler(solver), sigmas.tolist(), cut, SMALL, SIZE, cond, noise
    )
    assert relative(ours, theirs) < 2e-4


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "er_sde", "seeds_2"])
def test_a_picture_is_its_own_whatever_else_is_in_the_batch(pack, small, models, solver):
    """Also the noise that a solver draws goes by seed, image and step."""
    model, cond = models["sd35-medium"], guided(small, "sd35-medium")
    schedule, *_ = growth(pack, model, sampler_name=solver)

    def run(batch, **more):
        with torch.inference_mode():
            return call(
                pack["SwDSample"], model=model, positive=cond, schedule=schedule, seed=SEED,
                latent_image={"samples": empty(small, "sd35-medium", batch), **more}, cfg=1.0,
                upscale_method="bicubic",
            )["samples"]  # fmt: skip

    both = run(2)
    assert relative(run(1, batch_index=[1]), both[1:]) < 1e-5
    assert relative(both[:1], both[1:]) > 0.01


def test_a_solvers_noise_is_new_in_every_step_and_the_same_field_at_every_size(pack, small, models):
    """What an ancestral step adds at a small size are the low frequencies of full-size noise."""
    import comfy.samplers

    drawn = []

    def watching(
        model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None
    ):
        for i in range(len(sigmas) - 1):
            x0 = model(x, sigmas[i].expand(len(x)), **extra_args)
            callback({"x": x, "i": i, "denoised": x0})
            drawn.append(noise_sampler(sigmas[i], sigmas[i + 1]))
        return x

    model = models["sd35-medium"]
    schedule, sigmas, *_ = growth(pack, model)
    ones = growth(pack, model, sizes=1)[0]
    for one in (schedule, ones):
        ours = sampler_of(pack, one, comfy.samplers.KSAMPLER(watching))
        sample(model, ours, sigmas, guided(small, "sd35-medium"), empty(small, "sd35-medium"))
    grown, full = drawn[:6], drawn[6:]
    for a, b in zip(grown, full, strict=True):
        assert relative(a, grid(b, a.shape[-2:])) < 1e-5
    assert {tuple(n.shape[-2:]) for n in grown} == {SMALL, SIZE}
    for a, b in zip(full, full[1:], strict=False):
        assert abs((a * b).mean()) < 0.05 and 0.9 < a.std() < 1.1


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_sigmas_go_on_where_they_stopped(pack, small, models, family):
    """Also within the small size: what is handed over is of the full size, at the cut's level."""
    model, cond, latent = models[family], guided(small, family), empty(small, family)
    schedule, sigmas, *_ = growth(pack, model)
    whole = sample(model, sampler_of(pack, schedule), sigmas, cond, latent)
    cut = cut_of(schedule, multiple=small.KINDS[family].multiple)
    for at in (1, cut, cut + 1):
        half = sample(model, sampler_of(pack, schedule), sigmas[: at + 1], cond, latent)
        assert half.shape == latent.shape
        rest = sample(
            model, sampler_of(pack, schedule), sigmas[at:], cond, half,
            noise=torch.zeros_like(half),
        )  # fmt: skip
        assert relative(rest, whole) < 2e-4, at


def test_windows_in_percent_mean_the_level_of_the_full_size(pack, small, models):
    """A prompt that ends at a percentage ends at the same step at every size."""
    model = models["sd35-medium"]
    schedule, sigmas, *_ = growth(pack, model, steps=8)
    cut = cut_of(schedule)
    assert cut >= 3
    sampling = model.get_model_object("model_sampling")
    # Between two steps of the small size, by the full size's levels.
    middle = float(sigmas[cut - 2] + sigmas[cut - 1]) / 2
    percents = torch.linspace(0, 1, 10001).tolist()
    share = next(p for p in percents if float(sampling.percent_to_sigma(p)) < middle)
    seen = []

    def watch(apply, args):
        seen.append((tuple(args["input"].shape[-2:]), float(args["c"]["c_crossattn"].sum())))
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(watch)
    first, second = guided(small, "sd35-medium", 3), guided(small, "sd35-medium", 4)
    windows = ((first[0], 0.0, share), (second[0], share, 1.0))
    both = [[c, {**more, "start_percent": a, "end_percent": b}] for (c, more), a, b in windows]
    sample(patched, sampler_of(pack, schedule), sigmas, both, empty(small, "sd35-medium"))
    expected = [first if i < cut - 1 else second for i in range(8)]
    assert [size for size, _ in seen] == [SMALL] * cut + [SIZE] * (8 - cut)
    for (_, found), cond in zip(seen, expected, strict=True):
        assert math.isclose(found, float(cond[0][0].sum()), rel_tol=1e-4)


@pytest.mark.parametrize("family", ["sd35-medium", "sdxl"])
def test_inpainting_keeps_the_picture_outside_the_mask(pack, small, models, family):
    model, cond = models[family], guided(small, family)
    picture = torch.randn(empty(small, family).shape, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., : SIZE[1] // 2] = 1
    schedule, sigmas, *_ = growth(pack, model)
    ours = sampler_of(pack, schedule)
    out = sample(model, ours, sigmas, cond, picture, mask=mask)
    assert relative(out[..., SIZE[1] // 2 :], picture[..., SIZE[1] // 2 :]) < 1e-5
    whole = sample(model, ours, sigmas, cond, picture, mask=torch.ones_like(mask))
    assert torch.equal(whole, sample(model, ours, sigmas, cond, picture))
    one, sigmas, *_ = growth(pack, model, sizes=1)
    ours, theirs = (
        sample(model, sampler, sigmas, cond, picture, mask=mask)
        for sampler in (sampler_of(pack, one), host_sampler("euler"))
    )
    assert torch.equal(ours, theirs)


def test_the_callback_counts_the_steps_of_the_whole_run(pack, small, models):
    model, seen = models["flux"], []
    schedule, sigmas, *_ = growth(pack, model)
    sample(
        model, sampler_of(pack, schedule), sigmas, guided(small, "flux"), empty(small, "flux"),
        callback=lambda step, x0, x, total: seen.append((step, total, tuple(x0.shape[-2:]))),
    )  # fmt: skip
    cut = cut_of(schedule)
    assert seen == [(i, 6, SMALL if i < cut else SIZE) for i in range(6)]


def test_an_interrupt_stops_the_run_and_leaves_the_guider_as_it_was(pack, small, models):
    import comfy.model_management

    model, steps = models["sd35-medium"], []
    schedule, sigmas, *_ = growth(pack, model)

    def interrupt(step, *_):
        steps.append(step)
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    run = (model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*run, empty(small, "sd35-medium"), callback=interrupt)
    assert max(steps) <= 2
    assert torch.isfinite(sample(*run, empty(small, "sd35-medium"))).all()


def test_broken_numbers_are_said_by_step(pack, small, models):
    model = models["sd35-medium"].clone()
    schedule, sigmas, *_ = growth(pack, model)
    model.set_model_sampler_post_cfg_function(
        lambda args: args["denoised"] * (float("nan") if args["sigma"].max() < 0.9 else 1)
    )
    with pytest.raises(RuntimeError, match="NaN or infinity at step [2-6] of 6"):
        sample(
            model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"),
            empty(small, "sd35-medium"),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive", "ar_video"])
def test_solvers_that_cannot_be_cut_are_refused_by_name(pack, models, name):
    import comfy.samplers

    if name not in comfy.samplers.KSampler.SAMPLERS:
        pytest.skip(f"this ComfyUI has no {name}")
    with pytest.raises(ValueError, match=f"{name}|sampler_name"):
        growth(pack, models["flux"], sampler_name=name)
    schedule = growth(pack, models["flux"])[0]
    with pytest.raises(ValueError, match=name):
        sampler_of(pack, schedule, host_sampler(name))


def test_what_cannot_be_run_by_sizes_is_refused(pack, models):
    import comfy.samplers

    schedule = growth(pack, models["flux"])[0]
    churn = comfy.samplers.ksampler("euler", {"s_churn": 4.0})
    with pytest.raises(ValueError, match="s_churn"):
        sampler_of(pack, schedule, churn)
    with pytest.raises(ValueError, match="no steps"):
        sampler_of(pack, schedule, comfy.samplers.Sampler())
    with pytest.raises(ValueError, match="made for another model"):
        call(
            pack["SwDSample"], model=models["sdxl"], positive=[[torch.zeros(1, 7, 2048), {}]],
            latent_image={"samples": torch.zeros(1, 4, *SIZE)}, schedule=schedule, seed=1, cfg=1.0,
            upscale_method="bicubic",
        )  # fmt: skip


def test_uni_pc_gets_two_steps_at_every_size(pack, small, models):
    model = models["sd35-medium"]
    schedule, sigmas, *_ = growth(pack, model, sampler_name="uni_pc", steps=5)
    out = sample(
        model, sampler_of(pack, schedule), sigmas, guided(small, "sd35-medium"),
        empty(small, "sd35-medium"),
    )  # fmt: skip
    assert torch.isfinite(out).all() and out.std() > 0.1


def test_a_controlnet_works_at_the_same_steps_at_every_size(pack, small, models, controls):
    """Its range in percent is of the full size's levels; afterwards it is the host's own again."""
    model = models["flux"]
    control, vae = controls("flux")
    schedule, sigmas, *_ = growth(pack, model, steps=8)
    cut = cut_of(schedule)
    assert cut >= 3
    middle = float(sigmas[cut - 2] + sigmas[cut - 1]) / 2  # between two steps of the small size
    sampling = model.get_model_object("model_sampling")
    end = next(p / 1e4 for p in range(10001) if float(sampling.percent_to_sigma(p / 1e4)) < middle)
    hint = torch.rand(1, 3, SIZE[0] * 8, SIZE[1] * 8, generator=torch.Generator().manual_seed(2))
    net = control.copy().set_cond_hint(hint, 1.0, (0.0, end), vae=vae)
    calls, plain = [], net.get_control

    def counted(*given):
        found = plain(*given)
        calls.append(found is not None)
        return found

    net.get_control = counted
    cond = [[c, {**more, "control": net}] for c, more in guided(small, "flux")]
    sample(model, sampler_of(pack, schedule), sigmas, cond, empty(small, "flux"))
    assert calls == [True] * (cut - 1) + [False] * (9 - cut)


def test_image_to_image_is_the_hosts_own_at_one_size(pack, small, models):
    """The picture at the strength's level, with the noise of the seed, then the host's euler."""
    from swd_core.noise import draw_noise

    model, cond = models["sd35-medium"], guided(small, "sd35-medium")
    picture = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(8))
    schedule, sigmas, *_ = growth(pack, model, sizes=1, steps=8)
    with torch.inference_mode():
        ours = call(
            pack["SwDSample"], model=model, positive=cond, latent_image={"samples": picture},
            schedule=schedule, seed=SEED, cfg=1.0, upscale_method="bicubic", start_at=0.5,
        )["samples"]  # fmt: skip
    level = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    rest = sigmas[next(i for i, s in enumerate(sigmas.tolist()) if s <= 1.01 * level) :]
    noise = draw_noise(SEED, (0,), 0, (16, *SIZE))
    assert torch.equal(ours, sample(model, host_sampler("euler"), rest, cond, picture, noise=noise))


def test_what_changes_a_mask_by_the_level_is_told_the_full_sizes(pack, small, models):
    """As Differential Diffusion does, which widens its mask from step to step."""
    model, told = models["sd35-medium"].clone(), []

    def watch(sigma, mask, extra_options):
        told.append((float(sigma[0]), tuple(mask.shape[-2:]), extra_options["sigmas"].tolist()))
        return mask

    model.set_model_denoise_mask_function(watch)
    schedule, sigmas, *_ = growth(pack, model)
    picture = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(3))
    cond, mask = guided(small, "sd35-medium"), torch.full((1, 1, *SIZE), 0.5)
    sample(model, sampler_of(pack, schedule), sigmas, cond, picture, mask=mask)
    cut = cut_of(schedule)
    assert [size for _, size, _ in told] == [SMALL] * cut + [SIZE] * (6 - cut)
    assert [level for level, *_ in told] == pytest.approx(sigmas.tolist()[:-1], rel=1e-5)
    assert all(levels == sigmas.tolist() for *_, levels in told)


def test_a_models_own_noise_scale_is_kept(pack, small, models):
    """HiDream O1's noise is eight times as strong; so is all that a lift adds."""
    plain = models["sd35-medium"].get_model_object("model_sampling")
    model = models["sd35-medium"].clone()
    loud = type(plain)(model.model.model_config)
    loud.set_parameters(shift=3.0)
    loud.noise_scale = 8.0
    noise, empty_one = host_noise(16, SIZE), empty(small, "sd35-medium")
    if float(loud.noise_scaling(torch.tensor(1.0), noise, empty_one).std()) < 2:
        pytest.skip("this ComfyUI knows no noise_scale")
    model.add_object_patch("model_sampling", loud)
    schedule, sigmas, *_ = growth(pack, model, steps=6)
    assert schedule.noise_scale == 8
    cond, cut = guided(small, "sd35-medium"), cut_of(schedule)
    ours = sample(model, sampler_of(pack, schedule), sigmas, cond, empty_one)
    theirs = host_chain(
        model, lambda: host_sampler("euler"), sigmas.tolist(), cut, SMALL, SIZE, cond, noise, 8.0
    )
    assert 0 < cut < 6 and relative(ours, theirs) < 2e-4


@pytest.mark.parametrize("kind", ["mask", "area", "reference"])
def test_regions_and_references_are_what_the_host_makes_of_them_at_each_size(
    pack, small, models, kind
):
    """The host's own runs at the two sizes; it fits masks and shares itself, references by hand."""
    family = "flux" if kind == "reference" else "sd35-medium"
    model, first, second = models[family], guided(small, family, 3), guided(small, family, 4)
    picture = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, SIZE[0] * 8, SIZE[1] * 8)
    mask[..., : SIZE[1] * 4] = 1

    def cond(size):
        if kind == "reference":
            seen = torch.nn.functional.interpolate(picture, size, mode="bilinear", antialias=True)
            return [[c, {**more, "reference_latents": [seen]}] for c, more in first]
        where = {"mask": mask} if kind == "mask" else {"area": ("percentage", 1.0, 0.5, 0.0, 0.0)}
        return [*([c, {**more, **where}] for c, more in first), *second]

    schedule, sigmas, *_ = growth(pack, model, steps=5)
    cut = cut_of(schedule)
    assert 0 < cut < 5
    ours = sample(model, sampler_of(pack, schedule), sigmas, cond(SIZE), empty(small, family))
    theirs = host_chain(
        model, lambda: host_sampler("euler"), sigmas.tolist(), cut, SMALL, SIZE, cond,
        host_noise(16, SIZE),
    )  # fmt: skip
    assert relative(ours, theirs) < 5e-4
