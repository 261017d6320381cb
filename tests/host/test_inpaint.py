"""Inpainting and image to image: what is kept is kept, the rest is the host's own result."""

import pytest
import torch
from chain import FAMILIES, SIZE, at_size, call, cfg_guider, host_chain, scalewise, sized, sizes_of
from paper import PRESETS, SEED, guided, relative, run_node, schedule_of
from test_conditioning import box_mask

EXACT = 5e-6


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


def picture_of(small, family, count=1, seed=6) -> torch.Tensor:
    """A latent as a VAE would make it (B, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    kind = small.KINDS[family]
    smooth = torch.randn(count, kind.channels, SIZE[0] // 4, SIZE[1] // 4, generator=generator)
    return torch.nn.functional.interpolate(smooth, SIZE, mode="bicubic") / kind.scale + kind.shift


def soft_mask(seed=0) -> torch.Tensor:
    """Grey values everywhere (1, H', W'), of no size that is known here."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 1, 4, 5, generator=generator)
    return torch.nn.functional.interpolate(rough, (131, 203), mode="bilinear")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_the_mask_the_picture_is_kept(pack, small, models, family, record_property):
    preset, picture, cond = FAMILIES[family], picture_of(small, family), guided(small, family)
    latent = {"samples": picture, "noise_mask": box_mask()}
    ours = run_node(pack, models[family], preset, latent, cond)
    inside = at_size(box_mask()[None], SIZE)[0, 0] > 0
    difference = (ours - picture)[..., ~inside].abs().max() / picture.abs().max()
    record_property("difference", difference.item())
    assert difference <= 1e-5, "the host's own tolerance: two roundings of process_latent"
    assert (ours - picture)[..., inside].abs().mean() > 0.1 * picture.abs().mean()
    assert torch.equal(
        ours, scalewise(pack, preset, cfg_guider(models[family], cond), latent=latent)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masks", [1, 2])
def test_soft_masks_of_any_size_are_the_chain_of_host_runs(
    pack, small, models, family, masks, record_property
):
    """At each scale the picture outside is that of the scale, and inside the host's own step."""
    preset, model = FAMILIES[family], models[family]
    picture, cond = picture_of(small, family, 2), sized(guided(small, family))
    mask = torch.cat([soft_mask(seed) for seed in range(masks)])
    full = torch.nn.functional.interpolate(mask[:, None], SIZE, mode="bilinear")
    full = full.expand(2, -1, -1, -1)
    theirs = host_chain(
        pack, small, preset, model, lambda step, size: cfg_guider(model, cond),
        indices=(0, 1), picture=picture, mask_at=lambda step, size: at_size(full, size),
    )  # fmt: skip
    latent = {"samples": picture, "noise_mask": mask}
    ours = scalewise(pack, preset, cfg_guider(model, cond), latent=latent)
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_differential_diffusion(pack, small, models, family, record_property):
    """Each step changes where the mask is above its threshold; white changes in all of them."""
    preset = FAMILIES[family]
    model = call("comfy_extras.nodes_differential_diffusion:DifferentialDiffusion", models[family])
    picture, cond = picture_of(small, family), sized(guided(small, family))
    white = {"samples": picture, "noise_mask": torch.ones(1, 100, 100)}
    plain = scalewise(pack, preset, cfg_guider(models[family], cond), latent={"samples": picture})
    ours = scalewise(pack, preset, cfg_guider(model, cond), latent=white)
    record_property("difference", relative(ours, plain))
    assert relative(ours, plain) <= EXACT

    sampling = model.get_model_object("model_sampling")
    _, sigmas = schedule_of(pack, model, preset)
    times = [float(sampling.timestep(s)) for s in (*sigmas[:-1], sampling.sigma_min)]
    ramp = torch.linspace(0, 1, SIZE[1]).expand(1, 1, *SIZE)
    thresholds = [(t - times[-1]) / (times[0] - times[-1]) for t in times[:-1]]
    theirs = host_chain(
        pack, small, preset, models[family], lambda step, size: cfg_guider(models[family], cond),
        picture=picture,
        mask_at=lambda step, size: (at_size(ramp, size) >= thresholds[step]).float(),
    )  # fmt: skip
    latent = {"samples": picture, "noise_mask": ramp[0]}
    ours = scalewise(pack, preset, cfg_guider(model, cond), latent=latent)
    assert relative(ours, theirs) <= 2e-5


@pytest.fixture(scope="module")
def inpaint_unet(small):
    """An SDXL inpaint model: nine channels, mask and masked picture beside the latent."""
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(3)
    config = {**small.SDXL_CONFIG, "in_channels": 9}
    unet = UNetModel(
        **config, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, value in unet.state_dict().items():
        fan_in = max(1, value[0].numel()) if value.ndim > 1 else 400
        state[name] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    return small.patcher(comfy.supported_models.SDXL(config), state, torch.float32)


@pytest.mark.parametrize("how", ["InpaintModelConditioning", "noise_mask", "neither"])
def test_models_with_the_mask_as_input(pack, small, inpaint_unet, how, record_property):
    """c_concat holds picture and mask of each scale; without either, the host's blank ones."""
    cond, picture = sized(guided(small, "sdxl")), picture_of(small, "sdxl")
    mask_at, latent = None, None
    if how == "InpaintModelConditioning":
        extra = {"concat_latent_image": picture, "concat_mask": box_mask()[None]}
        cond = [[c, {**more, **extra}] for c, more in cond]
    elif how == "noise_mask":
        full = at_size(box_mask()[None], SIZE)
        mask_at = lambda step, size: at_size(full, size)  # noqa: E731
        latent = {"samples": picture, "noise_mask": box_mask()}
    guider = cfg_guider(inpaint_unet, cond)
    ours = scalewise(pack, "sdxl-4", guider, latent=latent)
    assert ours.isfinite().all()
    if how == "noise_mask":  # the host's own run can't be given a mask for the UNet alone
        kept = mask_at(0, SIZE)[0, 0] == 0
        assert (ours - picture)[..., kept].abs().max() <= 1e-5 * picture.abs().max()
        return
    theirs = host_chain(pack, small, "sdxl-4", inpaint_unet, lambda step, size: guider)
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= EXACT


# start_at and the step it starts at: strengths as the host counts them, a share of its timesteps.
STRENGTHS = {
    "sd35-medium": [(0.75, 1), (0.5, 2), (0.36, 3)],
    "flux": [(0.75, 1), (0.5, 2), (0.36, 3)],
    "sdxl": [(0.8, 1), (0.6, 2), (0.4, 3)],
}


@pytest.mark.parametrize(
    ("family", "strength", "step"), [(f, *s) for f in FAMILIES for s in STRENGTHS[f]]
)
def test_image_to_image_from_any_scale(
    pack, small, models, family, strength, step, record_property
):
    preset, picture = FAMILIES[family], picture_of(small, family)
    cond = sized(guided(small, family))
    latent = {"samples": picture}
    ours = run_node(pack, models[family], preset, latent, cond, start_at=strength)
    theirs = host_chain(
        pack, small, preset, models[family], lambda _, size: cfg_guider(models[family], cond),
        picture=picture, first=step,
    )  # fmt: skip
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= EXACT
    _, sigmas = schedule_of(pack, models[family], preset)
    cut = call("comfy_extras.nodes_custom_sampler:SplitSigmas", sigmas, 0)
    assert len(cut) == 1
    custom = scalewise(
        pack, preset, cfg_guider(models[family], cond), latent=latent, sigmas=sigmas[step:]
    )
    assert torch.equal(ours, custom), "the same by SplitSigmas' second output"


@pytest.mark.parametrize("family", FAMILIES)
def test_less_strength_changes_less(pack, small, models, family):
    picture, cond = picture_of(small, family), sized(guided(small, family))
    changes = []
    for strength in (0.0, 0.05, 0.2, 0.5, 1.0):
        ours = run_node(
            pack, models[family], FAMILIES[family], {"samples": picture}, cond, start_at=strength
        )
        changes.append((ours - picture).abs().mean().item())
    assert changes[0] == 0 and changes == sorted(changes), changes


def test_start_at_without_a_picture_is_refused(pack, small, models):
    with pytest.raises(ValueError, match="start_at is 0.5.*empty"):
        run_node(
            pack, models["flux"], "flux-4", {"samples": torch.zeros(1, 16, *SIZE)},
            guided(small, "flux"), start_at=0.5,
        )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_split_sigmas(pack, small, models, family, step, record_property):
    """The first part is its last clean x0, enlarged; the second goes on with the same noise."""
    preset, cond = FAMILIES[family], sized(guided(small, family))
    guider = cfg_guider(models[family], cond)
    _, sigmas = schedule_of(pack, models[family], preset)
    high, low = sigmas[: step + 1], sigmas[step:]
    seen = []
    whole = scalewise(
        pack, preset, guider,
        callback=lambda i, x0, x, total: seen.append([t.clone().cpu() for t in (x0, x)]),
    )  # fmt: skip
    part = scalewise(pack, preset, guider, sigmas=high)
    assert part.shape == whole.shape
    process = models[family].model.process_latent_out
    enlarged = torch.nn.functional.interpolate(seen[step - 1][0], SIZE, mode="bicubic")
    record_property("difference", relative(part, process(enlarged)))
    assert relative(part, process(enlarged)) <= EXACT
    latent, first = {"samples": part}, seen[step][1]
    final = scalewise(pack, preset, guider, sigmas=low, latent=latent)
    kind = small.KINDS[family]
    start = at_size((part - kind.shift) * kind.scale, sizes_of(small, preset)[step])
    sampling = models[family].get_model_object("model_sampling")
    from swd_core.noise import draw_noise

    noise = draw_noise(SEED, (0,), step, start.shape[1:])
    rest = sampling.noise_scaling(sigmas[step], noise, start, False)
    assert rest.shape == first.shape
    correlation = torch.corrcoef(torch.stack([rest.flatten(), first.flatten()]))[0, 1]
    assert correlation > 0.98, "the second part begins where the whole run was"
    assert final.isfinite().all()


def test_sigmas_of_another_scheduler(pack, small, models):
    """Sizes follow the noise level: down to the schedule's own sigma of a size, no further."""
    _, sigmas = schedule_of(pack, models["sd35-medium"], "sd35-medium-4")
    other = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.74, 0.7, 0.61, 0.5, 0.2, 0.0])
    shapes = []
    scalewise(
        pack, "sd35-medium-4", cfg_guider(models["sd35-medium"], guided(small, "sd35-medium")),
        sigmas=other, callback=lambda i, x0, x, total: shapes.append(tuple(x0.shape[-2:])),
    )  # fmt: skip
    sizes = sizes_of(small, "sd35-medium-4")
    levels = [1.0, 0.8959, 0.7371, 0.6022]
    wanted = []
    for sigma in other[:-1].tolist():
        allowed = [s for level, s in zip(levels, sizes, strict=True) if level <= sigma + 1e-6]
        wanted.append(allowed[0] if allowed else SIZE)
    assert shapes == wanted


assert set(FAMILIES.values()) <= set(PRESETS)
