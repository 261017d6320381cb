"""The published students' graphs, run by a real server on small random models of each family.

The graphs are as shipped, but for the finished size and the seed; the reference is the paper's
formulas around diffusers' model with PEFT's own LoRA on it.
"""

import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Server
from graphs import find, models_of, read, to_prompt
from lora_files import SHORT, publish
from paper import HALF, PRESETS, SEED, reference_latent, relative
from PIL import Image
from safetensors.torch import load_file

STRAIGHT = {
    "swd_sd35_medium": "sd35-medium-4",
    "swd_sd35_large": "sd35-large-4",
    "swd_flux": "flux-4",
    "swd_sdxl": "sdxl-4",
    "swd_flux_custom_sampling": "flux-4",
}
DRAFTS = {"swd_drafts_flux": "flux-4", "swd_drafts_sd35": "sd35-medium-4"}
GRAPHS = STRAIGHT | DRAFTS
FAMILY = {graph: PRESETS[preset][0] for graph, preset in GRAPHS.items()}


@pytest.fixture(scope="module")
def students(small, tmp_path_factory):
    """family -> a random student: its PEFT file, and diffusers' model that wears it."""
    found = {}
    for family in sorted(set(FAMILY.values())):
        folder = tmp_path_factory.mktemp(family)
        wrapped = publish(small, family, folder, SHORT, r=4, lora_alpha=4)
        file = folder / "adapter_model.safetensors"
        found[family] = SimpleNamespace(file=file, net=wrapped.base_model.model)
    return found


@pytest.fixture(scope="module")
def host(students, tmp_path_factory):
    """A server with each graph's files under their own names, and loaders of small models."""
    base = tmp_path_factory.mktemp("comfy_published")
    for graph, family in FAMILY.items():
        for model in models_of(read(graph)):
            file = base / "models" / model["directory"] / model["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if model["directory"] == "loras":
                shutil.copy(students[family].file, file)
            else:
                file.touch()
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "stand_ins.py").symlink_to(Path(__file__).with_name("stand_ins.py"))
    running = Server(base)
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def object_info(host):
    return host.get("/object_info")


def of_type(prompt: dict, *types: str) -> dict:
    """The inputs of the only node of one of these types."""
    [inputs] = [n["inputs"] for n in prompt.values() if n["class_type"] in types]
    return inputs


def small_prompt(graph: str, object_info: dict, width=256, height=256, seed=SEED) -> dict:
    """The graph at a small finished size, with its latent saved beside its picture."""
    prompt = to_prompt(read(graph), object_info)
    of_type(prompt, "EmptySD3LatentImage", "EmptyLatentImage").update(width=width, height=height)
    sampling = of_type(prompt, "SwDSample", "RandomNoise", "SwDDrafts")
    sampling["noise_seed" if "noise_seed" in sampling else "seed"] = seed
    if FAMILY[graph] == "sd35-large":  # auto knows Large by its 38 blocks; the small one has 2
        find(prompt, "SwDScaleSchedule")["preset"] = GRAPHS[graph]
    decode, _ = find(prompt, "SaveImage")["images"]
    latent = {"samples": prompt[decode]["inputs"]["samples"], "filename_prefix": "latents/swd"}
    prompt["latent"] = {"class_type": "SaveLatent", "inputs": latent}
    return prompt


class Result:
    """What a graph left behind: latents, pictures, and the text of every node."""

    def __init__(self, host: Server, prompt: dict):
        entry = host.run(prompt)
        assert entry.get("status", {}).get("status_str") == "success", json.dumps(entry)[:3000]
        self.outputs = entry["outputs"]
        saved = self.files("latents")
        self.latent = load_file(host.base / "output" / saved[0])["latent_tensor"] if saved else None
        self.pictures = [
            np.asarray(Image.open(host.base / "output" / name).convert("RGB"))
            for name in self.files("images")
        ]
        [key] = [k for k, node in prompt.items() if node["class_type"] == "SwDLoraLoader"]
        self.report = self.outputs.get(key, {}).get("text", [""])[0]

    def files(self, kind: str) -> list[Path]:
        found = [f for output in self.outputs.values() for f in output.get(kind, [])]
        return [Path(f["subfolder"]) / f["filename"] for f in found if f["type"] == "output"]


