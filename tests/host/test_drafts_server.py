"""Drafts through a real server: a sheet, a click, a file on another machine, an interrupt."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from graphs import find, to_prompt
from PIL import Image
from test_live import Listener

ROOT = Path(__file__).resolve().parents[2]


def graph_of(server, name="swd_drafts_scenes") -> dict:
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(graph, server.get("/object_info"))


def key_of(prompt: dict, class_type: str) -> str:
    [key] = [k for k, n in prompt.items() if n["class_type"] == class_type]
    return key


def saved(server, prompt: dict) -> list[np.ndarray]:
    """Runs a graph and gives the pictures that its SaveImage wrote."""
    entry = server.run(prompt)
    assert entry.get("status", {}).get("status_str") == "success", entry
    files = entry["outputs"].get(key_of(prompt, "SaveImage"), {}).get("images", [])
    paths = [server.base / "output" / f["filename"] for f in files]
    return [np.asarray(Image.open(p).convert("RGB")).astype(int) for p in paths]


def cached(entry: dict) -> list[str]:
    [nodes] = [m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"]
    return nodes


def straight_picture(server, number: int, seed: int) -> np.ndarray:
    """Picture `number` of the quick start graph's seed, alone, for the prompt of the drafts."""
    prompt = graph_of(server, "swd_quickstart_scenes")
    find(prompt, "CLIPTextEncode")["text"] = find(graph_of(server), "CLIPTextEncode")["text"]
    empty = key_of(prompt, "EmptySD3LatentImage")
    find(prompt, "EmptySD3LatentImage")["batch_size"] = number
    pick = {"samples": [empty, 0], "batch_index": number - 1, "length": 1}
    prompt["99"] = {"class_type": "LatentFromBatch", "inputs": pick}
    find(prompt, "SwDSample").update(latent_image=["99", 0], seed=seed)
    return saved(server, prompt)[0]


def test_through_the_server_from_drafts_to_a_file_on_another_one(server, tmp_path_factory):
    prompt = graph_of(server)
    drafting, finishing = find(prompt, "SwDDrafts"), find(prompt, "SwDFinishDrafts")
    drafting["seed"] = 4321
    prompt["98"] = {
        "class_type": "SwDSaveDrafts",
        "inputs": {"drafts": [key_of(prompt, "SwDDrafts"), 0], "filename_prefix": "drafts/x"},
    }
    assert saved(server, prompt) == [], "nothing is picked"
    finishing["pick"] = "5"
    [fifth] = saved(server, prompt)
    assert np.abs(fifth - straight_picture(server, 5, 4321)).max() <= 1
    assert fifth.std() > 20, "not an empty picture"

    base = tmp_path_factory.mktemp("another_machine")
    (base / "input").mkdir()
    [file] = (server.base / "output" / "drafts").glob("x_*")
    shutil.copy(file, base / "input" / file.name)
    other = type(server)(base)
    try:
        del prompt["98"]
        prompt[key_of(prompt, "SwDDrafts")] = {
            "class_type": "SwDLoadDrafts",
            "inputs": {"file": file.name, "vae": [key_of(prompt, "SwDSceneStudent"), 2]},
        }
        [again] = saved(other, prompt)
    finally:
        other.stop()
    assert np.array_equal(again, fifth)


def test_a_click_on_one_sheet_finishes_nothing_of_another(server):
    """By the API that is an error; from the page, whose seed has rolled on, just a new sheet."""
    prompt = graph_of(server)
    drafting, finishing = find(prompt, "SwDDrafts"), find(prompt, "SwDFinishDrafts")
    drafting["seed"] = 5551
    entry = server.run(prompt)
    [cells] = entry["outputs"][key_of(prompt, "SwDDrafts")]["swd_sheet"]
    assert cells["seed"] == 5551
    finishing["pick"] = f"2,5 @{cells['sheet']}"
    second, fifth = saved(server, prompt)
    drafting["seed"] = 5552
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error" and "another sheet" in json.dumps(entry)
    assert key_of(prompt, "SaveImage") not in entry["outputs"]
    # An artist who runs her changed graph gets its sheet; the page sends that graph along.
    drafting["seed"] = 5553
    entry = server.run(prompt, workflow={"nodes": []})
    assert entry["status"]["status_str"] == "success", entry["status"]
    [cells] = entry["outputs"][key_of(prompt, "SwDDrafts")]["swd_sheet"]
    assert cells["seed"] == 5553 and key_of(prompt, "SaveImage") not in entry["outputs"]
    # What the host keeps of that is no answer to a script that asks for the same.
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error" and "another sheet" in json.dumps(entry)
    # Nor where the picks come by a link.
    prompt["97"] = {"class_type": "PrimitiveString", "inputs": {"value": finishing["pick"]}}
    typed, finishing["pick"] = finishing["pick"], ["97", 0]
    assert server.run(prompt, workflow={"nodes": []})["status"]["status_str"] == "success"
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error" and "another sheet" in json.dumps(entry)
    finishing["pick"] = typed
    drafting["seed"] = 5551
    again = saved(server, prompt)
    assert all(np.array_equal(a, b) for a, b in zip(again, (second, fifth), strict=True))
    entry = server.run(prompt)
    assert key_of(prompt, "SwDFinishDrafts") in cached(entry), "what is finished stays so"


def test_after_an_interrupt(server):
    prompt = graph_of(server)
    find(prompt, "SwDDrafts").update(count=6, seed=987)
    find(prompt, "EmptySD3LatentImage").update(width=512, height=512)
    find(prompt, "SwDFinishDrafts").update(pick="all", batch=2)
    listener = Listener(server)
    listener.on_progress = lambda value: value >= 4 and server.post("/interrupt", {})
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_interrupted"
    find(prompt, "SwDFinishDrafts")["pick"] = "2"
    after = saved(server, prompt)[0]
    find(prompt, "SwDDrafts")["seed"] = 988
    saved(server, prompt)
    find(prompt, "SwDDrafts")["seed"] = 987
    assert np.abs(saved(server, prompt)[0] - after).max() <= 1


@pytest.mark.parametrize(
    ("node", "values", "says"),
    [
        ("SwDDrafts", {"count": 10_000}, "256"),
        ("SwDDrafts", {"count": 0}, "smaller than min of 1"),
        ("SwDFinishDrafts", {"pick": "17"}, "drafts 1 to 16"),
        ("SwDFinishDrafts", {"pick": "3-1"}, "type 1-3"),
    ],
)
def test_bad_input_through_the_server(server, node, values, says):
    prompt = graph_of(server)
    find(prompt, node).update(values)
    assert says in json.dumps(server.run(prompt))
