"""Targets from 256 to 4096 pixels, and what happens above the trained size: stretch or extend."""

import pytest
import torch
import torch.nn.functional as F
from chain import call, cfg_guider
from paper import SEED, guided, relative

from swd_core.noise import draw_noise

MULTIPLES = {"sd35-medium": 2, "flux": 2, "sdxl": 4}
# Latent (height, width) of the target, and by hand, those of the steps for patches of 2 and 4.
STRETCHED = {
    (32, 32): [(16, 16), (20, 20), (24, 24), (32, 32)],
    (256, 256): [(128, 128), (160, 160), (192, 192), (256, 256)],
    (512, 512): [(256, 256), (320, 320), (384, 384), (512, 512)],
    (512, 128): [(256, 64), (320, 80), (384, 96), (512, 128)],
}
TRAINED = [(64, 64), (80, 80), (96, 96), (128, 128)]
EXTENDED = {
    (2, (32, 32)): STRETCHED[32, 32],
    (2, (160, 160)): [*TRAINED, (160, 160)],
    (2, (256, 256)): [*TRAINED, (182, 182), (256, 256)],
    (4, (256, 256)): [*TRAINED, (180, 180), (256, 256)],
    (2, (512, 512)): [*TRAINED, (182, 182), (256, 256), (362, 362), (512, 512)],
    (4, (512, 512)): [*TRAINED, (180, 180), (256, 256), (364, 364), (512, 512)],
    (2, (128, 512)): [(32, 128), (40, 160), (48, 192), (64, 256), (90, 362), (128, 512)],
    (4, (512, 128)): [(128, 32), (160, 40), (192, 48), (256, 64), (364, 92), (512, 128)],
}
CASES = [("stretch", m, size, sizes) for size, sizes in STRETCHED.items() for m in (2, 4)]
CASES += [("extend", m, size, sizes) for (m, size), sizes in EXTENDED.items()]


@pytest.fixture(autouse=True)
def as_the_host_runs_its_nodes():
    with torch.inference_mode():
        yield


def schedule_for(pack, model, latent, mode) -> tuple:
    """Schedule, SIGMAS and table for a target."""
    return (
        pack["SwDScaleSchedule"]
        .execute(
            model=model, preset="auto", custom_sizes="", custom_sigmas="", latent_image=latent,
            large_targets=mode,
        )
        .args[:3]
    )  # fmt: skip


def run_both(pack, model, cond, latent, schedule, sigmas) -> tuple:
    """The latents of SwDSample and of SamplerCustomAdvanced with SwDSampler."""
    one = pack["SwDSample"].execute(
        model=model, positive=cond, latent_image=latent, schedule=schedule, seed=SEED, cfg=1.0,
        upscale_method="bicubic",
    ).args[0]  # fmt: skip
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    custom = "comfy_extras.nodes_custom_sampler:"
    other = call(
        custom + "SamplerCustomAdvanced", call(custom + "RandomNoise", SEED),
        cfg_guider(model, cond), sampler, sigmas, latent,
    )  # fmt: skip
    return one["samples"], other["samples"]