def reference(small, students, prompt: dict, graph: str, indices=(0,)) -> torch.Tensor:
    """The latent of SEED by the paper's formulas, for the graph's text, size and student."""
    family = FAMILY[graph]
    text = find(prompt, "CLIPTextEncode")["text"]
    extra = {"guidance": 4.5} if family == "flux" else {}
    cond = small.conditioning(family, zlib.crc32(text.encode()), **extra)
    size = of_type(prompt, "EmptySD3LatentImage", "EmptyLatentImage")
    net = students[family].net
    return reference_latent(
        small, GRAPHS[graph], size["width"], size["height"], cond, indices=indices, net=net
    )


@pytest.mark.parametrize("width", [256, 384])
@pytest.mark.parametrize("graph", STRAIGHT)
def test_graph_is_the_paper_with_the_student_on(host, object_info, small, students, graph, width):
    prompt = small_prompt(graph, object_info, width=width)
    result = Result(host, prompt)
    theirs = reference(small, students, prompt, graph)
    assert result.latent.shape == theirs.shape
    assert relative(result.latent, theirs) <= HALF
    [picture] = result.pictures
    assert picture.shape == (256, width, 3)
    assert picture.std() > 10, "not an even picture"


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_whole_student_is_applied_and_it_and_the_seed_change_the_picture(
    host, object_info, small, students, graph
):
    count = len(load_file(students[FAMILY[graph]].file)) // 2
    prompt = small_prompt(graph, object_info, seed=SEED + 1)
    if graph in DRAFTS:
        find(prompt, "SwDDrafts")["count"] = 1
        find(prompt, "SwDFinishDrafts")["pick"] = "1"
    student = Result(host, prompt)
    assert student.report.startswith(f"{count} of {count} layers applied\n")
    assert torch.isfinite(student.latent).all()
    assert relative(student.latent, reference(small, students, prompt, graph)) > 0.1
    find(prompt, "SwDLoraLoader")["strength"] = 0.0
    base = Result(host, prompt)
    assert base.report.startswith("Bypassed")
    assert relative(base.latent, student.latent) > 0.01
    assert not np.array_equal(base.pictures[0], student.pictures[0])


def test_both_flux_graphs_give_the_same_picture_bit_for_bit(host, object_info):
    ours, theirs = (
        Result(host, small_prompt(graph, object_info, width=384, seed=77))
        for graph in ("swd_flux", "swd_flux_custom_sampling")
    )
    assert torch.equal(ours.latent, theirs.latent)
    assert np.array_equal(ours.pictures[0], theirs.pictures[0])


@pytest.mark.parametrize("graph", DRAFTS)
def test_drafts_come_first_and_a_finished_pick_is_the_straight_run(
    host, object_info, small, students, graph
):
    prompt = small_prompt(graph, object_info, width=384)
    drafts = find(prompt, "SwDDrafts")
    assert drafts["count"] == 16
    drafts["count"] = 3
    sheet = Result(host, prompt)
    assert sheet.pictures == [] and sheet.latent is None, "nothing picked, nothing finished"
    shown = [o["swd_sheet"][0]["count"] for o in sheet.outputs.values() if "swd_sheet" in o]
    assert shown == [3]
    find(prompt, "SwDFinishDrafts")["pick"] = "3,1"
    done = Result(host, prompt)
    assert [p.shape for p in done.pictures] == [(256, 384, 3)] * 2
    theirs = reference(small, students, prompt, graph, indices=(2, 0))
    assert relative(done.latent, theirs) <= HALF
