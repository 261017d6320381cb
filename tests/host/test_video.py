"""Videos: a small random Wan scaled in space and time, against a chain of the host's own runs.

The chain calls the host's guider once per scale, with that scale's conditioning made here: frames
picked by the rule in `picked`, x0 enlarged by torch's bicubic and, in time, its linear.
"""

import json
import re
import shutil
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chain import call, cfg_guider
from conftest import Server
from paper import SEED, guided, relative, schedule_of
from safetensors.torch import load_file
from test_live import Listener

from swd_core.noise import draw_noise

PRESET = "wan21-1.3b-4"
FRAMES, SIZE = 9, (24, 36)
TARGET = (FRAMES, *SIZE)
SIZES = [(3, 8, 12), (5, 12, 18), (7, 16, 24), TARGET]  # by hand: 1 + 8/4, 1 + 8/2, 1 + 6, 9
SIGMAS = [1, 0.896, 0.737, 0.602]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def as_the_host_runs_its_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def wan(small):
    return small.wan_model()


@pytest.fixture(scope="module")
def schedule(pack, wan):
    return schedule_of(pack, wan, PRESET)[0]


def random(*shape, seed=3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed=1, **more) -> list:
    return [[random(1, 7, 32, seed=seed), more]]


def empty(count=1, size=TARGET) -> dict:
    return {"samples": torch.zeros(count, 16, *size)}


def picked(x, frames: int, dim=2):
    """The frames nearest to where those of a shorter video lie, the ends as they are."""
    last = x.shape[dim] - 1
    return x.index_select(
        dim, torch.tensor([round(t * last / (frames - 1)) for t in range(frames)])
    )


def shrunk(x, size):
    """A latent or mask (B, C, T, H, W) at a smaller size: frames picked, no aliasing in space."""
    frames = picked(x, size[0]) if size[0] != x.shape[2] else x
    if tuple(x.shape[3:]) == tuple(size[1:]):
        return frames
    small = [F.interpolate(f, size[1:], mode="bilinear", antialias=True) for f in frames.unbind(2)]
    return torch.stack(small, 2)


def enlarged(x, size):
    """An x0 (B, C, T, H, W): every frame by bicubic, new ones between by linear interpolation."""
    frames = torch.stack([F.interpolate(f, size[1:], mode="bicubic") for f in x.unbind(2)], 2)
    b, c, t, h, w = frames.shape
    rows = frames.permute(0, 1, 3, 4, 2).reshape(b, -1, t)
    rows = F.interpolate(rows, size[0], mode="linear", align_corners=True)
    return rows.view(b, c, h, w, size[0]).permute(0, 1, 4, 2, 3)


def chain(model, cond_at, *, sizes=SIZES, indices=(0,), picture=None, mask=None, first=0):
    """The finished latent by the host's own runs of one step each.

    cond_at: the CONDITIONING of a step of this (T, H, W).
    """
    import comfy.samplers

    x0 = None
    for step, here in enumerate(sizes):
        if step < first:
            continue
        kept = None if picture is None else shrunk(picture, here)
        if x0 is None:
            x0 = torch.zeros(len(indices), 16, *here) if kept is None else kept
        latent = enlarged(x0, here) if x0.shape[2:] != here else x0
        part = None if mask is None else shrunk(mask, here)
        inpaint = part if step == first else None  # the first x0 is the picture: host's inpainting
        if part is not None:
            latent = part * latent + (1 - part) * kept
        x0 = cfg_guider(model, cond_at(here)).sample(
            draw_noise(SEED, indices, step, latent.shape[1:]), latent,
            comfy.samplers.sampler_object("lcm"), torch.tensor([SIGMAS[step], 0.0]),
            denoise_mask=inpaint, disable_pbar=True, seed=SEED,
        )  # fmt: skip
        if part is not None and inpaint is None:
            x0 = part * x0 + (1 - part) * kept
    return x0


