"""The blueprints: the host lists and serves them, and what is in them fits its nodes."""

import json
import urllib.error

import pytest
from graphs import ROOT, fits, is_widget, widgets

BLUEPRINTS = {path.stem: path for path in sorted((ROOT / "subgraphs").glob("*.json"))}


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


def test_the_host_lists_and_serves_them(server):
    try:
        listed = server.get("/global_subgraphs")
    except urllib.error.HTTPError as error:
        assert error.code == 404
        pytest.skip("this ComfyUI offers no blueprints")
    ours = {k: e for k, e in listed.items() if e["info"]["node_pack"] == "custom_nodes.ComfyUI-SwD"}
    assert {entry["name"] for entry in ours.values()} == set(BLUEPRINTS)
    for key, entry in ours.items():
        data = server.get(f"/global_subgraphs/{key}")["data"]
        assert data == BLUEPRINTS[entry["name"]].read_text(encoding="utf-8")


def slots_of(info: dict) -> list[tuple[str, str]]:
    """Name and type of a node's inputs as pages order them: links first, then widgets."""
    names = [n for group in ("required", "optional") for n in info["input_order"].get(group, [])]
    kinds = {n: (info["input"].get("required", {}) | info["input"].get("optional", {}))[n][0]
             for n in names}  # fmt: skip
    links = [(n, kinds[n]) for n in names if not is_widget(kinds[n])]
    return links + [
        (n, "COMBO" if isinstance(kinds[n], list) else kinds[n])
        for n in names
        if is_widget(kinds[n])
    ]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_every_blueprint_fits_the_host(object_info, name):
    blueprint = json.loads(BLUEPRINTS[name].read_text(encoding="utf-8"))
    [node], [inner] = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == inner["id"] and inner["name"] == node["title"] == name
    assert [i["name"] for i in node["inputs"]] == [i["name"] for i in inner["inputs"]]
    nodes = {n["id"]: n for n in inner["nodes"]}
    links = {link["id"]: link for link in inner["links"]}
    for number, link in links.items():
        source, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        ends = (inner["inputs"] if source is None else source["outputs"])[link["origin_slot"]]
        assert number in ends["linkIds" if source is None else "links"]
        assert ends["type"] == link["type"]
        ends = (inner["outputs"] if target is None else target["inputs"])[link["target_slot"]]
        assert number in ends["linkIds"] if target is None else ends["link"] == number
        assert ends["type"] == link["type"]
    for node in nodes.values():
        info = object_info[node["type"]]
        slots = [(i["name"], i["type"]) for i in node["inputs"]]
        if any("widget" in i for i in node["inputs"]):
            assert slots == slots_of(info), node["type"]
        required = {n for n, kind in slots_of(info) if n in info["input"].get("required", {})}
        linked = {i["name"] for i in node["inputs"] if i["link"] is not None}
        assert {n for n in required if not is_widget(info["input"]["required"][n][0])} <= linked
        values = list(node["widgets_values"])
        for widget, kind, options in widgets(info):
            assert fits(kind, options, values.pop(0)), (node["type"], widget)
            if options.get("control_after_generate"):
                assert values.pop(0) == "fixed"
        assert values == []
