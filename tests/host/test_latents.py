"""Every kind of latent: batches and their numbers, channels, sizes; and what is refused."""

import pytest
import torch
from chain import FAMILIES, SIZE, call, cfg_guider, scalewise
from paper import HALF, PRESETS, SEED, guided, relative, run_node, schedule_of, small_sides

from swd_core.noise import draw_noise


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


def noises_of(pack, model, preset, cond, latent) -> list[torch.Tensor]:
    """The x_t of every step: at the first one it is the noise itself, or scaled by a number."""
    seen = []
    guider = cfg_guider(model, cond)
    schedule, sigmas = schedule_of(pack, model, preset)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    noise = call("comfy_extras.nodes_custom_sampler:RandomNoise", SEED).generate_noise(latent)
    guider.sample(
        noise, latent["samples"], sampler, sigmas, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: seen.append(x.clone()),
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_picked_and_repeated_images_keep_their_noise(pack, small, models, family, record_property):
    """LatentFromBatch and RepeatLatentBatch carry batch_index: image i is the same picture."""
    preset, model, cond = FAMILIES[family], models[family], guided(small, family)
    channels = small.KINDS[family].channels
    whole = {"samples": torch.zeros(4, channels, *SIZE)}
    picked = call("nodes:LatentFromBatch", whole, 2, 1)
    assert picked["batch_index"] == [2]
    batch, alone = (noises_of(pack, model, preset, cond, latent) for latent in (whole, picked))
    assert torch.equal(batch[0][2:3], alone[0]), "the noise is identical"
    ours = run_node(pack, model, preset, whole, cond)
    one = run_node(pack, model, preset, picked, cond)
    record_property("difference", relative(ours[2:3], one))
    assert relative(ours[2:3], one) <= 1e-5
    repeated = call("nodes:RepeatLatentBatch", picked, 2)
    two = run_node(pack, model, preset, repeated, cond)
    index = repeated["batch_index"]
    assert index[0] == 2 and relative(two[:1], one) <= 1e-5
    other = run_node(
        pack,
        model,
        preset,
        {"samples": torch.zeros(1, channels, *SIZE), "batch_index": [index[1]]},
        cond,
    )
    assert relative(two[1:], other) <= 1e-5 and relative(two[1:], one) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_images_far_on_in_a_batch_keep_their_noise(pack, small, models, dtype):
    """Also where the latent, and with it the host's noise, has half precision."""
    seen = []

    def stop(apply_model, call):
        seen.append(call["input"].float())
        raise KeyboardInterrupt

    model = models["flux"].clone()
    model.set_model_unet_function_wrapper(stop)
    guider = cfg_guider(model, guided(small, "flux"))
    for indices in ([3000], [7, 2, 7], [0, 1]):
        samples = torch.zeros(len(indices), 16, *SIZE, dtype=dtype)
        latent = {"samples": samples, "batch_index": indices}
        with pytest.raises(KeyboardInterrupt):
            scalewise(pack, "flux-4", guider, latent=latent)
        wanted = draw_noise(SEED, indices, 0, seen[-1].shape[1:])
        assert relative(seen[-1], wanted) <= (1e-6 if dtype == torch.float32 else 0.01)


def test_noise_that_is_not_the_hosts_is_refused(pack, small, models):
    """Noise of other nodes, or of an image too far on, is not taken for that of image 0."""
    calls = []
    model = models["flux"].clone()
    model.set_model_unet_function_wrapper(lambda apply, a: calls.append(1))
    schedule, sigmas = schedule_of(pack, model, "flux-4")
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    other = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(SEED + 1))
    with pytest.raises(ValueError, match=f"not the noise of RandomNoise with seed {SEED}"):
        cfg_guider(model, guided(small, "flux")).sample(
            other, torch.zeros_like(other), sampler, sigmas, seed=SEED, disable_pbar=True
        )
    assert not calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [4, 16])
def test_empty_latents_of_either_channel_count(pack, small, models, family, channels):
    latent = {"samples": torch.zeros(1, channels, *SIZE)}
    right = {"samples": torch.zeros(1, small.KINDS[family].channels, *SIZE)}
    cond, preset = guided(small, family), FAMILIES[family]
    ours = run_node(pack, models[family], preset, latent, cond)
    assert torch.equal(ours, run_node(pack, models[family], preset, right, cond))
    assert torch.equal(
        ours, scalewise(pack, preset, cfg_guider(models[family], cond), latent=latent)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_another_model_is_refused(pack, small, models, family):
    channels = 20 - small.KINDS[family].channels
    latent = {"samples": torch.ones(1, channels, *SIZE)}
    says = f"has {channels} channels, this model needs {20 - channels}"
    cond, preset = guided(small, family), FAMILIES[family]
    with pytest.raises(ValueError, match=says):
        run_node(pack, models[family], preset, latent, cond)
    with pytest.raises(ValueError, match=says):
        scalewise(pack, preset, cfg_guider(models[family], cond), latent=latent)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(16, 64), (64, 16), (32, 48), (40, 28), (12, 20), (128, 32)])
