"""Every model that people grow, through a real server: sizes, batches, previews, stopping."""

import shutil
from pathlib import Path

import pytest
from growing_models import MODELS, SIZES, make
from safetensors.torch import load_file
from test_live import Listener

STEPS = 4


@pytest.fixture(scope="module")
def host(small, tmp_path_factory):
    """A server that shows previews, with a node that makes the small models."""
    from conftest import Server

    base = tmp_path_factory.mktemp("comfy_growing_models")
    (base / "custom_nodes").mkdir()
    here = Path(__file__).with_name("growing_models.py")
    (base / "custom_nodes" / here.name).symlink_to(here)
    running = Server(base, "--preview-method", "latent2rgb")
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(params=MODELS)
def name(request, small):
    if make(request.param) is None:
        pytest.skip(f"this ComfyUI has no class for {request.param}")
    return request.param


def graph(name, size, cfg=2.5, batch=1, steps=STEPS, seed=1, **widgets):
    made = [str(1)]
    growth = {
        "sampler_name": "euler", "scheduler": "auto", "steps": steps, "start_size": 0.5, "sizes": 2,
        "tolerance": "custom", "custom_tolerance": 0.9, "lift": "spectral", **widgets,
    }  # fmt: skip
    return {
        "1": {
            "class_type": "SmallModel",
            "inputs": {"name": name, "height": size[0], "width": size[1], "batch": batch},
        },
        "2": {
            "class_type": "SwDGrowthSchedule",
            "inputs": {"model": [*made, 0], "latent_image": [*made, 3], **growth},
        },
        "3": {
            "class_type": "SwDSample",
            "inputs": {
                "model": [*made, 0], "positive": [*made, 1], "negative": [*made, 2],
                "latent_image": [*made, 3], "schedule": ["2", 0], "seed": seed, "cfg": cfg,
                "upscale_method": "bicubic",
            },
        },
        "4": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["3", 0], "filename_prefix": f"{name}_{size[0]}_{cfg}"},
        },
    }  # fmt: skip


def listened(host, prompt, on_progress=lambda value: None):
    listener = Listener(host)
    listener.on_progress = on_progress
    reply = host.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    assert "prompt_id" in reply, reply
    listener.wait()
    return listener


@pytest.mark.parametrize(
    ("size", "cfg", "batch"), [(SIZES[0], 1.0, 1), (SIZES[1], 2.5, 2), (SIZES[2], 2.5, 1)]
)
def test_it_grows_and_its_previews_with_it(host, name, size, cfg, batch):
    if name == "sdxl":  # its UNet halves the sides twice
        size = tuple(-(-side // 4) * 4 for side in size)
    listener = listened(host, graph(name, size, cfg, batch))
    assert listener.ended == "execution_success"
    [file] = (host.base / "output").glob(f"{name}_{size[0]}_{cfg}_*.latent")
    latent = load_file(file)["latent_tensor"]
    assert len(latent) == batch and tuple(latent.shape[-2:]) == size
    assert latent.isfinite().all() and latent.std() > 0.01
    sides = [max(frame.size) for frame in listener.previews]
    assert sides == sorted(sides) and sides[0] < sides[-1] and len(sides) <= STEPS
    values = [value for value, _ in listener.progress]
    assert values == sorted(values) and values[-1] == listener.progress[-1][1]


def test_it_stops_where_it_is_told_to_and_the_next_run_is_whole(host, name):
    prompt = graph(name, SIZES[0], batch=4, steps=200, seed=2)
    listener = listened(host, prompt, lambda value: value and host.post("/interrupt", {}))
    assert listener.ended == "execution_interrupted"
    assert max(value for value, _ in listener.progress) < listener.progress[-1][1]
    assert listened(host, graph(name, SIZES[0], seed=3)).ended == "execution_success"
