"""Widgets that come through a link, and loaders whose folders hold whatever a user put there.

The host validates a graph before anything runs: a linked widget's value is None then.
"""

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path

import pytest

# What each of our nodes that validates its widgets says of a bad one: widget -> (value, says).
VALIDATED = {
    "SwDScaleSchedule": {
        "preset": ("flux-99", "no preset 'flux-99'"),
        "custom_sizes": ("0.5 0.4 1", "scale 0.4 is below"),
        "custom_sigmas": ("1 one 0.6", "custom_sigmas"),
        "custom_frames": ("0.5 0.4 1", "Step 2"),
    },
    "SwDLoadDrafts": {"file": ("none.drafts.safetensors", "no drafts file")},
    "SwDLoadPrepared": {"folder": ("none", "no prepared folder")},
    "SwDDistillTrain": {"lora_name": ("a/b", "can't name a folder")},
}
GOOD = {
    "SwDScaleSchedule": {
        "preset": "custom", "custom_sizes": "0.5 0.75 1", "custom_sigmas": "1 0.8 0.6",
        "custom_frames": "",
    },
    "SwDLoadDrafts": {"file": "sheets/a.drafts.safetensors [output]"},
    "SwDLoadPrepared": {"folder": "sets/pets"},
    "SwDDistillTrain": {"lora_name": "my_student"},
}  # fmt: skip
LINKS = [(node, widget) for node, widgets in VALIDATED.items() for widget in widgets]


class Anything(str):
    """The type "*" as packs write it for every host: equal to all others."""

    def __ne__(self, other):
        return False


class Source:
    """A node whose output may go into any input."""

    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "give"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    """The host's input and output folder with one thing for each loader."""
    import folder_paths

    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    (tmp_path / "output" / "sheets").mkdir()
    (tmp_path / "output" / "sheets" / "a.drafts.safetensors").touch()
    (tmp_path / "input" / "sets" / "pets").mkdir(parents=True)
    (tmp_path / "input" / "sets" / "pets" / "prepared.json").touch()
    return tmp_path


@pytest.fixture
def validate(pack, folders, monkeypatch):
    """The host's own validation of a graph with one node of ours: (valid, what is said)."""
    import execution

    import nodes

    for name, node in {**pack, "Source": Source}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)

    def run(node, **values):
        inputs = {**GOOD[node], **values}
        for name in pack[node].GET_NODE_INFO_V1()["input"]["required"]:
            inputs.setdefault(name, ["1", 0])  # models and the like
        prompt = {
            "1": {"class_type": "Source", "inputs": {}},
            "2": {"class_type": node, "inputs": inputs},
        }
        valid, errors, _ = asyncio.run(execution.validate_inputs("id", prompt, "2", {}))
        return valid, json.dumps(errors)

    return run


def test_the_table_names_every_node_that_validates(pack):
    own = {name for name, node in pack.items() if "validate_inputs" in vars(node)}
    assert own == set(VALIDATED)


@pytest.mark.parametrize(("node", "widget"), LINKS)
def test_a_linked_widget_is_not_known_yet(validate, node, widget):
    valid, said = validate(node, **{widget: ["1", 0]})
    assert valid, said


@pytest.mark.parametrize(("node", "widget"), LINKS)
def test_all_linked_are_not_known_yet(validate, node, widget):
    valid, said = validate(node, **dict.fromkeys(VALIDATED[node], ["1", 0]))
    assert valid, said


@pytest.mark.parametrize(("node", "widget"), LINKS)
def test_a_bad_widget_is_refused_before_anything_runs(validate, node, widget):
    value, says = VALIDATED[node][widget]
    valid, said = validate(node, **{widget: value})
    assert not valid and says in said


@pytest.mark.parametrize("value", [None, 5, 0.5, True, ["a", "b", "c"], {"a": 1}], ids=repr)
@pytest.mark.parametrize(
    ("node", "menu"),
    [("SwDScaleSchedule", "preset"), ("SwDLoadDrafts", "file"), ("SwDLoadPrepared", "folder")],
)
def test_a_menu_takes_no_other_kind_of_value(pack, validate, node, menu, value):
    """By the API any JSON can come. Null is what a link looks like: the node itself refuses it."""
    valid, said = validate(node, **{menu: value})
    assert valid if value is None else (not valid and "Exception" not in said)
    with pytest.raises(ValueError, match=r"no (preset|drafts file|prepared folder)"):
        run(pack, node, **{menu: value})


def run(pack, node, **values):
    """The node itself, as it runs when its links have arrived."""
    inputs = {**GOOD[node], **values}
    if node == "SwDScaleSchedule":
        [inputs["model"], *_] = pack["SwDSceneStudent"].execute(strength=1.0).args
    if node == "SwDLoadDrafts":
        inputs["vae"] = object()
    if node == "SwDDistillTrain":
        inputs |= {"model": object(), "data": object(), "rank": 4, "resume": False}
    return pack[node].execute(**inputs)


@pytest.mark.parametrize(("node", "widget"), LINKS)
def test_a_bad_value_through_a_link_is_refused_when_it_arrives(pack, folders, node, widget):
    value, says = VALIDATED[node][widget]
    with pytest.raises(ValueError, match=says):
        run(pack, node, **{widget: value})


@pytest.mark.parametrize("value", ["squeeze", None, 3])
def test_a_linked_menu_is_checked_where_the_host_does_not(pack, value):
    """A link may bring anything, and ComfyUI 0.3.64 doesn't check menus of such nodes at all."""
    with pytest.raises(ValueError, match="large_targets.*stretch.*extend"):
        run(pack, "SwDScaleSchedule", large_targets=value)


