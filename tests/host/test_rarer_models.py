"""What single models read of their inputs, at every size as at the finished one."""

import math
from types import SimpleNamespace

import pytest
import torch
from chain import call, hosted
from grown import growth, own_level, sample, sampler_of
from torch import nn

MADE = {"operations": nn, "device": "cpu", "dtype": torch.float32}
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 48, "context_in_dim": 48,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True,
    "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip

UNET = {
    "image_size": 32, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": (1, 2), "num_head_channels": 64, "num_heads": -1, "legacy": False,
    "use_spatial_transformer": True, "transformer_depth": [1, 1], "context_dim": 64,
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 4, "use_checkpoint": False,
    "use_linear_in_transformer": True, "num_classes": "sequential",
}  # fmt: skip


def built(config_class, config, net):
    import comfy.supported_models
    import small_models

    kind = getattr(comfy.supported_models, config_class)(dict(config))
    return small_models.patcher(kind, small_models.random_weights(net), torch.float32)


def text(width: int, pooled: int, **more) -> list:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(1, 6, width, generator=generator)
    return [[drawn, {"pooled_output": torch.randn(1, pooled, generator=generator), **more}]]


@pytest.fixture(scope="module")
def refiner(pack):
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops

    config = UNET | {
        "in_channels": 4, "adm_in_channels": 2560, "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }  # fmt: skip
    made = {**MADE, "operations": comfy.ops.disable_weight_init}
    return built("SDXLRefiner", config, unet.UNetModel(**config, **made))


@pytest.fixture(scope="module")
def ltxv(pack):
    import comfy.ldm.lightricks.model as network

    config = {
        "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32,
        "num_attention_heads": 2, "caption_channels": 48, "num_layers": 1,
    }  # fmt: skip
    return built("LTXV", {"image_model": "ltxv", **config}, network.LTXVModel(**config, **MADE))


def hunyuan_of(config_class, **changes):
    """A small one of the HunyuanVideo network's models, by what this ComfyUI knows of it."""
    import comfy.ldm.hunyuan_video.model as network

    config = HUNYUAN | changes
    known = network.HunyuanVideoParams.__dataclass_fields__
    config = {key: value for key, value in config.items() if key in known}
    net = network.HunyuanVideo(**config, **MADE)
    return built(config_class, {"image_model": "hunyuan_video", **config}, net)


@pytest.fixture(scope="module")
def meanflow(pack):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "HunyuanImage21"):
        pytest.skip("this ComfyUI has no HunyuanImage 2.1")
    return hunyuan_of(
        "HunyuanImage21", in_channels=64, out_channels=64, vec_in_dim=None, axes_dim=[16, 16],
        patch_size=[1, 1], meanflow=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hunyuan(pack):
    return hunyuan_of("HunyuanVideo")


def test_the_refiner_is_told_the_finished_size(pack, refiner, monkeypatch):
    told = []
    plain = refiner.model.encode_adm

    def spied(**given):
        told.append((given["width"], given["height"]))
        return plain(**given)

    monkeypatch.setattr(refiner.model, "encode_adm", spied)
    empty = torch.zeros(1, 4, 16, 24)
    schedule, sigmas, *_ = growth(pack, refiner, empty)
    sample(refiner, sampler_of(pack, schedule), sigmas, text(64, 1280), empty)
    assert len(schedule.stretches(16, 24, 2)) == 2 and set(told) == {(192, 128)}


def test_a_video_of_ltx_may_have_sides_of_odd_cells(pack, ltxv):
    """704 x 480 is 22 x 15 cells of 32 pixels, and a patch is one cell."""
    empty, cond = torch.zeros(1, 128, 3, 15, 22), text(48, 48, attention_mask=torch.ones(1, 6))
    schedule, sigmas, *_ = growth(pack, ltxv, empty, sizes=1)
    ours = sample(ltxv, sampler_of(pack, schedule), sigmas, cond, empty)
    euler = call("comfy_extras.nodes_custom_sampler:KSamplerSelect", "euler")
    assert torch.equal(ours, sample(ltxv, euler, sigmas, cond, empty))
    grown, sigmas, *_ = growth(pack, ltxv, empty)
    out = sample(ltxv, sampler_of(pack, grown), sigmas, cond, empty)
    assert out.shape == empty.shape and bool(out.isfinite().all())


def test_the_video_of_a_pair_with_sound_is_a_video(pack):
    """The host calls what it separates from its audio audio, too."""
    module = pytest.importorskip("comfy_extras.nodes_lt_audio", reason="newer than this host")
    module = pytest.importorskip("comfy_extras.nodes_lt")
    if not hasattr(module, "LTXVSeparateAVLatent"):
        pytest.skip("LTXVSeparateAVLatent is newer than this host")
    video = {"samples": torch.randn(1, 128, 3, 15, 22)}
    sound = {"samples": torch.zeros(1, 8, 16, 16), "type": "audio"}
    both = module.LTXVConcatAVLatent.execute(video, sound).args[0]
    alone, audio = module.LTXVSeparateAVLatent.execute(both).args
    assert alone["type"] == "audio", "or this test is in vain"
    given = {"upscale_method": "bicubic", "width": 0, "height": 0, "noise_sigma": 0.0, "seed": 0}

    def enlarged(latent):
        return pack["SwDLatentUpscale"].execute(samples=latent, scale_by=2.0, **given).args[0]

    assert enlarged(alone)["samples"].shape == (1, 128, 3, 30, 44)
    with pytest.raises(ValueError, match="audio"):
        enlarged(audio)


def test_guides_of_ltx_are_refused_by_name(pack, ltxv):
    """Their places are numbers of full-size cells: real frames got the guide's places."""
    module = pytest.importorskip("comfy_extras.nodes_lt")
    empty = torch.zeros(1, 128, 6, 8, 8)
    vae = SimpleNamespace(
        downscale_index_formula=(8, 32, 32),
        encode=lambda pixels: torch.zeros(1, 128, 1, pixels.shape[1] // 32, pixels.shape[2] // 32),
    )
    cond = text(48, 48, attention_mask=torch.ones(1, 6))
    picture = torch.rand(1, 256, 256, 3)
    given = module.LTXVAddGuide.execute(cond, cond, vae, {"samples": empty}, picture, 16, 1.0)
    positive, _, latent = getattr(given, "args", given)
    grown, sigmas, *_ = growth(pack, ltxv, latent["samples"])
    with pytest.raises(ValueError, match="'keyframe_idxs' of LTXVAddGuide, which can't follow"):
        sample(ltxv, sampler_of(pack, grown), sigmas, positive, latent["samples"])


def test_a_step_of_a_mean_flow_goes_where_the_run_goes(pack, meanflow, monkeypatch):
    """HunyuanImage's distilled model is told the level that its step ends at."""
    import comfy.ldm.hunyuan_video.model as network

    told = []
    net = meanflow.model.diffusion_model
    hook = net.time_r_in.register_forward_pre_hook(lambda _, given: told.append(given[0].clone()))
    empty = torch.zeros(1, 64, 32, 32)
    schedule, sigmas, *_ = growth(pack, meanflow, empty, steps=8, custom_tolerance=0.2)
    try:
        sample(meanflow, sampler_of(pack, schedule), sigmas, text(48, 48), empty)
    finally:
        hook.remove()
    first, last = schedule.stretches(32, 32, 1)
    ratio = math.sqrt(math.prod(last.size) / math.prod(first.size))
    wanted = [own_level(float(s), ratio, True) for s in sigmas[1 : first.steps + 1]]
    wanted += sigmas[first.steps + 1 :].tolist()
    assert first.steps > 1 and len(told) == len(wanted)
    for given, level in zip(told, wanted, strict=True):
        there = network.timestep_embedding(torch.tensor([level]), 256, time_factor=1000.0)
        assert torch.allclose(given, there, atol=2e-3), level


def test_no_call_of_a_mean_flow_goes_backwards(pack, meanflow):
    """Heun's second one at the end of a size was told the next size's higher level."""
    pairs, patched = [], meanflow.clone()

    def spied(apply, given):
        told = given["c"]["transformer_options"]
        [found, *_] = torch.where(told["sigmas"][0] == told["sample_sigmas"])[0].tolist()
        pairs.append((float(told["sigmas"][0]), float(told["sample_sigmas"][found + 1])))
        return apply(given["input"], given["timestep"], **given["c"])

    patched.set_model_unet_function_wrapper(spied)
    empty = torch.zeros(1, 64, 32, 32)
    schedule, sigmas, *_ = growth(
        pack, patched, empty, steps=8, custom_tolerance=0.2, sampler_name="heun"
    )
    assert len(schedule.stretches(32, 32, 1)) == 2
    sample(patched, sampler_of(pack, schedule), sigmas, text(48, 48), empty)
    assert len(pairs) > 8 and all(after < level for level, after in pairs)


@pytest.fixture(scope="module")
def kandinsky(pack):
    network = pytest.importorskip("comfy.ldm.kandinsky5.model")
    config = {
        "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 48, "in_text_dim2": 48,
        "time_dim": 32, "model_dim": 64, "ff_dim": 64, "num_text_blocks": 1,
        "num_visual_blocks": 1, "axes_dims": (8, 12, 12), "visual_embed_dim": 132,
    }  # fmt: skip
    net = network.Kandinsky5(**config, **MADE)
    return built("Kandinsky5", {"image_model": "kandinsky5", **config}, net)


@pytest.mark.parametrize(
    ("model", "name", "text_width"),
    [("hunyuan", "ref_latent", 48), ("kandinsky", "time_dim_replace", 48),
     ("wan", "context_latents", 32)],
)  # fmt: skip
def test_a_picture_beside_a_video_has_the_size_of_the_step(pack, request, model, name, text_width):
    """At its own size it would be of other places, or not fit at all."""
    seen, plain = [], request.getfixturevalue(model)

    def spied(apply, given):
        if name in given["c"]:
            beside = given["c"][name]
            beside = beside[0] if isinstance(beside, list) else beside
            seen.append((tuple(given["input"].shape[-2:]), tuple(beside.shape[-2:])))
        return apply(given["input"], given["timestep"], **given["c"])

    patched = plain.clone()
    patched.set_model_unet_function_wrapper(spied)
    empty, picture = torch.zeros(1, 16, 3, 16, 16), torch.ones(1, 16, 1, 16, 16)
    cond = text(text_width, 48, **{name: [picture] if name == "context_latents" else picture})
    schedule, sigmas, *_ = growth(pack, patched, empty)
    out = sample(patched, sampler_of(pack, schedule), sigmas, cond, empty)
    assert bool(out.isfinite().all())
    if not seen:
        pytest.skip(f"this ComfyUI doesn't read {name}")
    assert {video for video, _ in seen} == {(8, 8), (16, 16)}
    assert all(video == beside for video, beside in seen)


def test_infinite_talk_is_refused_where_a_video_grows(pack, wan):
    from comfy.patcher_extension import WrappersMP

    module = pytest.importorskip("comfy.ldm.wan.model_multitalk")
    motion = module.InfiniteTalkOuterSampleWrapper(torch.zeros(1, 16, 1, 16, 16), None)
    patched = wan.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "infinite_talk_outer_sample", motion)
    empty = torch.zeros(1, 16, 3, 16, 16)
    one, sigmas, *_ = growth(pack, patched, empty, sizes=1)
    assert sample(patched, sampler_of(pack, one), sigmas, text(32, 48), empty).isfinite().all()
    grown = growth(pack, patched, empty)[0]
    with pytest.raises(ValueError, match="WanInfiniteTalkToVideo's motion frames"):
        sample(patched, sampler_of(pack, grown), sigmas, text(32, 48), empty)


def test_a_video_whose_batch_is_its_frames_has_no_drafts(pack):
    """Stable Video Diffusion's: a sheet would be the frames of one video."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops

    config = UNET | {
        "in_channels": 8, "adm_in_channels": 768, "use_temporal_attention": True,
        "use_temporal_resblock": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
        "merge_factor": 0.0, "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1],
    }  # fmt: skip
    made = {**MADE, "operations": comfy.ops.disable_weight_init}
    svd = built("SVD_img2vid", config, unet.UNetModel(**config, **made))
    more = {"motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
    cond = text(64, 64, concat_latent_image=torch.ones(1, 4, 16, 16), **more)
    cond[0][0] = cond[0][0][:, :1]
    empty = torch.zeros(4, 4, 16, 16)
    schedule, sigmas, *_ = growth(pack, svd, empty, steps=4)
    out = sample(svd, sampler_of(pack, schedule), sigmas, cond, empty)
    assert out.shape == empty.shape and bool(out.isfinite().all())
    for count in (4, 1):
        with pytest.raises(ValueError, match="batch is the frames of one video"):
            hosted(
                pack["SwDDrafts"], model=svd, positive=cond, cfg=1.0, schedule=schedule, seed=7,
                latent_image={"samples": empty[:count]}, count=2, stop_after=1, batch=2,
                upscale_method="bicubic",
            )  # fmt: skip


def test_a_model_of_no_pictures_is_refused_whatever_its_latent_looks_like(pack, models):
    """ACE-Step's has rows and columns; a SAMPLER is not told that it is sound."""
    import comfy.latent_formats

    model = models["sd35-medium"].clone()
    model.add_object_patch("latent_format", comfy.latent_formats.Hunyuan3Dv2())
    with pytest.raises(ValueError, match="makes sound or 3D shapes .Hunyuan3D"):
        growth(pack, model, None)
    model.add_object_patch("latent_format", comfy.latent_formats.ACEAudio())
    with pytest.raises(ValueError, match="makes sound"):
        growth(pack, model, torch.zeros(1, 8, 16, 32))
    schedule, sigmas, *_ = growth(pack, models["sd35-medium"], None)
    with pytest.raises(ValueError, match="makes sound"):
        sample(model, sampler_of(pack, schedule), sigmas, [], torch.zeros(1, 8, 16, 32))
