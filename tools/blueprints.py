"""Writes the blueprints, subgraphs/*.json, from the graphs of workflows/: make graphs

A blueprint is a graph of one node, a subgraph, which every user finds in the node search under the
file's name. What it shows outside are the inputs named here.
"""

import argparse
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groups import Node, groups_of

ROOT = Path(__file__).resolve().parents[1]
# The embedded student: its graph is swd_drafts_<name>, its blueprint is called by the name.
EMBEDDED = "scenes"
BEGIN, END = -10, -20  # the host's numbers for where a subgraph's links come in and go out
SIDE, ROW = 120, 20  # of those two, in the graph's units
# What pages put behind the slots of a graph's file: those that its node got since, and one for each
# widget, in their order. A link to one needs its place among all.
SLOTS = {
    "CLIPTextEncode": "text:STRING",
    "EmptySD3LatentImage": "width:INT height:INT batch_size:INT",
    "SwDGrowthSchedule": "sampler:SAMPLER sampler_name:COMBO scheduler:COMBO steps:INT "
    "start_size:FLOAT sizes:INT tolerance:COMBO custom_tolerance:FLOAT lift:COMBO",
    "SwDDrafts": "seed:INT count:INT stop_after:INT batch:INT cfg:FLOAT upscale_method:COMBO",
    "SwDFinishDrafts": "pick:STRING detail_seed:INT variations:INT stop_after:INT batch:INT "
    "cfg:FLOAT",
}
WIDGETS = ("INT", "FLOAT", "STRING", "COMBO")
OPTIONAL = 7  # the host's shape of an input that may stay empty
ALIASES = ["contact sheet", "pick", "preview", "scale-wise", "SwD"]


@dataclass(frozen=True)
class Blueprint:
    """One subgraph: which nodes of a graph it has, and which of their inputs it shows.

    Args:
        of: the graph it is made of, a file of workflows/.
        inputs: by the name outside, where inside each leads: "SwDDrafts.seed", or several.
        within: types of nodes; all that the finished picture needs, where none are named.
        labels: what an input is called instead of its name.
    """

    name: str
    of: str
    does: str
    inputs: dict[str, str]
    within: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


BLUEPRINTS = (
    Blueprint(
        name=f"SwD Drafts to Finish ({EMBEDDED} student)",
        of=f"swd_drafts_{EMBEDDED}",
        does="Many drafts on a sheet by the student that comes with SwD; those that you click are "
        "finished. Connect Save Image.",
        inputs={
            "text": "CLIPTextEncode.text",
            "width": "EmptySD3LatentImage.width",
            "height": "EmptySD3LatentImage.height",
            "seed": "SwDDrafts.seed",
            "count": "SwDDrafts.count",
        },
        labels={"text": "prompt"},
    ),
    Blueprint(
        name="SwD Drafts to Finish (any model)",
        of="swd_drafts_zimage_turbo",
        does="Many drafts on a sheet by any model, which begins small and grows; those that you "
        "click are finished. Set sampler, steps and cfg as in KSampler. Connect Save Image.",
        inputs={
            "model": "SwDGrowthSchedule.model SwDDrafts.model SwDFinishDrafts.model",
            "positive": "SwDDrafts.positive SwDFinishDrafts.positive",
            "negative": "SwDDrafts.negative SwDFinishDrafts.negative",
            "latent_image": "SwDGrowthSchedule.latent_image SwDDrafts.latent_image",
            "vae": "SwDDrafts.vae SwDFinishDrafts.vae VAEDecode.vae",
            "sampler_name": "SwDGrowthSchedule.sampler_name",
            "scheduler": "SwDGrowthSchedule.scheduler",
            "steps": "SwDGrowthSchedule.steps",
            "cfg": "SwDDrafts.cfg SwDFinishDrafts.cfg",
            "seed": "SwDDrafts.seed",
            "count": "SwDDrafts.count",
        },
        within=("SwDGrowthSchedule", "SwDDrafts", "SwDFinishDrafts", "VAEDecode"),
    ),
)


