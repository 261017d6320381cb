"""Workflow files as the page sends them: UI format to API prompt, by object_info."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")


def read(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def models_of(workflow: dict) -> list[dict[str, str]]:
    """The files that the host offers to download for a graph: name, url and directory."""
    return [m for node in workflow["nodes"] for m in node["properties"].get("models", [])]


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def widgets(info: dict) -> list[tuple[str, Any, dict]]:
    """(name, kind, options) of a node's widgets in the order in which graphs save them."""
    found = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            if is_widget(kind):
                found.append((name, kind, options[0] if options else {}))
    return found


def fits(kind: Any, options: dict, value: Any) -> bool:
    """Whether a saved value is one that the widget can have."""
    if isinstance(kind, list) or kind == "COMBO":
        return value in (kind if isinstance(kind, list) else options["options"])
    types = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
    if not isinstance(value, types[kind]) or isinstance(value, bool) != (kind == "BOOLEAN"):
        return False
    return options.get("min", value) <= value <= options.get("max", value)


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """The API prompt of a UI-format graph; AssertionError where its widgets do not fit."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None}
        values = list(node["widgets_values"])
        for name, _, options in widgets(info):
            if not values and name in info["input_order"].get("optional", []):
                break  # saved before the node got this widget: the page takes its default
            inputs[name] = values.pop(0)
            if options.get("control_after_generate"):
                assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
        assert not values, f"{node['type']} has {len(values)} widget values too many"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def find(prompt: dict, class_type: str) -> dict:
    """The inputs of the only node of a type."""
    [inputs] = [n["inputs"] for n in prompt.values() if n["class_type"] == class_type]
    return inputs
