"""The shared graphs: they fit the host's nodes, and give the same picture as the command line."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ON_CPU
from graphs import NOTES, ROOT, find, fits, is_widget, models_of, read, to_prompt, widgets
from PIL import Image

WORKFLOWS = sorted((ROOT / "workflows").glob("swd_*.json"))
EMBEDDED = ("swd_quickstart_scenes", "swd_custom_sampling_scenes")
HUB_FILE = re.compile(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+\.safetensors")


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture(autouse=True)
def known_here(request, server):
    """A graph of a model that this ComfyUI doesn't know has nodes that it doesn't know."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
    if path is not None and path.stem == "swd_any_flux2_klein":
        if "EmptyFlux2LatentImage" not in server.get("/object_info"):
            pytest.skip("this ComfyUI has no FLUX.2")


def picture(server, entry: dict) -> np.ndarray:
    """The picture that a graph saved."""
    assert entry.get("status", {}).get("status_str") == "success", entry
    files = [
        i for o in entry["outputs"].values() for i in o.get("images", []) if i["type"] == "output"
    ]
    return np.asarray(
        Image.open(server.base / "output" / files[0]["filename"]).convert("RGB")
    ).astype(int)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_graph_fits_the_host(path, object_info):
    graph = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".jpg").is_file(), "a template needs its thumbnail"
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert any(n["type"] == "MarkdownNote" for n in nodes.values())
    for link, source, slot, target, at, kind in graph["links"]:
        assert nodes[target]["inputs"][at]["link"] == link
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[source]["outputs"][slot]["type"] == kind
    prompt = to_prompt(graph, object_info)
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        # Newer hosts gave SaveImage and PreviewImage an output; what is linked must be on both.
        linked = [(i, o["type"]) for i, o in enumerate(node["outputs"]) if o["links"]]
        assert all(info["output"][i : i + 1] == [kind] for i, kind in linked), node["type"]
        required = [
            k
            for k in info["input_order"]["required"]
            if not is_widget(info["input"]["required"][k][0])
        ]
        assert all(name in prompt[str(node["id"])]["inputs"] for name in required)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_widget_has_a_value_of_its_kind(path, object_info):
    graph = read(path.stem)
    files = {model["name"] for model in models_of(graph)}  # not on this machine
    for node in to_prompt(graph, object_info).values():
        for name, kind, options in widgets(object_info[node["class_type"]]):
            value = node["inputs"].get(name, options.get("default"))
            assert fits(kind, options, value) or value in files, (node["class_type"], name, value)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_the_host_offers_every_file_and_the_note_lists_it(path, server):
    graph, folders = read(path.stem), server.get("/models")
    [note] = [n["widgets_values"][0] for n in graph["nodes"] if n["type"] == "MarkdownNote"]
    for node in graph["nodes"]:
        models = node["properties"].get("models", [])
        named = [v for v in node["widgets_values"] if str(v).endswith(".safetensors")]
        assert [model["name"] for model in models] == named, node["type"]
        for model in models:
            assert HUB_FILE.fullmatch(model["url"]), model
            assert model["directory"] in folders, model
            row = (f"| {model['name']} |", f"({model['url']})", f"| models/{model['directory']} |")
            assert any(all(part in line for part in row) for line in note.splitlines()), model


def test_no_two_files_share_a_local_name():
    """Every student is called adapter_model.safetensors on the hub."""
    models = [model for path in WORKFLOWS for model in models_of(read(path.stem))]
    assert len({m["name"] for m in models}) == len({m["url"] for m in models})
    assert any(m["url"].endswith("/adapter_model.safetensors") for m in models)


def test_both_graphs_give_the_command_lines_picture(server, object_info, tmp_path):
    pictures = []
    for name in EMBEDDED:
        prompt = to_prompt(read(name), object_info)
        pictures.append(picture(server, server.run(prompt)))
    assert np.array_equal(*pictures)
    out = tmp_path / "fox.png"
    text = find(prompt, "CLIPTextEncode")["text"]
    seed = str(find(prompt, "RandomNoise")["noise_seed"])
    command = [
        sys.executable,
        "-m",
        "swd_core",
        "generate",
        text,
        "--seed",
        seed,
        "--out",
        str(out),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    own = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert own.std() > 20, "not an empty picture"
    assert np.abs(own - pictures[0]).mean() < 2


def test_graphs_follow_seed_size_and_batch(server, object_info):
    prompt = to_prompt(read("swd_quickstart_scenes"), object_info)
    first = picture(server, server.run(prompt))
    find(prompt, "SwDSample")["seed"] += 1
    find(prompt, "EmptySD3LatentImage").update(width=384, height=192)
    other = picture(server, server.run(prompt))
    assert first.shape == (256, 256, 3) and other.shape == (192, 384, 3)


def test_picture_k_of_a_batch_is_the_same_picture_alone(server, object_info):
    """To the rounding of a file's 256 levels; on a card of the VAE's bfloat16, by the batch."""
    for name in EMBEDDED:
        prompt = to_prompt(read(name), object_info)
        find(prompt, "EmptySD3LatentImage")["batch_size"] = 3
        entry = server.run(prompt)
        files = [i["filename"] for o in entry["outputs"].values() for i in o.get("images", [])]
        third = np.asarray(
            Image.open(server.base / "output" / sorted(files)[-1]).convert("RGB")
        ).astype(int)
        [empty] = [k for k, n in prompt.items() if n["class_type"] == "EmptySD3LatentImage"]
        pick = {"samples": [empty, 0], "batch_index": 2, "length": 1}
        prompt["99"] = {"class_type": "LatentFromBatch", "inputs": pick}
        for node in prompt.values():
            if node["inputs"].get("latent_image") == [empty, 0]:
                node["inputs"]["latent_image"] = ["99", 0]
        alone = picture(server, server.run(prompt))
        assert np.abs(alone - third).max() <= (1 if ON_CPU else 4), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SwDSample": {"cfg": 3.0}}, "negative"),
        ({"EmptySD3LatentImage": {"width": 264}}, "multiple of 2"),
    ],
)
def test_bad_input_is_one_clear_error(server, object_info, change, says):
    prompt = to_prompt(read("swd_quickstart_scenes"), object_info)
    for node, values in change.items():
        find(prompt, node).update(values)
    if "EmptySD3LatentImage" in change:  # the host's own node only makes even latents
        [key] = [k for k, n in prompt.items() if n["class_type"] == "EmptySD3LatentImage"]
        prompt[key] = {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 264, "height": 256, "batch_size": 1},
        }
    entry = server.run(prompt)
    assert says in json.dumps(entry)
    assert "success" not in json.dumps(entry.get("status", {}).get("status_str", ""))


def test_a_custom_schedule_is_checked_before_the_run(server, object_info):
    prompt = to_prompt(read("swd_custom_sampling_scenes"), object_info)
    find(prompt, "SwDScaleSchedule").update(preset="custom", custom_sigmas="1 0.8 0.9 0.6")
    refused = server.run(prompt)
    assert "Step 3" in json.dumps(refused["refused"]), refused
