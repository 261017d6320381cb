"""The graphs of models without a student, run as shipped by a real server on small random models.

As shipped but for the finished size, the seed, and four drafts in place of sixteen.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import call
from conftest import Server
from graphs import find, models_of, read, to_prompt
from paper import SEED
from PIL import Image

# The class of the host's supported_models that each runs on.
GRAPHS = {
    "swd_any_zimage_turbo": "ZImage", "swd_drafts_zimage_turbo": "ZImage",
    "swd_any_qwen_image": "QwenImage", "swd_any_flux2_klein": "Flux2",
    "swd_any_wan22_video": "WAN22_T2V", "swd_any_scenes": "SD3",
}  # fmt: skip
SMALL = {
    "ZImage": lambda small: small.other_model("zimage")[0],
    "QwenImage": lambda small: small.qwen_model(),
    "Flux2": lambda small: small.flux2_model(),
    "WAN22_T2V": lambda small: small.wan_model("WAN22_T2V", in_dim=48, out_dim=48),
    "SD3": lambda small: sys.modules["swd_pack.nodes.student"].load_model(),
}
LATENTS = ("EmptySD3LatentImage", "EmptyFlux2LatentImage", "Wan22ImageToVideoLatent")


@pytest.fixture(scope="module")
def host(small, tmp_path_factory):
    """A server with each graph's files under their own names, and loaders of small models."""
    base = tmp_path_factory.mktemp("comfy_growing")
    for graph in GRAPHS:
        for model in models_of(read(graph)):
            file = base / "models" / model["directory"] / model["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "stand_ins.py").symlink_to(Path(__file__).with_name("stand_ins.py"))
    running = Server(base)
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(autouse=True)
def known_here(request, pack):
    import comfy.supported_models

    needed = {GRAPHS[graph] for graph in GRAPHS if graph in request.node.name} or {"ZImage"}
    for name in needed:
        if not hasattr(comfy.supported_models, name):
            pytest.skip(f"this ComfyUI has no class {name}")


def small_prompt(host, graph):
    prompt = to_prompt(read(graph), host.get("/object_info"))
    [latent] = [n["inputs"] for n in prompt.values() if n["class_type"] in LATENTS]
    latent.update(width=256, height=192)
    if "length" in latent:
        latent["length"] = 9
    kind = "SwDDrafts" if "drafts" in graph else "SwDSample"
    find(prompt, kind)["seed"] = SEED
    if kind == "SwDDrafts":
        find(prompt, kind)["count"] = 4
    return prompt


def run(host, prompt):
    """The pictures that a graph saved, and the texts that its nodes showed."""
    entry = host.run(prompt)
    assert entry.get("status", {}).get("status_str") == "success", json.dumps(entry)[:3000]
    outputs = entry["outputs"].values()
    saved = [i for o in outputs for i in o.get("images", []) if i["type"] == "output"]
    folder = host.base / "output"
    pictures = [
        np.asarray(Image.open(folder / i["subfolder"] / i["filename"]).convert("RGB"))
        for i in saved
    ]
    return pictures, "\n".join(str(t) for o in outputs for t in o.get("text", []))


@pytest.mark.parametrize("graph", [g for g in GRAPHS if "drafts" not in g])
def test_a_graph_begins_small_and_ends_at_its_size(host, graph):
    [picture], table = run(host, small_prompt(host, graph))
    assert picture.shape == (192, 256, 3) and picture.std() > 1
    assert "128 x 96" in table and "256 x 192" in table


def test_the_graph_of_scenes_runs_as_shipped_by_its_own_spectrum(host):
    """And makes nearly the picture that the seed has at one size."""
    prompt = to_prompt(read("swd_any_scenes"), host.get("/object_info"))
    [grown], table = run(host, prompt)
    assert grown.shape == (256, 256, 3) and grown.std() > 20
    assert "spectrum: scenes's VAE" in table and "128 x 128" in table
    find(prompt, "SwDGrowthSchedule")["sizes"] = 1
    [whole], _ = run(host, prompt)
    find(prompt, "SwDSample")["seed"] += 1
    [other], _ = run(host, prompt)
    changed, unlike = (np.abs(x.astype(int) - whole).mean() for x in (grown, other))
    assert changed < unlike / 2, (changed, unlike)


def test_a_finished_draft_is_the_picture_of_the_plain_graph(host):
    prompt = small_prompt(host, "swd_drafts_zimage_turbo")
    nothing, _ = run(host, prompt)
    assert nothing == [], "nothing is picked yet"
    find(prompt, "SwDFinishDrafts")["pick"] = "1"
    [finished], _ = run(host, prompt)
    [straight], _ = run(host, small_prompt(host, "swd_any_zimage_turbo"))
    # Drafts run four at a time, the plain graph one: some kernels round by the batch.
    assert np.abs(finished.astype(int) - straight.astype(int)).max() <= 1


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_note_says_what_the_schedule_costs_at_the_size_it_has(host, pack, small, graph):
    """Full-size steps at the shipped size, worked out by the node for the small model."""
    prompt = to_prompt(read(graph), host.get("/object_info"))
    model = SMALL[GRAPHS[graph]](small)
    for node in prompt.values():
        if node["class_type"] == "ModelSamplingAuraFlow":
            shift = node["inputs"]["shift"]
            model = call("comfy_extras.nodes_model_advanced:ModelSamplingAuraFlow", model, shift)
    widgets = find(prompt, "SwDGrowthSchedule")
    [size] = [n["inputs"] for n in prompt.values() if n["class_type"] in LATENTS]
    kind = model.get_model_object("latent_format")
    pixels = 16 if graph in ("swd_any_flux2_klein", "swd_any_wan22_video") else 8
    sides = (size["height"] // pixels, size["width"] // pixels)
    frames = ((size.get("length", 1) - 1) // 4 + 1,) * (kind.latent_dimensions - 2)
    latent = {"samples": torch.zeros(1, kind.latent_channels, *frames, *sides)}
    given = {k: v for k, v in widgets.items() if k not in ("model", "latent_image")}
    table = pack["SwDGrowthSchedule"].execute(model=model, latent_image=latent, **given).args[2]
    cost = re.search(r"([\d.]+) full-size steps", table).group(1)
    [note] = [n["widgets_values"][0] for n in read(graph)["nodes"] if n["type"] == "MarkdownNote"]
    if "drafts" in graph:
        assert "each at an eighth of a full run's cost" in note and float(cost) == 5
    else:
        assert f"cost {float(cost):g} full-size steps" in note
