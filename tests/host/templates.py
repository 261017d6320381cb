"""The host's own graphs (comfyui-workflow-templates) as API prompts with our sampler.

Read as the page reads them: subgraphs unfolded, bypassed nodes passed through, primitives put in.
Then the samplers give way to ours, and whatever sets the size is set to a small one.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from graphs import NOTES, widgets

PACKAGES = ("comfyui_workflow_templates_json", "comfyui_workflow_templates")
ENTRY, EXIT = -10, -20  # a subgraph's own inputs and outputs, as links name them
NEVER, BYPASS = 2, 4  # a node's mode
WIDTH, HEIGHT = 256, 192
Source = tuple[str, int]


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """Where the templates lie: COMFYUI_TEMPLATES, or the package beside this interpreter."""
    places = [Path(p) for p in (os.environ.get("COMFYUI_TEMPLATES"),) if p]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        places += [Path(p) / "templates" for p in (spec.submodule_search_locations if spec else [])]
    return next((place for place in places if any(place.glob("*.json"))), None)


@dataclass
class Node:
    """A node of the unfolded graph; sources and types of its inputs by name."""

    type: str
    mode: int
    values: list[Any]
    sources: dict[str, Source | None]
    kinds: dict[str, str]
    outputs: list[str]


class Template:
    """A template's nodes by id ("12", or "12:3" in a subgraph), links followed to real nodes."""

    def __init__(self, workflow: dict):
        self.nodes: dict[str, Node] = {}
        self.exits: dict[Source, Source | None] = {}
        graphs = workflow.get("definitions", {}).get("subgraphs", [])
        self.subgraphs = {graph["id"]: graph for graph in graphs}
        self._unfold(workflow, "", {})

    def _unfold(self, graph: dict, prefix: str, entries: dict[int, Source | None]) -> None:
        links: dict[int, Source | None] = {}
        for link in graph["links"]:
            if isinstance(link, dict):
                number, origin, slot = link["id"], link["origin_id"], link["origin_slot"]
            else:
                number, origin, slot = link[:3]
            links[number] = entries[slot] if origin == ENTRY else (f"{prefix}{origin}", slot)
            if isinstance(link, dict) and link["target_id"] == EXIT:
                self.exits[prefix.removesuffix(":"), link["target_slot"]] = links[number]
        for node in graph["nodes"]:
            if node["type"] in NOTES:
                continue
            key, inner = f"{prefix}{node['id']}", self.subgraphs.get(node["type"])
            sources = {i["name"]: links.get(i.get("link")) for i in node.get("inputs", [])}
            self.nodes[key] = Node(
                node["type"], node.get("mode", 0), list(node.get("widgets_values") or []), sources,
                {i["name"]: i["type"] for i in node.get("inputs", [])},
                [o["type"] for o in node.get("outputs", [])],
            )  # fmt: skip
            if inner is not None and not self.nodes[key].mode:
                given = [sources.get(i["name"]) for i in inner["inputs"]]
                self._unfold(inner, f"{key}:", dict(enumerate(given)))

    def real(self, source: Source | None) -> Source | None:
        """The node that a link comes from once subgraphs and bypassed nodes are gone."""
        while source is not None:
            node = self.nodes[source[0]]
            if source in self.exits:
                source = self.exits[source]
            elif node.mode == BYPASS:
                kind = node.outputs[source[1]]
                source = next((node.sources[n] for n, k in node.kinds.items() if k == kind), None)
            else:
                return None if node.mode == NEVER else source
        return None

    def prompt(self, object_info: dict) -> dict[str, dict]:
        """The API prompt of what the template saves."""
        prompt: dict[str, dict] = {}
        wanted = [k for k, n in self.nodes.items() if n.type == "SaveImage" and not n.mode]
        while wanted:
            key = wanted.pop()
            if key in prompt:
                continue
            node = self.nodes[key]
            inputs = typed_values(object_info[node.type], node.values)
            for name, source in node.sources.items():
                found = self.real(source)
                if found is None:
                    continue
                origin = self.nodes[found[0]]
                if origin.type == "PrimitiveNode":
                    inputs[name] = origin.values[0]
                else:
                    inputs[name] = list(found)
                    wanted.append(found[0])
            prompt[key] = {"class_type": node.type, "inputs": inputs}
        return prompt


def typed_values(info: dict, values: list[Any]) -> dict[str, Any]:
    """A node's saved widget values by name; buttons at the end have none."""
    left, inputs = list(values), {}
    for name, _, options in widgets(info):
        if not left:
            break
        inputs[name] = left.pop(0)
        if options.get("control_after_generate"):
            left.pop(0)
    return inputs


