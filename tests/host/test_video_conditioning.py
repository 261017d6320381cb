"""Inputs of videos that follow the scales in space and time, or are refused by name."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from chain import call, cfg_guider
from paper import SEED, relative, schedule_of
from videos import (
    FRAMES,
    PRESET,
    SIGMAS,
    SIZE,
    SIZES,
    TARGET,
    TOLERANCE,
    chain,
    custom,
    enlarged,
    picked,
    random,
    sample,
    shrunk,
    text,
)

from swd_core.noise import draw_noise

pytestmark = pytest.mark.usefixtures("as_the_host_runs_its_nodes")


@pytest.fixture(scope="module")
def schedule(pack, wan):
    return schedule_of(pack, wan, PRESET)[0]


def image_to_video(size, kept=1) -> list:
    """What WanImageToVideo makes for the first and the last frame, at a size in time."""
    image, mask = random(1, 16, *TARGET, seed=9), torch.ones(1, 4, *TARGET)
    mask[:, :, :kept] = 0
    mask[:, 3:, -1] = 0
    return text(
        concat_latent_image=picked(image, size[0]), concat_mask=picked(mask, size[0])
    )  # fmt: skip


@pytest.mark.parametrize("kept", [1, 3])
def test_image_to_video_inputs_have_as_many_frames(pack, small, schedule, kept, record_property):
    model = small.wan_model("WAN21_I2V", model_type="i2v", in_dim=36)
    theirs = chain(model, lambda size: image_to_video(size, kept))
    ours = sample(pack, model, schedule, image_to_video(TARGET, kept))
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE
    assert relative(sample(pack, model, schedule, text()), ours) > 0.01


def test_the_host_s_own_image_to_video_node(pack, small, schedule):
    """A picture that lasts: every size gets the encoded first frame as its first one."""
    node = call_wan_image_to_video(random(1, 8 * SIZE[0], 8 * SIZE[1], 3).sigmoid())
    model = small.wan_model("WAN21_I2V", model_type="i2v", in_dim=36)
    positive, latent = node
    seen = []

    def look(apply_model, call):
        seen.append(call["c"]["c_concat"])
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(look)
    sample(pack, model, schedule, positive, latent)
    assert [tuple(c.shape[2:]) for c in seen] == SIZES
    for concat in seen:  # 4 of the mask, in which 1 is known, and 16 of the picture
        assert (concat[:, :4, 0] == 1).all() and (concat[:, :4, 1:] == 0).all()
        first = F.interpolate(seen[-1][:, 4:, 0], concat.shape[-2:], mode="bilinear")
        assert relative(concat[:, 4:, 0], first) < 0.02


def call_wan_image_to_video(picture):
    from comfy_extras.nodes_wan import WanImageToVideo

    class VAE:
        def encode(self, pixels):
            cells = F.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8).movedim(0, 1)[None]
            return cells[:, :, ::4].repeat(1, 6, 1, 1, 1)[:, :16]

    out = WanImageToVideo.execute(
        text(), text(2), VAE(), 8 * SIZE[1], 8 * SIZE[0], 4 * FRAMES - 3, 1, start_image=picture
    )
    return out.args[0], out.args[2]


@pytest.mark.parametrize("shape", [(FRAMES, *SIZE), (1, FRAMES, *SIZE), (1, *SIZE)])
def test_regions_by_masks_of_every_shape(pack, wan, schedule, shape, record_property):
    mask = (random(*shape, seed=4) > 0).float()

    def cond_at(size):
        here = mask
        if mask.ndim > 2 and mask.shape[-3] == FRAMES:
            here = picked(mask, size[0], dim=mask.ndim - 3)
        return text() + text(2, mask=here, mask_strength=1.0)

    theirs = chain(wan, cond_at)
    ours = sample(pack, wan, schedule, cond_at(TARGET))
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE


def test_an_area_keeps_its_frames(pack, wan, schedule, record_property):
    """The second half in time, the left half in space: frames 4 to 8 of 9 are 1 to 2 of 3."""
    areas = {3: (2, 1), 5: (3, 2), 7: (4, 3), 9: (5, 4)}

    def cond_at(size):
        (length, start), (_, h, w) = areas[size[0]], size
        return text() + text(2, area=(length, h, w // 2, start, 0, 0))

    theirs = chain(wan, cond_at)
    ours = sample(pack, wan, schedule, cond_at(TARGET))
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("shape", [(FRAMES, 48, 72), (1, 48, 72)])
def test_inpainting_keeps_frames_and_regions(pack, wan, schedule, shape, record_property):
    picture, mask = random(1, 16, *TARGET, seed=6), (random(*shape, seed=4) > 0).float()
    if shape[0] == FRAMES:
        mask[0] = 0  # the first frame stays
    full = F.interpolate(mask[None, None], TARGET, mode="trilinear").expand(1, 16, *TARGET)
    theirs = chain(wan, lambda size: text(), picture=picture, mask=full)
    ours = sample(pack, wan, schedule, text(), {"samples": picture, "noise_mask": mask})
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= 2e-5
    if shape[0] == FRAMES:
        assert relative(ours[:, :, :1], picture[:, :, :1]) <= TOLERANCE


def test_a_model_that_is_told_which_frames_are_kept(pack, small, schedule, record_property):
    """Wan 2.2 5B's image-to-video: the mask becomes a noise level for every frame."""
    import comfy.samplers

    model = small.wan_model("WAN22_T2V", in_dim=48, out_dim=48)
    picture, mask = random(1, 48, *TARGET, seed=6), torch.ones(1, 48, *TARGET)
    mask[:, :, 0] = 0
    x0 = None
    for step, here in enumerate(SIZES):
        kept, part = shrunk(picture, here), shrunk(mask, here)
        latent = kept if x0 is None else part * enlarged(x0, here) + (1 - part) * kept
        x0 = cfg_guider(model, text()).sample(
            draw_noise(SEED, (0,), step, latent.shape[1:]), latent,
            comfy.samplers.sampler_object("lcm"), torch.tensor([SIGMAS[step], 0.0]),
            denoise_mask=part, disable_pbar=True, seed=SEED,
        ).cpu()  # fmt: skip
    latent = {"samples": picture, "noise_mask": mask[:, :1]}
    ours = sample(pack, model, schedule, text(), latent)
    record_property("difference", relative(ours, x0))
    assert relative(ours, x0) <= 2e-5
    assert relative(ours[:, :, :1], picture[:, :, :1]) <= TOLERANCE