def sample(pack, model, schedule, cond, latent=None, **options) -> torch.Tensor:
    inputs = {"seed": SEED, "cfg": 1.0, "upscale_method": "bicubic", **options}
    out = pack["SwDSample"].execute(
        model=model, positive=cond, latent_image=latent or empty(), schedule=schedule, **inputs
    )
    return out.args[0]["samples"]


def custom(pack, model, frames="", sizes="0.333333 0.5 0.666667 1", sigmas="1 .896 .737 .602"):
    return pack["SwDScaleSchedule"].execute(
        model=model, preset="custom", custom_sizes=sizes, custom_sigmas=sigmas,
        custom_frames=frames,
    ).args  # fmt: skip


def test_video_scales_in_space_and_time(pack, wan, schedule, record_property):
    guider, shapes = cfg_guider(wan, text()), []
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    other = guider.sample(
        torch.zeros(1, 16, *TARGET), torch.zeros(1, 16, *TARGET), sampler,
        torch.tensor([*SIGMAS, 0.0]), seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: shapes.append(tuple(x0.shape[2:])),
    )  # fmt: skip
    assert shapes == SIZES
    theirs = chain(wan, lambda size: text())
    ours = sample(pack, wan, schedule, text())
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE
    assert torch.equal(ours, other), "the SAMPLER is the same run"


def test_without_frames_in_the_schedule_all_are_there_throughout(pack, wan, record_property):
    theirs = chain(wan, lambda size: text(), sizes=[(FRAMES, *size[1:]) for size in SIZES])
    ours = sample(pack, wan, custom(pack, wan)[0], text())
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("frames", ["0.25 0.5 0.75 1", "3 5 7 9", "9, 17, 25, 33"])
def test_frames_typed_as_shares_latent_frames_or_pictures(pack, wan, schedule, frames):
    typed = custom(pack, wan, frames)[0]
    assert typed.frames == schedule.frames
    assert typed.sizes(*SIZE, frames=FRAMES) == SIZES


def test_a_video_does_not_depend_on_its_batch(pack, wan, schedule):
    both = sample(pack, wan, schedule, text(), empty(2))
    second = sample(pack, wan, schedule, text(), {**empty(), "batch_index": [1]})
    assert relative(both[1:], second) <= TOLERANCE
    assert relative(both[1:], chain(wan, lambda size: text(), indices=(1,))) <= TOLERANCE
    assert relative(both[:1], both[1:]) > 0.1


@pytest.mark.parametrize(("frames", "sizes"), [(1, [1] * 4), (2, [1, 2, 2, 2]), (4, [2, 3, 3, 4])])
def test_short_videos_and_stills(pack, wan, schedule, frames, sizes):
    shapes = [(t, *size[1:]) for t, size in zip(sizes, SIZES, strict=True)]
    ours = sample(pack, wan, schedule, text(), empty(size=(frames, *SIZE)))
    assert relative(ours, chain(wan, lambda size: text(), sizes=shapes)) <= TOLERANCE


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_finished_drafts_are_the_straight_run(pack, wan, schedule, tmp_path, stop_after):
    import folder_paths

    for name in ("temp", "output"):
        (tmp_path / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(tmp_path / name))
    drafts, images, sheet = pack["SwDDrafts"].execute(
        model=wan, positive=text(), latent_image=empty(), schedule=schedule, seed=SEED, count=2,
        stop_after=stop_after, batch=1, cfg=1.0, upscale_method="bicubic",
    ).args  # fmt: skip
    assert tuple(drafts["samples"].shape[2:]) == SIZES[stop_after - 1]
    assert images.shape[0] == 2 * SIZES[stop_after - 1][0] and sheet.shape[0] == 1
    [file] = (
        pack["SwDSaveDrafts"].execute(drafts=drafts, filename_prefix="drafts/x").ui["swd_files"]
    )
    drafts = (
        pack["SwDLoadDrafts"]
        .execute(file=f"drafts/{file['filename']} [output]", vae=FrameVAE())
        .args[0]
    )
    done, scales = pack["SwDFinishDrafts"].execute(
        model=wan, positive=text(), drafts=drafts, pick="2", detail_seed=0, variations=1,
        stop_after=0, batch=4, cfg=1.0,
    ).args  # fmt: skip
    straight = sample(pack, wan, schedule, text(), {**empty(), "batch_index": [1]})
    assert torch.equal(done["samples"], straight)
    assert [tuple(s["samples"].shape[2:]) for s in scales] == SIZES


