"""Workflow files as the page sends them: UI format to API prompt, by object_info."""

from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")


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