@pytest.mark.parametrize(("start_at", "first"), [(0.9, 1), (0.4, 2), (0.25, 3)])
def test_video_to_video(pack, wan, schedule, start_at, first, record_property):
    """Wan's shift of 8 makes these shares sigmas of 0.986, 0.842 and 0.727."""
    picture = random(1, 16, *TARGET, seed=6)
    theirs = chain(wan, lambda size: text(), picture=picture, first=first)
    ours = sample(pack, wan, schedule, text(), {"samples": picture}, start_at=start_at)
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE


def test_a_reference_picture_shrinks_with_the_video(pack, small, schedule, record_property):
    """Wan Fun's reference: the model puts its tokens beside those of the frames."""
    model = small.wan_model(in_dim_ref_conv=16)
    reference = random(1, 16, 1, *SIZE, seed=7)

    def cond_at(size):
        return text(reference_latents=[shrunk(reference, (1, *size[1:]))])

    theirs = chain(model, cond_at)
    ours = sample(pack, model, schedule, cond_at(TARGET))
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE
    assert relative(sample(pack, model, schedule, text()), ours) > 0.01


def test_pictures_of_subjects_shrink_with_the_video(pack, wan, schedule, record_property):
    """Phantom's: the model puts them after the last frame."""
    subjects = random(1, 16, 2, *SIZE, seed=7)

    def cond_at(size):
        return text(time_dim_concat=shrunk(subjects, (2, *size[1:])))

    theirs = chain(wan, cond_at)
    ours = sample(pack, wan, schedule, cond_at(TARGET))
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE
    assert relative(sample(pack, wan, schedule, text()), ours) > 0.01


