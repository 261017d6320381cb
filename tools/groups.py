"""Puts the nodes of shared graphs into groups with names, a stage each: make graphs

A graph is laid out in columns, and a column belongs to the stage of the most telling node in it.
"""

import argparse
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTES = ("Note", "MarkdownNote")
# From the most telling on; loaders stand before what is written for them.
STAGES = (
    ("Drafts", r"SwDDrafts"),
    ("Finish", r"SwDFinishDrafts"),
    ("Sample", r"SwDSample|SwDSampler|SamplerCustomAdvanced|RandomNoise"),
    ("Prompt and size", r"CLIPTextEncode|Empty\w*|SwD\w+Schedule"),
    ("Model", r"\w*Loader\w*|SwD\w+Student"),
    ("Video", r"SaveAnimated\w+"),
    ("Picture", r"SaveImage|VAEDecode"),
)
# Least heights in Nodes 2.0, the taller editor, of nodes that were saved lower; where they sample,
# with their live preview.
TALL = {
    "SwDSample": 520,
    "SwDFinishDrafts": 584,
    "SamplerCustomAdvanced": 384,
    "SwDSampler": 106,
    "SwDScaleStrip": 106,
    "VAELoader": 86,
    "CheckpointLoaderSimple": 126,
    "EmptySD3LatentImage": 118,
    "EmptyLatentImage": 118,
    "EmptyFlux2LatentImage": 118,
}
STUDENT = 146  # of a Load SwD … Student
TITLE, HEADING, EDGE = 30, 40, 12  # of a node's title, a group's and what is around the nodes
COLOUR, FONT = "#3f789e", 24  # the host's own for a group

Node = dict[str, Any]


def stage_of(column: list[Node], drafts: bool) -> str:
    """The name of what nodes below each other do.

    Raises:
        ValueError: if no stage has any of them.
    """
    found = [name for name, kinds in STAGES if any(re.fullmatch(kinds, n["type"]) for n in column)]
    if not found:
        raise ValueError(f"no stage for {[n['type'] for n in column]}: add one to STAGES")
    if found[:2] == ["Prompt and size", "Model"]:
        return "Model, prompt and size"
    return "Finish" if drafts and found[0] == "Picture" else found[0]


def left(node: Node) -> float:
    return node["pos"][0]


def height(node: Node) -> float:
    least = STUDENT if node["type"].endswith("Student") else TALL.get(node["type"], 0)
    return max(node["size"][1], least)


def around(nodes: list[Node]) -> list[float]:
    """x, y, width and height of a group with all of these nodes in it."""
    start = min(map(left, nodes)) - EDGE
    top = min(n["pos"][1] for n in nodes) - TITLE - HEADING
    right = max(n["pos"][0] + n["size"][0] for n in nodes) + EDGE
    bottom = max(n["pos"][1] + height(n) for n in nodes) + EDGE
    return [start, top, right - start, bottom - top]


def groups_of(nodes: list[Node]) -> list[dict[str, Any]]:
    """A graph's groups from left to right; none where there is only one stage."""
    drafts = any(n["type"] == "SwDDrafts" for n in nodes)
    placed = sorted((n for n in nodes if n["type"] not in NOTES), key=left)
    columns = [list(column) for _, column in groupby(placed, left)]
    stages = [
        (name, [node for column in run for node in column])
        for name, run in groupby(columns, lambda column: stage_of(column, drafts))
    ]
    if len(stages) < 2:
        return []
    return [
        {
            "id": number,
            "title": name,
            "bounding": around(members),
            "color": COLOUR,
            "font_size": FONT,
            "flags": {},
        }
        for number, (name, members) in enumerate(stages, 1)
    ]


def grouped(text: str) -> str:
    """A graph file with its groups made anew; nothing else of it changes."""
    start = text.index('"groups":') + len('"groups": ')
    _, end = json.JSONDecoder().raw_decode(text, start)
    rows = ",\n".join(f"  {json.dumps(group)}" for group in groups_of(json.loads(text)["nodes"]))
    return text[:start] + (f"[\n{rows}\n ]" if rows else "[]") + text[end:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="graphs (all of workflows/)")
    for file in parser.parse_args().files or sorted((ROOT / "workflows").glob("*.json")):
        file.write_text(grouped(file.read_text(encoding="utf-8")), "utf-8", newline="\n")