@pytest.mark.parametrize("node", ["SwDLoadDrafts", "SwDLoadPrepared"])
def test_a_file_by_link_is_read_anew_as_nobody_knows_which_it_is(pack, folders, node):
    fingerprint = pack[node].fingerprint_inputs
    [widget] = GOOD[node]
    assert fingerprint(**GOOD[node]) == fingerprint(**GOOD[node])
    unknown = fingerprint(**{widget: None})
    assert unknown != unknown, "equal to nothing, so that it runs again"


OUTSIDE = [
    "/etc/hosts",
    "../a.drafts.safetensors",
    "sheets/../../output/sheets/x",
    "\0",
    "x" * 5000,
]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: name[:20])
@pytest.mark.parametrize("mark", ["", " [output]", " [temp]"])
def test_nothing_outside_of_the_folders_is_read(pack, folders, name, mark):
    (folders / "a.drafts.safetensors").touch()
    (folders / "prepared.json").touch()
    for node, widget in (("SwDLoadDrafts", "file"), ("SwDLoadPrepared", "folder")):
        assert "There is no" in pack[node].validate_inputs(**{widget: name + mark})
        with pytest.raises(ValueError, match="There is no"):
            run(pack, node, **{widget: name + mark})


def test_what_the_schemas_say_does_not_depend_on_the_users_folders(pack, folders):
    """Neither the host's start nor a page's load may wait for what lies there."""
    looked, watching = [], [True]

    def note(event, args):
        if watching and event in ("os.scandir", "os.listdir", "open") and args:
            path = os.fspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
            looked.append(path) if str(folders) in path else None

    sys.addaudithook(note)  # it can't be taken away again
    try:
        os.listdir(folders / "input")
        assert looked.pop()
        for node in pack.values():
            node.GET_SCHEMA()
            node.define_schema()
            node.GET_NODE_INFO_V1()
        assert looked == []
    finally:
        watching.clear()


def offered(server) -> dict[str, list[str]]:
    return server.get("/swd/files")


def test_a_link_back_to_the_base_folder_hangs_nothing(start_server, tmp_path):
    """Each loader's menu, asked for by the page, still has what lies there, once."""
    base = tmp_path / "comfy0"
    sets = base / "input" / "sets" / "pets"
    sets.mkdir(parents=True)
    (sets / "prepared.json").touch()
    (base / "output" / "drafts").mkdir(parents=True)
    (base / "output" / "drafts" / "x.drafts.safetensors").touch()
    (base / "input" / "loop").symlink_to(base)
    (base / "output" / "loop").symlink_to(base / "output")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "prepared.json").touch()
    (base / "input" / "linked").symlink_to(elsewhere)
    (base / "input" / "itself").symlink_to(base / "input" / "itself")
    (base / "input" / "gone").symlink_to(tmp_path / "gone")
    server = start_server()  # waits no longer than other host tests
    assert server.get("/object_info")["SwDLoadDrafts"]
    menus = offered(server)
    assert sorted(menus["SwDLoadPrepared"]) == ["linked", "sets/pets"]
    assert [name for name in menus["SwDLoadDrafts"] if name.endswith("[output]")] == [
        "drafts/x.drafts.safetensors [output]"
    ]


def test_a_menu_ends_however_many_files_lie_there(pack, tmp_path, monkeypatch):
    import importlib

    found = importlib.import_module("swd_pack.nodes.offered")
    monkeypatch.setattr(found, "MOST_ENTRIES", 50)
    deep = tmp_path
    for i in range(30):
        (deep / f"{i}.txt").touch()
        (deep / f"{i}.drafts.safetensors").touch()
        deep = deep / "deeper"
        deep.mkdir()
    names = found.search(str(tmp_path), lambda name: name.endswith(".drafts.safetensors"))
    assert 0 < len(names) < 30
    assert "0.drafts.safetensors" in names, "what lies nearest is found first"
    assert found.search(str(tmp_path / "missing"), bool) == []


def test_the_newest_file_is_the_first_of_the_menu(pack, tmp_path):
    import importlib

    found = importlib.import_module("swd_pack.nodes.offered")
    for age, name in enumerate(("b", "c", "a")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert found.search(str(tmp_path), lambda name: True) == ["b", "c", "a"]


def test_the_published_graph_with_a_linked_list_runs(server):
    """As the host's page posts it: sizes typed in a text node of their own."""
    graph = {
        "1": {"class_type": "SwDSceneStudent", "inputs": {"strength": 1.0}},
        "2": {"class_type": "PrimitiveString", "inputs": {"value": "0.5 0.75 1"}},
        "3": {
            "class_type": "SwDScaleSchedule",
            "inputs": {"model": ["1", 0], **GOOD["SwDScaleSchedule"], "custom_sizes": ["2", 0]},
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    }
    entry = server.run(graph, uuid.uuid4().hex)
    assert "custom: 3 steps" in json.dumps(entry["outputs"]["4"]), entry
    graph["2"]["inputs"]["value"] = "0.5 0.4 1"
    assert "scale 0.4 is below" in json.dumps(server.run(graph)["status"])


def test_saved_drafts_are_in_the_menu_at_once_and_load(server):
    path = Path(server.base) / "output" / "drafts" / "late.drafts.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert "drafts/late.drafts.safetensors [output]" in offered(server)["SwDLoadDrafts"]