TENSOR = torch.zeros(1, 16, *TARGET)
IN_TIME = {
    "audio_embed": torch.zeros(1, 33, 4), "face_video_pixels": torch.zeros(1, 3, 33, 64, 64),
    "reference_motion": TENSOR, "context_latents": [TENSOR], "of_another_pack": {"a": [TENSOR]},
    "vace_frames": [torch.zeros(1, 32, *TARGET)], "vace_mask": [torch.zeros(1, 64, *TARGET)],
    "camera_conditions": torch.zeros(1, 24, FRAMES, *(8 * side for side in SIZE)),
    "control_video": TENSOR, "pose_video_latent": TENSOR,
}  # fmt: skip
IN_SIZE = {
    "keyframe_idxs": torch.zeros(1, 3, 64, 2), "condition": TENSOR,
    "pose_video_latent of SCAIL": torch.zeros(1, 16, FRAMES, *(side // 2 for side in SIZE)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*IN_TIME, *IN_SIZE])
def test_inputs_that_can_t_follow_are_refused_by_name(pack, wan, schedule, name):
    calls = []
    model = wan.clone()
    model.set_model_unet_function_wrapper(lambda apply, a: calls.append(a["input"]) or a["input"])
    key = name.partition(" ")[0]
    cond = text(**{key: {**IN_TIME, **IN_SIZE}[name]})
    said = f"'{key}' of .*, which can't follow a video that grows in size"
    if name in IN_TIME:
        said = f"'{key}', which can't follow a video that grows in time"
    with pytest.raises(ValueError, match=said):
        sample(pack, model, schedule, cond)
    in_space = custom(pack, wan)[0]
    assert not calls
    if name in IN_SIZE:
        with pytest.raises(ValueError, match=said):
            sample(pack, model, in_space, cond)
    else:  # the time they are of stays as it is
        sample(pack, model, in_space, cond)


def test_a_controlnet_is_refused_by_name(pack, wan, schedule, controls):
    control = controls("sd35-medium")[0]
    with pytest.raises(
        ValueError, match="'control', which can't follow a video that grows in time"
    ):
        sample(pack, wan, schedule, text(control=control, control_apply_to_uncond=False))


def test_uni3c_is_refused_by_name_where_time_is_scaled(pack, wan, schedule):
    """Its patch of the model cuts the control video to the frames that it sees; none is encoded."""
    import comfy.model_patcher
    import comfy.ops

    uni3c = pytest.importorskip("comfy.ldm.wan.uni3c", reason="Uni3C is newer than this host")
    net = uni3c.WanUni3CControlnet(
        in_channels=36, conv_out_dim=32, dim=32, ffn_dim=32, num_heads=2, num_layers=2,
        time_embed_dim=128, out_proj_dim=128, mid_channels=16, device="cpu", dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )  # fmt: skip
    device = torch.device("cpu")
    patch = comfy.model_patcher.ModelPatcher(net, load_device=device, offload_device=device)
    sizes = []

    def encode(frames):
        sizes.append(tuple(frames.shape[:3]))
        raise RuntimeError("encoded")

    vae = SimpleNamespace(
        downscale_index_formula=(4, 8, 8), spacial_compression_encode=lambda: 8,
        temporal_compression_decode=lambda: 4, encode=encode,
    )  # fmt: skip
    model = call(
        "comfy_extras.nodes_model_patch:WanUni3CControlnetApply", model=wan, model_patch=patch,
        vae=vae, render_video=torch.zeros(33, 64, 64, 3), strength=1.0, start_percent=0.0,
        end_percent=1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Uni3C's control video can't follow .* grows in time"):
        sample(pack, model, schedule, text())
    assert not sizes
    with pytest.raises(RuntimeError, match="encoded"):  # where time stays, each size has its own
        sample(pack, model, custom(pack, wan)[0], text())
    assert sizes[0][0] == 33


@pytest.mark.parametrize("name", ["concat_latent_image", "concat_mask", "mask"])
def test_inputs_of_another_length_are_refused(pack, wan, schedule, name):
    other = torch.ones(1, 4, 5, *SIZE) if name != "mask" else torch.ones(5, *SIZE)
    with pytest.raises(ValueError, match=f"{name!r} has 5 latent frames.*has 9"):
        sample(pack, wan, schedule, text(**{name: other}))