class FrameVAE:
    """Pictures (B, T, H, W, 3) as the host's VAE gives those of a video."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1).sigmoid()


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
        )  # fmt: skip
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
}  # fmt: skip
IN_SIZE = {
    "vace_frames": [torch.zeros(1, 32, *TARGET)], "camera_conditions": TENSOR,
    "control_video": TENSOR, "pose_video_latent": TENSOR,
}  # fmt: skip


@pytest.mark.parametrize("name", [*IN_TIME, *IN_SIZE])
def test_inputs_that_can_t_follow_are_refused_by_name(pack, wan, schedule, name):
    calls = []
    model = wan.clone()
    model.set_model_unet_function_wrapper(lambda apply, a: calls.append(a["input"]) or a["input"])
    cond = text(**{name: {**IN_TIME, **IN_SIZE}[name]})
    word = "size" if name in IN_SIZE else "time"
    with pytest.raises(
        ValueError, match=f"'{name}', which can't follow a video that grows in {word}"
    ):
        sample(pack, model, schedule, cond)
    in_space = custom(pack, wan)[0]
    assert not calls
    if name in IN_SIZE:
        with pytest.raises(ValueError, match=f"'{name}', which can't follow"):
            sample(pack, model, in_space, cond)
    else:  # the time they are of stays as it is
        sample(pack, model, in_space, cond)


def test_a_controlnet_is_refused_by_name(pack, wan, schedule, controls):
    control = controls("sd35-medium")[0]
    with pytest.raises(
        ValueError, match="'control', which can't follow a video that grows in time"
    ):
        sample(pack, wan, schedule, text(control=control, control_apply_to_uncond=False))


@pytest.mark.parametrize("name", ["concat_latent_image", "concat_mask", "mask"])
def test_inputs_of_another_length_are_refused(pack, wan, schedule, name):
    other = torch.ones(1, 4, 5, *SIZE) if name != "mask" else torch.ones(5, *SIZE)
    with pytest.raises(ValueError, match=f"{name!r} has 5 latent frames.*has 9"):
        sample(pack, wan, schedule, text(**{name: other}))


def test_momentum_is_refused_when_only_time_grows(pack, wan):
    model = call("comfy_extras.nodes_apg:APG", wan, 1.0, 0.0, -0.5)
    in_time = custom(pack, wan, "3 9", "1 1", "1 0.6")[0]
    with pytest.raises(ValueError, match="momentum"):
        sample(pack, model, in_time, text(), cfg=2.0, negative=text(2))


def test_pictures_are_refused_by_a_schedule_that_scales_time(pack, small, models):
    latent = {"samples": torch.zeros(1, 16, *SIZE)}
    schedule = custom(pack, models["flux"], "3 5 7 9")[0]
    with pytest.raises(ValueError, match="custom begins with fewer frames.*this is a picture"):
        sample(pack, models["flux"], schedule, guided(small, "flux"), latent)
    with pytest.raises(ValueError, match="this is a picture"):
        pack["SwDScaleSchedule"].execute(
            model=models["flux"], preset="custom", custom_sizes="0.5 1", custom_sigmas="1 0.6",
            custom_frames="3 9", latent_image=latent,
        )  # fmt: skip
    still = sample(pack, small.wan_model(), schedule, text(), latent)
    assert tuple(still.shape[2:]) == (1, *SIZE), "to Wan it is a video of one frame"


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ("5 3 7 9", "Step 2: frames 0.25 is below step 1's 0.5"),
        ("3 5 9", "3 frames but 4 scales"),
        ("0.2 0.4 0.6 0.8", "last of frames is 0.8"),
        ("0 5 7 9", "Step 1: frames -0.125 is outside 0..1"),
        ("three 5 7 9", "custom_frames, step 1: 'three'"),
    ],
)
def test_bad_frames_are_refused_before_the_graph_runs(pack, wan, frames, says):
    lists = {"custom_sizes": "1 1 1 1", "custom_sigmas": "1 .8 .7 .6", "custom_frames": frames}
    assert says in pack["SwDScaleSchedule"].validate_inputs(preset="custom", **lists)
    with pytest.raises(ValueError, match=re.escape(says)):
        custom(pack, wan, frames, "1 1 1 1")


def test_auto_is_the_published_schedule_for_the_width_it_was_trained_at(pack, small):
    """The published target's own row: 6x20x34, 11x30x52, 16x40x70, 21x60x104."""
    import comfy.supported_models

    def model_of(width):
        config = {"image_model": "wan2.1", **small.WAN, "dim": width, "num_heads": width // 128}
        config = comfy.supported_models.WAN21_T2V(config)
        return small.patcher(config, {}, torch.float32, torch.device("meta"))

    lists = {"custom_sizes": "", "custom_sigmas": ""}
    node, published = pack["SwDScaleSchedule"], model_of(1536)
    schedule, sigmas, table, plot = node.execute(model=published, preset="auto", **lists).args
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [(int(r[-1]), int(r[3]) // 8, int(r[1]) // 8) for r in rows] == [
        (6, 20, 34), (11, 30, 52), (16, 40, 70), (21, 60, 104),
    ]  # fmt: skip
    assert schedule.name == PRESET and sigmas.tolist() == pytest.approx([*SIGMAS, 0])
    cells = [t * h * w for t, h, w in ((6, 20, 34), (11, 30, 52), (16, 40, 70), (21, 60, 104))]
    assert f"{sum(cells) / cells[-1]:.2f} full-size steps" in table
    assert plot.shape[-1] == 3 and plot.std() > 0.05
    with pytest.raises(ValueError, match="no SwD preset for this model"):
        node.execute(model=model_of(5120), preset="auto", **lists)
    assert node.execute(model=model_of(5120), preset=PRESET, **lists).args[0] == schedule


def test_users_presets_for_videos_travel_with_the_graph(pack, wan, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    film = {
        "title": "t", "family": "wan", "provenance": "p", "scales": [0.5, 1], "sigmas": [1, 0.6],
        "frames": [0.25, 1], "video": [33, 192, 288],
    }  # fmt: skip
    (tmp_path / "swd_presets.json").write_text(json.dumps({"film": film}))
    [entry] = [e for e in pack["SwDScaleSchedule"].define_schema().inputs[2].options if "film" in e]
    (tmp_path / "swd_presets.json").unlink()
    schedule = schedule_of(pack, wan, entry)[0]
    assert schedule.sizes(*SIZE, frames=FRAMES) == [(3, 12, 18), TARGET]


def test_the_upscaler_s_own_node(pack):
    x = random(2, 16, 6, 8, 12)
    inputs = {"upscale_method": "bicubic", "width": 0, "height": 0, "noise_sigma": 0.0, "seed": 7}
    node = pack["SwDLatentUpscale"]

    def run(latent, **more):
        return node.execute(samples={"samples": latent}, **inputs, **more).args[0]["samples"]

    torch.testing.assert_close(run(x, scale_by=1.5, latent_frames=11), enlarged(x, (11, 12, 18)))
    in_space = run(x, scale_by=1.5)
    assert in_space.shape[2] == 6 and torch.equal(run(x, scale_by=1.5, latent_frames=6), in_space)
    assert torch.equal(run(x, scale_by=1.0, latent_frames=4), picked(x, 4))
    with pytest.raises(ValueError, match="is no video"):
        run(x[:, :, 0], scale_by=1.5, latent_frames=11)


def test_the_strip_of_a_video(pack):
    """Every scale lasts as long as the finished one; picture t of a strip is one moment."""
    scales = [torch.linspace(0, 1, n)[:, None, None, None].expand(n, n, n, 3) for n in (5, 9, 17)]
    strip, frames = pack["SwDScaleStrip"].execute(images=scales, gap=[2]).args
    assert strip.shape == (17, 21, 5 + 9 + 17 + 8, 3) and frames.shape == (51, 17, 17, 3)
    assert torch.equal(frames[34:], scales[2])
    for t in (0, 4, 8, 12, 16):
        assert torch.equal(frames[t], frames[t + 17]) and torch.equal(frames[t], frames[t + 34])
    assert len(frames[:17, 0, 0, 0].unique()) == 5
    with pytest.raises(ValueError, match="10, 18 images"):
        pack["SwDScaleStrip"].execute(images=[s.repeat(2, 1, 1, 1) for s in scales[:2]], gap=[2])


@pytest.fixture(scope="module")
def host(small, tmp_path_factory):
    """A server whose loaders give the small Wan, with live previews."""
    base = tmp_path_factory.mktemp("comfy_video")
    for folder in ("diffusion_models", "text_encoders", "vae"):
        (base / "models" / folder).mkdir(parents=True)
        (base / "models" / folder / "wan.safetensors").touch()
    (base / "custom_nodes").mkdir()
    stand_ins = Path(__file__).with_name("stand_ins.py")
    (base / "custom_nodes" / stand_ins.name).symlink_to(stand_ins)
    running = Server(base, "--preview-method", "latent2rgb")
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


def video_graph() -> dict:
    file = {"unet_name": "wan.safetensors", "weight_dtype": "default"}
    clip = {"clip_name": "wan.safetensors", "type": "wan", "device": "default"}
    size = {"width": 8 * SIZE[1], "height": 8 * SIZE[0], "length": 4 * FRAMES - 3, "batch_size": 1}
    lists = {"preset": PRESET, "custom_sizes": "", "custom_sigmas": "", "latent_image": ["5", 0]}
    run = {"seed": SEED, "cfg": 1.0, "upscale_method": "bicubic", "latent_image": ["5", 0]}
    run |= {"model": ["1", 0], "positive": ["3", 0], "schedule": ["4", 0]}
    parts = {
        "1": ("UNETLoader", file),
        "2": ("CLIPLoader", clip),
        "3": ("CLIPTextEncode", {"clip": ["2", 0], "text": "a boat"}),
        "4": ("SwDScaleSchedule", {"model": ["1", 0], **lists}),
        "5": ("EmptyHunyuanLatentVideo", size),
        "6": ("SwDSample", run),
        "7": ("SaveLatent", {"samples": ["6", 0], "filename_prefix": "video"}),
        "8": ("PreviewAny", {"source": ["4", 2]}),
    }
    return {key: {"class_type": name, "inputs": given} for key, (name, given) in parts.items()}


def test_through_the_server(host, wan):
    """The table, previews of every scale with progress by its cells, and the finished latent."""
    listener = Listener(host)
    values = []
    listener.on_progress = values.append
    host.post("/prompt", {"prompt": video_graph(), "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    cells = [t * h * w for t, h, w in SIZES]
    assert cells == [288, 1080, 2688, 7776] and values[-4:] == [2, 12, 34, 100]
    assert [max(p.size) for p in listener.previews] == [171, 256, 341, 512]
    [file] = host.base.rglob("video_*.latent")
    ours = load_file(file)["latent_tensor"]
    seed = zlib.crc32(b"a boat")
    assert relative(ours, chain(wan, lambda size: text(seed))) <= TOLERANCE