def table_sizes(table: str) -> list[tuple[int, int]]:
    """The sizes that the schedule node shows, in latent cells."""
    rows = [line.split()[1:4] for line in table.splitlines()[2:-1]]
    return [(int(height) // 8, int(width) // 8) for width, _, height in rows]


@pytest.mark.parametrize("size", [(16, 226), (226, 16)])
def test_a_side_beyond_the_model_s_positions_is_refused_before_it_runs(pack, small, models, size):
    model = models["sd35-medium"].clone()
    calls = []
    model.set_model_unet_function_wrapper(lambda apply, given: calls.append(1))
    latent = {"samples": torch.zeros(1, 16, *size)}
    schedule, sigmas, _ = schedule_for(pack, model, latent, "stretch")
    with pytest.raises(ValueError, match=r"(1808 x 128|128 x 1808) pixels.*at most 1792\."):
        run_both(pack, model, guided(small, "sd35-medium"), latent, schedule, sigmas)
    with pytest.raises(ValueError, match=r"at most 1792\."):
        pack["SwDDrafts"].execute(
            model=[model], positive=[guided(small, "sd35-medium")], latent_image=[latent],
            schedule=[schedule], seed=[1], count=[2], stop_after=[1], batch=[2], cfg=[1.0],
            upscale_method=["bicubic"],
        )  # fmt: skip
    assert not calls


@pytest.mark.parametrize(("mode", "multiple", "size", "sizes"), CASES, ids=str)
def test_sizes_are_those_of_the_table(
    pack, small, models, monkeypatch, mode, multiple, size, sizes
):
    """A cheap stand-in answers for the model: 65,000 tokens of attention take a CPU too long."""
    for family in [name for name, m in MULTIPLES.items() if m == multiple]:
        seen = []

        def answer(apply_model, call, seen=seen):
            seen.append(tuple(call["input"].shape[-2:]))
            return F.avg_pool2d(call["input"], 3, 1, 1) * 0.5

        model = models[family].clone()
        model.set_model_unet_function_wrapper(answer)
        if family == "sd35-medium":  # as many as the published one has
            config = model.model.model_config.unet_config
            monkeypatch.setitem(config, "pos_embed_max_size", 384)
        latent = {"samples": torch.zeros(1, small.KINDS[family].channels, *size)}
        schedule, sigmas, table = schedule_for(pack, model, latent, mode)
        assert table_sizes(table) == sizes
        one, other = run_both(pack, model, guided(small, family), latent, schedule, sigmas)
        assert seen == [*sizes, *sizes]
        assert torch.equal(one, other) and one.isfinite().all()
        assert tuple(one.shape[-2:]) == size


def test_a_real_model_at_4096_pixels(pack, small):
    """No stand-in: one SD3 block attends to all 65,536 tokens; about 30 s on a free core.

    What the model sees is the paper's formula of its own answer one size below.
    """
    import comfy.sd
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(7)
    kind = small.KINDS["sd35-medium"]
    module = SD3Transformer2DModel(
        patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_attention_heads=1,
        attention_head_dim=64, joint_attention_dim=kind.context, caption_projection_dim=64,
        pooled_projection_dim=kind.pooled, pos_embed_max_size=384, qk_norm="rms_norm",
    )  # fmt: skip
    model = comfy.sd.load_diffusion_model_state_dict(
        {name: w.detach() for name, w in module.state_dict().items()},
        model_options={"dtype": torch.float32},
    )
    schedule, sigmas = (
        pack["SwDScaleSchedule"]
        .execute(model=model, preset="custom", custom_sizes="0.5 1", custom_sigmas="1 0.6")
        .args[:2]
    )
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    empty, steps = torch.zeros(1, 16, 512, 512), []
    out = cfg_guider(model, guided(small, "sd35-medium")).sample(
        empty, empty, sampler, sigmas, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x_t, total: steps.append((x0.cpu(), x_t.cpu())),
    )  # fmt: skip
    (before, first), (last, second) = steps
    noise = [draw_noise(SEED, (0,), i, (16, s, s)) for i, s in enumerate((256, 512))]
    torch.testing.assert_close(first, noise[0])
    larger = F.interpolate(before, (512, 512), mode="bicubic")
    torch.testing.assert_close(second, 0.4 * larger + 0.6 * noise[1])
    assert relative(out, last / kind.scale + kind.shift) <= 1e-6
    assert out.isfinite().all() and (last - second).abs().mean() > 0.1


@pytest.fixture(scope="module")
def embedded(pack) -> tuple:
    """The embedded student, trained at 256 px, and the conditioning of a prompt."""
    model, clip, *_ = pack["SwDSceneStudent"].execute(strength=1.0).args
    return model, call("nodes:CLIPTextEncode", clip, "a fox")


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (128, 96)], ids=str)
def test_an_extended_run_is_the_chain_of_host_runs(pack, embedded, size, record_property):
    import comfy.samplers

    model, cond = embedded
    latent = {"samples": torch.zeros(1, 16, *size)}
    schedule, sigmas, table = schedule_for(pack, model, latent, "extend")
    sizes = table_sizes(table)
    assert len(sizes) == schedule.steps > 4 and sizes[-1] == size
    one, other = run_both(pack, model, cond, latent, schedule, sigmas)
    assert torch.equal(one, other)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    guider, seen = cfg_guider(model, cond), []
    empty, outside = latent["samples"], model.get_model_object("latent_format").process_out
    guider.sample(
        empty, empty, sampler, sigmas, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x_t, total: seen.append(outside(x0.cpu())),
    )  # fmt: skip
    assert relative(seen[-1], one) <= 1e-6
    # Each from where ours was: a trained model makes more of the rounding of the steps before.
    differences = []
    for step, here in enumerate(sizes):
        start = seen[step - 1] if step else torch.zeros(1, 16, *here)
        x0 = guider.sample(
            draw_noise(SEED, (0,), step, (16, *here)), F.interpolate(start, here, mode="bicubic"),
            comfy.samplers.sampler_object("lcm"), torch.stack([sigmas[step], torch.tensor(0.0)]),
            disable_pbar=True, seed=SEED,
        )  # fmt: skip
        differences.append(relative(seen[step], x0))
    record_property("difference", max(differences))
    assert max(differences) <= 1e-5


def test_extend_goes_on_from_the_picture_of_the_trained_size(pack, embedded):
    """After the trained steps it holds what a run that ends there gives."""
    model, cond = embedded
    small_latent, latent = ({"samples": torch.zeros(1, 16, s, s)} for s in (32, 96))
    ending, _ = run_both(
        pack, model, cond, small_latent, *schedule_for(pack, model, small_latent, "extend")[:2]
    )
    schedule, sigmas, _ = schedule_for(pack, model, latent, "extend")
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    steps = []
    cfg_guider(model, cond).sample(
        latent["samples"], latent["samples"], sampler, sigmas, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: steps.append(x0),
    )  # fmt: skip
    assert len(steps) > 4
    assert relative(model.model.process_latent_out(steps[3]), ending) <= 1e-6


def peak_memory(run) -> int:
    """The most bytes of tensors alive at a time, beyond those from before."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    level = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most


@pytest.mark.parametrize("mode", ["stretch", "extend"])
def test_memory_is_that_of_one_step_at_the_target(pack, embedded, mode):
    import comfy.samplers

    (model, cond), side = embedded, 64
    latent = {"samples": torch.zeros(1, 16, side, side)}
    schedule, sigmas, _ = schedule_for(pack, model, latent, mode)
    guider = cfg_guider(model, cond)

    def one_step():
        guider.sample(
            torch.randn(1, 16, side, side), latent["samples"],
            comfy.samplers.sampler_object("lcm"), torch.tensor([0.6, 0.0]), disable_pbar=True,
            seed=SEED,
        )  # fmt: skip

    one_step()  # whatever the first run keeps for ever
    alone = peak_memory(one_step)
    whole = peak_memory(lambda: run_both(pack, model, cond, latent, schedule, sigmas))
    assert whole <= 1.1 * alone, (whole, alone)
