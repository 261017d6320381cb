"""What the host's video nodes make, in a growing run, is as they make it for a video of that size.

The nodes themselves, run at the small size, are what each small input is held to. Videos are planes
that turn from frame to frame: they look the same at any size but for their edges.
"""

import pytest
import torch
import torch.nn.functional as F
from chain import call, outputs
from grown import growth, sample, sampler_of
from torch import nn
from videos import text

FULL, SMALL, LENGTH = 128, 64, 9  # pixels of a side, and frames
NODES = "comfy_extras.nodes_wan:"
MADE = {"operations": nn, "device": "cpu", "dtype": torch.float32}


class CellMeans:
    """A VAE of videos whose latent is what the pixels of a cell, and four frames' first, are."""

    latent_channels = 16

    def encode(self, pixels):
        cells = F.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8) * 2 - 1
        return cells[::4].movedim(0, 1)[None].repeat(1, 6, 1, 1, 1)[:, :16].contiguous()

    def spacial_compression_encode(self):
        return 8

    def temporal_compression_decode(self):
        return 4


def planes(frames: int, side: int) -> torch.Tensor:
    """Pixels (frames, side, side, 3) whose colours rise over the picture, each frame's anew."""
    places = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(places, places, indexing="ij")
    turns = torch.linspace(0, 1, frames)[:, None, None]
    colours = (x + 0 * turns, y + 0 * turns, turns * x + (1 - turns) * y)
    return torch.stack(colours, -1).contiguous()