def test_shapes_from_1_to_4_up_to_4_to_1(pack, small, models, family, size):
    """Sizes by the preset's table, on the model's patch grid, the last exactly the target."""
    preset = FAMILIES[family]
    _, sides, _ = PRESETS[preset]
    multiple = small.KINDS[family].multiple
    shapes = []
    ours = scalewise(
        pack, preset, cfg_guider(models[family], guided(small, family)), size=size,
        callback=lambda step, x0, x, total: shapes.append(tuple(x0.shape[-2:])),
    )  # fmt: skip
    rows, columns = (small_sides(side, sides, multiple) for side in size)
    assert shapes == [
        (max(multiple, r), max(multiple, c)) for r, c in zip(rows, columns, strict=True)
    ]
    assert tuple(ours.shape[-2:]) == size and ours.isfinite().all()


@pytest.mark.parametrize(
    ("family", "size"), [("sd35-medium", (33, 32)), ("flux", (32, 31)), ("sdxl", (32, 34))]
)
def test_sides_off_the_patch_grid_are_refused_by_name(pack, small, models, family, size):
    calls = []
    model = models[family].clone()
    model.set_model_unet_function_wrapper(lambda apply, a: calls.append(1))
    latent, cond = {"samples": torch.zeros(1, 4, *size)}, guided(small, family)
    for run in (
        lambda: run_node(pack, model, FAMILIES[family], latent, cond),
        lambda: scalewise(pack, FAMILIES[family], cfg_guider(model, cond), latent=latent),
    ):
        with pytest.raises(ValueError, match=f"multiple of {small.KINDS[family].multiple}"):
            run()
    assert not calls


def test_nested_latents_are_refused(pack, small, models):
    nested_tensor = pytest.importorskip("comfy.nested_tensor", reason="this host has none")
    nested = nested_tensor.NestedTensor([torch.zeros(1, 16, *SIZE), torch.zeros(1, 8, 40)])
    cond = guided(small, "flux")
    with pytest.raises(ValueError, match="[Nn]ested"):
        run_node(pack, models["flux"], "flux-4", {"samples": nested}, cond)
    with pytest.raises(ValueError, match="nested"):
        scalewise(pack, "flux-4", cfg_guider(models["flux"], cond), latent={"samples": nested})


def test_audio_latents_are_refused(pack, small, models):
    with pytest.raises(ValueError, match="3 dimensions"):
        scalewise(
            pack, "flux-4", cfg_guider(models["flux"], guided(small, "flux")),
            latent={"samples": torch.zeros(1, 16, 64)},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("latent", "says"),
    [(None, "Nothing comes in at latent_image"), ({}, "no samples"), ({"samples": None}, "no sam")],
)
def test_no_latent_at_all_is_refused(pack, small, models, latent, says):
    with pytest.raises(ValueError, match=says):
        run_node(pack, models["flux"], "flux-4", latent, guided(small, "flux"))


def test_weights_of_8_bits(pack, small, record_property):
    """fp8 weights give the picture of the same weights rounded to fp8 and run in float32."""
    import comfy.sd

    state = {k: v.clone() for k, v in small.reference("sd35-medium").state_dict().items()}
    fp8 = {k: v.to(torch.float8_e4m3fn) for k, v in state.items()}
    rounded = {k: v.float() for k, v in fp8.items()}
    cond, latent = guided(small, "sd35-medium"), {"samples": torch.zeros(1, 16, *SIZE)}
    out = []
    for weights, dtype in ((fp8, torch.float8_e4m3fn), (rounded, torch.float32)):
        model = comfy.sd.load_diffusion_model_state_dict(
            dict(weights), model_options={"dtype": dtype}
        )
        out.append(run_node(pack, model, "sd35-medium-4", latent, cond))
    record_property("difference", relative(*out))
    assert relative(*out) <= max(1e-4, HALF)


def test_a_compiled_model(pack, small, models, record_property):
    """The wrapper of the host's TorchCompileModel: same picture, no new graph in a second run."""
    helpers = pytest.importorskip("comfy_api.torch_helpers")
    counters = pytest.importorskip("torch._dynamo").utils.counters
    model = models["sd35-medium"].clone()
    helpers.set_torch_compile_wrapper(model, backend="eager")
    cond, latent = guided(small, "sd35-medium"), {"samples": torch.zeros(1, 16, *SIZE)}
    plain = run_node(pack, models["sd35-medium"], "sd35-medium-4", latent, cond)
    torch._dynamo.reset()
    ours = run_node(pack, model, "sd35-medium-4", latent, cond)
    graphs = counters["stats"]["unique_graphs"]
    again = run_node(pack, model, "sd35-medium-4", latent, cond)
    record_property("difference", relative(ours, plain))
    assert graphs > 0 and counters["stats"]["unique_graphs"] == graphs
    assert relative(ours, plain) <= 1e-5 and torch.equal(ours, again)