def of_type(prompt: dict, *types: str) -> list[dict]:
    """The inputs of every node of these types."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] in types]


def skip(prompt: dict, key: str, name: str) -> None:
    """Takes a node out; what it gave comes from its own input `name`."""
    source = prompt.pop(key)["inputs"][name]
    for node in prompt.values():
        for other, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == key:
                node["inputs"][other] = source


def schedule_node(prompt: dict, key: str, model: list, latent: list) -> str:
    """Adds SwDScaleSchedule for a sampler."""
    name = f"{key}:schedule"
    files = [inputs["ckpt_name"] for inputs in of_type(prompt, "CheckpointLoaderSimple")]
    # SD3.5 Large is known by its 38 blocks, which a small one has not.
    large = any(file.startswith("sd3.5_large") for file in files)
    prompt[name] = {
        "class_type": "SwDScaleSchedule",
        "inputs": {
            "model": model, "latent_image": latent, "custom_sizes": "", "custom_sigmas": "",
            "preset": "sd35-large-4" if large else "auto",
        },
    }  # fmt: skip
    return name


def with_our_sampler(prompt: dict) -> str:
    """Puts our sampler in the place of the template's; the key of the node that samples."""
    for key, node in list(prompt.items()):
        kind, given = node["class_type"], node["inputs"]
        if kind == "KSamplerAdvanced" and given["add_noise"] == "disable":
            skip(prompt, key, "latent_image")  # a refiner that goes on from a noisy latent
        if kind == "LoraLoaderModelOnly":
            skip(prompt, key, "model")
    [key] = [k for k, n in prompt.items() if "Sampler" in n["class_type"]
             and n["class_type"] != "KSamplerSelect"]  # fmt: skip
    node, given = prompt[key], prompt[key]["inputs"]
    latent = given["latent_image"]
    if node["class_type"] in ("KSampler", "KSamplerAdvanced"):
        name = schedule_node(prompt, key, given["model"], latent)
        kept = {k: given[k] for k in ("model", "positive", "negative", "latent_image", "cfg")}
        seed = given.get("seed", given.get("noise_seed"))
        more = {"schedule": [name, 0], "seed": seed, "upscale_method": "bicubic"}
        more["start_at"] = given.get("denoise", 1.0)
        prompt[key] = {"class_type": "SwDSample", "inputs": kept | more}
    else:
        holder = given if "model" in given else prompt[given["guider"][0]]["inputs"]
        name = schedule_node(prompt, key, holder["model"], latent)
        prompt[f"{key}:sampler"] = {
            "class_type": "SwDSampler",
            "inputs": {"schedule": [name, 0], "upscale_method": "bicubic"},
        }
        given.update(sampler=[f"{key}:sampler", 0], sigmas=[name, 1])
    return key


def make_small(prompt: dict) -> None:
    """Sets the size of everything that has one."""
    size = {"width": WIDTH, "height": HEIGHT}
    for inputs in of_type(prompt, "EmptyLatentImage", "EmptySD3LatentImage", "ImageScale"):
        inputs.update(size)
    for inputs in of_type(prompt, "ImagePadForOutpaint"):
        inputs.update(left=64, top=0, right=64, bottom=64)
    for inputs in of_type(prompt, "ImageScaleToMaxDimension"):
        inputs.update(largest_size=128)
    for node in prompt.values():
        if node["class_type"] == "FluxKontextImageScale":  # always to a megapixel
            scaled = {"image": node["inputs"]["image"], "upscale_method": "area", "crop": "center"}
            node.update(class_type="ImageScale", inputs={**scaled, **size})


def needed(prompt: dict, keys: list[str]) -> dict:
    """The part of a prompt that these nodes need."""
    kept: dict[str, dict] = {}
    wanted = list(keys)
    while wanted:
        key = wanted.pop()
        if key not in kept:
            kept[key] = prompt[key]
            wanted += [v[0] for v in prompt[key]["inputs"].values() if isinstance(v, list)]
    return kept


def text_of(prompt: dict, key: str) -> dict:
    """The inputs of the text node that the sampler's positive conditioning comes from."""
    inputs = prompt[key]["inputs"]
    while "clip" not in inputs:
        names = ("guider", "positive", "conditioning")
        name = next(n for n in names if n in inputs)
        inputs = prompt[inputs[name][0]]["inputs"]
    return inputs


def read(name: str) -> Template:
    return Template(json.loads((folder() / f"{name}.json").read_text(encoding="utf-8")))
