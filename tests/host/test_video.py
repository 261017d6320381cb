"""Videos: a small random Wan scaled in space and time, against a chain of the host's own runs."""

import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import call, cfg_guider, hosted
from conftest import Server
from paper import SEED, guided, relative, schedule_of
from PIL import Image
from safetensors.torch import load_file
from test_live import Listener
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
    empty,
    enlarged,
    picked,
    random,
    sample,
    text,
)

pytestmark = pytest.mark.usefixtures("as_the_host_runs_its_nodes")


@pytest.fixture(scope="module")
def schedule(pack, wan):
    return schedule_of(pack, wan, PRESET)[0]


def test_video_scales_in_space_and_time(pack, wan, schedule, record_property):
    guider, shapes = cfg_guider(wan, text()), []
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    other = guider.sample(
        torch.zeros(1, 16, *TARGET), torch.zeros(1, 16, *TARGET), sampler,
        torch.tensor([*SIGMAS, 0.0]), seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: shapes.append(tuple(x0.shape[2:])),
    ).cpu()  # fmt: skip
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
    drafts, images, sheet = hosted(
        pack["SwDDrafts"],
        model=wan, positive=text(), latent_image=empty(), schedule=schedule, seed=SEED, count=2,
        stop_after=stop_after, batch=1, cfg=1.0, upscale_method="bicubic",
    ).args  # fmt: skip
    assert tuple(drafts["samples"].shape[2:]) == SIZES[stop_after - 1]
    assert images.shape[0] == 2 * SIZES[stop_after - 1][0] == 2 * sheet.shape[0]
    [file] = (
        pack["SwDSaveDrafts"].execute(drafts=drafts, filename_prefix="drafts/x").ui["swd_files"]
    )
    drafts = (
        pack["SwDLoadDrafts"]
        .execute(file=f"drafts/{file['filename']} [output]", vae=FrameVAE())
        .args[0]
    )
    done, scales = hosted(
        pack["SwDFinishDrafts"],
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


def drafted(pack, wan, schedule, tmp_path, vae, **more):
    """What the node of drafts gives, and the folder that it shows from."""
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path))
    inputs = {"seed": SEED, "count": 5, "stop_after": 2, "batch": 5, "cfg": 1.0, **more}
    return hosted(
        pack["SwDDrafts"], model=wan, positive=text(), latent_image=empty(), schedule=schedule,
        upscale_method="bicubic", vae=vae, **inputs,
    )  # fmt: skip


def test_drafts_play_on_the_sheet(pack, wan, schedule, tmp_path):
    """One file, every cell its draft's own frames, for as long as the finished video lasts."""
    out = drafted(pack, wan, schedule, tmp_path, FrameVAE())
    drafts, images, sheet = out.args
    [cells], [file] = out.ui["swd_sheet"], out.ui["images"]
    assert out.ui["animated"] == (True,) and file["type"] == "temp"
    with Image.open(tmp_path / file["filename"]) as played:
        assert played.n_frames == sheet.shape[0] == SIZES[1][0]
        wide, high = played.width / cells["columns"], played.height / cells["rows"]
        told, lasts = cells["size"], 0
        for t in range(played.n_frames):
            played.seek(t)
            played.load()
            lasts += played.info["duration"]
            shown = torch.from_numpy(np.array(played.convert("RGB"))) / 255
            assert (shown - sheet[t]).abs().mean() < 0.02
            for k, (row, column) in enumerate(cells["places"]):
                video = drafts["samples"][k, :3, t].movedim(0, -1).sigmoid()
                x, y = round((column + 0.5) * wide), round(row * high + 4 + 128 / 3)
                here = shown[y - 20 : y + 20, x - 30 : x + 30].mean((0, 1))
                there = video[3:9, 4:14].mean((0, 1))
                assert (here - there).abs().max() < 0.06, (t, k)
    finished = (4 * (FRAMES - 1) + 1) / 16
    assert lasts / 1000 == pytest.approx(finished, rel=0.1)
    assert told == [SIZES[1][2], SIZES[1][1]] and len(cells["drafts"]) == 5
    for k, draft in enumerate(cells["drafts"]):
        with Image.open(tmp_path / draft["filename"]) as closer:
            assert closer.size == tuple(told) and closer.n_frames == SIZES[1][0]
            closer.seek(4)
            seen = torch.from_numpy(np.array(closer.convert("RGB"))) / 255
        assert (seen.mean((0, 1)) - images[5 * k + 4].mean((0, 1))).abs().max() < 0.03


@pytest.mark.parametrize(("count", "frames", "plays"), [(16, 81, 81), (64, 49, 25), (2, 1, 1)])
def test_a_sheet_of_long_videos_is_a_file_of_sensible_size(
    pack, wan, schedule, tmp_path, count, frames, plays, record_property
):
    """Noise, which is larger than any video: all frames of few, every second one of many."""
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path))
    begin = sys.modules["swd_pack.nodes.drafting"].begin
    drafts = begin(wan, empty(size=(21, 60, 104)), schedule, SEED, count, "bicubic")
    videos = torch.rand(count * frames, 12, 21, 3).repeat_interleave(5, 1).repeat_interleave(5, 2)
    sheet, shown = sys.modules["swd_pack.nodes.draft_sheet"].show(drafts, videos, None)
    assert sheet.shape[0] == plays
    [file] = shown["images"]
    size = (tmp_path / file["filename"]).stat().st_size
    record_property("bytes", size)
    assert size < 12_000_000


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
    rows = [line.split() for line in table.splitlines()[2:-1]]
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
    sixes = [torch.zeros(n, n, n, 3) for n in (7, 13)]  # Mochi keeps six pictures to a latent frame
    assert pack["SwDScaleStrip"].execute(images=sixes, gap=[2]).args[1].shape[0] == 26
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