def identity(*names: str) -> str:
    """The same for the same names, so that a file made again is the same file."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("ComfyUI-SwD", *names))))


def needed(graph: dict[str, Any], within: tuple[str, ...]) -> tuple[list[Node], Node]:
    """The nodes that the saved picture comes from, and the one that makes it."""
    nodes = {n["id"]: n for n in graph["nodes"]}
    sources = {link[0]: link[1] for link in graph["links"]}
    [saver] = [n for n in nodes.values() if n["type"] == "SaveImage"]
    last = nodes[sources[saver["inputs"][0]["link"]]]
    found, waiting = {}, [last]
    while waiting:
        node = waiting.pop()
        if node["id"] in found or (within and node["type"] not in within):
            continue
        found[node["id"]] = node
        waiting += [nodes[sources[i["link"]]] for i in node["inputs"] if i["link"] is not None]
    return [n for n in nodes.values() if n["id"] in found], last


def with_slots(node: Node) -> Node:
    """The node with all its slots, and nothing linked."""
    slots = [
        {"name": name, "type": kind, "link": None}
        | ({"widget": {"name": name}} if kind in WIDGETS else {"shape": OPTIONAL})
        for name, _, kind in (text.partition(":") for text in SLOTS.get(node["type"], "").split())
    ]
    inputs = [{**slot, "link": None} for slot in node["inputs"]]
    outputs = [{**slot, "links": []} for slot in node["outputs"]]
    return {**node, "inputs": inputs + slots, "outputs": outputs}


def subgraph(blueprint: Blueprint, graph: dict[str, Any]) -> dict[str, Any]:
    inside, last = needed(graph, blueprint.within)
    nodes = {n["id"]: with_slots(n) for n in inside}
    by_type = {n["type"]: n for n in nodes.values()}
    links: list[dict[str, Any]] = []

    def connect(source: int, output: int, target: int, slot: int, kind: str) -> int:
        number = len(links) + 1
        ends = dict(origin_id=source, origin_slot=output, target_id=target, target_slot=slot)
        links.append({"id": number, **ends, "type": kind})
        if source in nodes:
            nodes[source]["outputs"][output]["links"].append(number)
        if target in nodes:
            nodes[target]["inputs"][slot]["link"] = number
        return number

    for _, source, output, target, slot, kind in graph["links"]:
        if source in nodes and target in nodes:
            connect(source, output, target, slot, kind)
    inputs = []
    for name, targets in blueprint.inputs.items():
        numbers = []
        for kind, _, slot in (target.partition(".") for target in targets.split()):
            names = [i["name"] for i in by_type[kind]["inputs"]]
            at = by_type[kind]["inputs"][names.index(slot)]
            ends = (BEGIN, len(inputs), by_type[kind]["id"], names.index(slot), at["type"])
            numbers.append(connect(*ends))
        label = {"label": blueprint.labels[name]} if name in blueprint.labels else {}
        slot = {"id": identity(blueprint.name, "input", name), "name": name, "type": at["type"]}
        inputs.append({**slot, "linkIds": numbers, **label})
    out = connect(last["id"], 0, END, 0, "IMAGE")
    output = {"id": identity(blueprint.name, "output"), "name": "IMAGE", "type": "IMAGE"}
    groups = groups_of(list(nodes.values()))
    start = min(n["pos"][0] for n in inside) - 3 * SIDE
    end = max(n["pos"][0] + n["size"][0] for n in inside) + SIDE
    return {
        "id": identity(blueprint.name),
        "version": 1,
        "state": {
            "lastGroupId": len(groups),
            "lastNodeId": max(nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": BEGIN, "bounding": [start, 0, SIDE, (len(inputs) + 2) * ROW]},
        "outputNode": {"id": END, "bounding": [end, 0, SIDE, 3 * ROW]},
        "inputs": inputs,
        "outputs": [{**output, "linkIds": [out]}],
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": groups,
        "links": links,
        "extra": {},
        "category": "SwD",
        "description": blueprint.does,
    }


def whole(blueprint: Blueprint, graph: dict[str, Any]) -> dict[str, Any]:
    """The file: a graph of one node, whose type is the subgraph."""
    inner = subgraph(blueprint, graph)
    slots = {node["id"]: node["inputs"] for node in inner["nodes"]}
    links = {link["id"]: link for link in inner["links"]}
    shown, promoted = [], []
    for slot in inner["inputs"]:
        link = links[slot["linkIds"][0]]
        widget = slots[link["target_id"]][link["target_slot"]].get("widget")
        outside = {key: slot[key] for key in ("name", "type", "label") if key in slot}
        if widget:
            outside["widget"] = {"name": slot["name"]}
            promoted.append([str(link["target_id"]), widget["name"]])
        shown.append({**outside, "link": None})
    number = inner["state"]["lastNodeId"] + 1
    node = {
        "id": number,
        "type": inner["id"],
        "pos": [0, 0],
        "size": [400, 40 + 30 * len(shown)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": shown,
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "title": blueprint.name,
        "properties": {"proxyWidgets": promoted},
        "widgets_values": [],
    }
    return {
        "id": identity(blueprint.name, "graph"),
        "revision": 0,
        "last_node_id": number,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inner]},
        "extra": {"BlueprintDescription": blueprint.does, "BlueprintSearchAliases": ALIASES},
    }


def write(folder: Path) -> None:
    """Every blueprint into `folder`, in place of those that are there."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for blueprint in BLUEPRINTS:
        graph = json.loads((ROOT / "workflows" / f"{blueprint.of}.json").read_text("utf-8"))
        text = json.dumps(whole(blueprint, graph), ensure_ascii=False, indent=1)
        (folder / f"{blueprint.name}.json").write_text(f"{text}\n", "utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "subgraphs", help="folder (subgraphs)")
    write(parser.parse_args().out)