def halves(frames: int, side: int) -> torch.Tensor:
    """Masks (frames, side, side): the right half, and in later frames also below the middle."""
    mask = torch.zeros(frames, side, side)
    mask[:, :, side // 2 :] = 1
    mask[frames // 2 :, side // 2 :] = 1
    return mask


def made(name: str, side: int, **more):
    """The conditioning and the latent of a node at that size."""
    sizes = {"width": side, "height": side, "length": LENGTH, "batch_size": 1}
    given = outputs(NODES + name, text(), text(2), CellMeans(), **sizes, **more)
    return given[0], next(g for g in given if isinstance(g, dict))["samples"]


def vace(side):
    return made(
        "WanVaceToVideo", side, strength=1.0, control_video=planes(LENGTH, side),
        control_masks=halves(LENGTH, side), reference_image=planes(1, side),
    )  # fmt: skip


def camera(side):
    moved = call(
        "comfy_extras.nodes_camera_trajectory:WanCameraEmbedding",
        "Zoom In", side, side, LENGTH, speed=1.0, fx=0.5, fy=0.5, cx=0.5, cy=0.5,
    )  # fmt: skip
    return made("WanCameraImageToVideo", side, start_image=planes(1, side), camera_conditions=moved)


def animate(side):
    return made(
        "WanAnimateToVideo", side, continue_motion_max_frames=5, video_frame_offset=0,
        reference_image=planes(1, side), pose_video=planes(LENGTH, side),
    )  # fmt: skip


def sound(side):
    return made(
        "WanSoundImageToVideo", side, ref_image=planes(1, side),
        control_video=planes(LENGTH, side), ref_motion=planes(73, side),
    )  # fmt: skip


KINDS = {
    "vace": (vace, "WAN21_Vace", "model:VaceWanModel", {"vace_layers": 1, "vace_in_dim": 96}),
    "camera": (camera, "WAN21_Camera", "model:CameraWanModel", {"in_dim": 32}),
    "animate": (animate, "WAN22_Animate", "model_animate:AnimateWanModel", {"in_dim": 36}),
    "s2v": (
        sound, "WAN22_S2V", "model:WanModel_S2V",
        {"audio_inject_layers": [0], "audio_dim": 32, "cond_dim": 16},
    ),
}  # fmt: skip
READ = {
    "vace": ("vace_context",),
    "camera": ("camera_conditions",),
    "animate": ("pose_latents",),
    "s2v": ("control_video", "reference_motion", "reference_latent"),
}


def wan_of(kind: str):
    """A small one of the host's class, whatever this host calls it; skipped where it has none."""
    import comfy.supported_models
    from small_models import WAN, patcher, random_weights

    _, config_class, place, changes = KINDS[kind]
    module, network = place.split(":")
    module = pytest.importorskip(f"comfy.ldm.wan.{module}")
    if not hasattr(comfy.supported_models, config_class):
        pytest.skip(f"this ComfyUI has no {config_class}")
    config = {**WAN, **changes, "model_type": kind}
    net = getattr(module, network)(**config, **MADE)
    made_of = getattr(comfy.supported_models, config_class)({"image_model": "wan2.1", **config})
    return patcher(made_of, random_weights(net), torch.float32)


def spied(model, names):
    """The model, and what it is given under those names at each size of x, the last of each."""
    seen, model = {}, model.clone()

    def look(apply, given):
        side = given["input"].shape[-1]
        seen[side] = {name: given["c"][name].clone() for name in names}
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(look)
    return model, seen


def inner(x):
    """Without the outermost cells, which see the picture's edge."""
    return x[..., 2:-2, 2:-2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_is_what_its_node_makes_of_it_at_that_size(pack, kind):
    model, seen = spied(wan_of(kind), READ[kind])
    make = KINDS[kind][0]
    cond, empty = make(FULL)
    schedule, sigmas, *_ = growth(pack, model, empty)
    out = sample(model, sampler_of(pack, schedule), sigmas, cond, empty)
    assert bool(out.isfinite().all())
    assert set(seen) == {SMALL // 8, FULL // 8}
    reached = seen[SMALL // 8]
    model, seen = spied(wan_of(kind), READ[kind])
    cond, empty = make(SMALL)
    one, sigmas, *_ = growth(pack, model, empty, sizes=1)
    sample(model, sampler_of(pack, one), sigmas, cond, empty)
    for name in READ[kind]:
        given, wanted = inner(reached[name]), inner(seen[SMALL // 8][name])
        assert given.shape == wanted.shape and wanted.std() > 0.05, name
        off = (given - wanted).abs()
        assert off.mean() < 0.02 * wanted.std() and off.quantile(0.9) < 0.05 * wanted.std(), name


def test_masks_of_who_is_who_shrink_with_their_references(pack):
    """SCAIL-2's, beside reference pictures and without a pose, which is refused."""
    import comfy.supported_models
    from small_models import WAN, patcher, random_weights

    if not hasattr(comfy.supported_models, "WAN21_SCAIL2"):
        pytest.skip("this ComfyUI has no SCAIL-2")
    network = pytest.importorskip("comfy.ldm.wan.model").SCAIL2WanModel
    config = {**WAN, "model_type": "scail2", "in_dim": 20}
    kind = comfy.supported_models.WAN21_SCAIL2({"image_model": "wan2.1", **config})
    net = network(**config, **MADE)
    model, seen = spied(patcher(kind, random_weights(net), torch.float32), ("ref_mask_latents",))
    mask = torch.zeros(1, 4, 28, 16, 16)
    mask[:, 0, :, :, 8:] = 1
    empty = torch.zeros(1, 16, 3, 16, 16)
    cond = text(reference_latents=[torch.ones(1, 16, 1, 16, 16)], ref_mask_28ch=mask)
    schedule, sigmas, *_ = growth(pack, model, empty)
    sample(model, sampler_of(pack, schedule), sigmas, cond, empty)
    small = seen[8]["ref_mask_latents"]
    assert small.shape == (1, 28, 4, 8, 8) and not small[:, :, 1:].any()
    assert torch.equal(small[:, :, 0, :, :3], torch.zeros(1, 28, 8, 3))
    assert torch.equal(small[:, :, 0, :, 5:], torch.ones(1, 28, 8, 3))


def test_a_source_video_shrinks_and_references_of_other_sides_do_not(pack, wan):
    """Bernini's node makes the source of the video's size, and references of one of their own."""
    if not hasattr(wan.model.diffusion_model, "forward_orig"):
        pytest.skip("this ComfyUI has no such network")
    beside = [torch.ones(1, 16, 3, 16, 16), torch.ones(1, 16, 1, 20, 12)]
    seen, model = {}, wan.clone()

    def look(apply, given):
        read = given["c"].get("context_latents")
        if read is not None:
            seen[given["input"].shape[-1]] = [tuple(x.shape[-2:]) for x in read]
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(look)
    empty = torch.zeros(1, 16, 3, 16, 16)
    schedule, sigmas, *_ = growth(pack, model, empty)
    sample(model, sampler_of(pack, schedule), sigmas, text(context_latents=beside), empty)
    if not seen:
        pytest.skip("this ComfyUI doesn't read context_latents")
    assert seen == {8: [(8, 8), (20, 12)], 16: [(16, 16), (20, 12)]}


def test_a_hint_follows_where_the_width_alone_changes(pack, small):
    """The host looks at the third and fourth axis, which are not both sides of a video."""
    import comfy.controlnet
    import comfy.latent_formats
    from small_controls import HintVAE

    network = pytest.importorskip("comfy.ldm.qwen_image.controlnet").QwenImageControlNetModel
    config = {key: value for key, value in small.QWEN.items() if key != "image_model"}
    net = network(extra_condition_channels=0, **config, **MADE)
    net.load_state_dict(small.random_weights(net))
    net.main_model_double = 1
    control = comfy.controlnet.ControlNet(
        net, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(),
        load_device=torch.device("cpu"), extra_conds=[],
    )  # fmt: skip
    encoded, vae = [], HintVAE()

    class Told(HintVAE):
        def encode(self, pixels):
            encoded.append(tuple(pixels.shape[1:3]))
            return vae.encode(pixels)[:, :, None]

    hint = torch.rand(1, 3, 128, 512, generator=torch.Generator().manual_seed(3))
    control.set_cond_hint(hint, 1.0, (0, 1), vae=Told())
    model, empty = small.qwen_model(), torch.zeros(1, 16, 1, 16, 64)
    generator = torch.Generator().manual_seed(1)
    cond = [[torch.randn(1, 6, 48, generator=generator), {"control": control}]]
    cond[0][1]["control_apply_to_uncond"] = True
    schedule, sigmas, *_ = growth(pack, model, empty, start_size=0.95, custom_tolerance=0.99)
    sizes = [part.size for part in schedule.stretches(16, 64, 2)]
    assert sizes == [(16, 60), (16, 64)]
    out = sample(model, sampler_of(pack, schedule), sigmas, cond, empty)
    assert bool(out.isfinite().all()) and encoded == [(128, 480), (128, 512)]
