"""The files that `make graphs` writes are those that are there."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    return lambda name: runpy.run_path(str(ROOT / "tools" / f"{name}.py"))


def test_groups_are_made(tool):
    for path in sorted((ROOT / "workflows").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert tool("groups")["grouped"](text) == text, f"make graphs ({path.name})"


def test_every_stage_of_a_shared_graph_is_a_group():
    for path in sorted((ROOT / "workflows").glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        titles = [group["title"] for group in graph["groups"]]
        assert len(set(titles)) == len(titles) >= 2, path.name
        drafts = any(node["type"] == "SwDDrafts" for node in graph["nodes"])
        assert (titles[-2:] == ["Drafts", "Finish"]) == drafts, path.name


def test_blueprints_are_made(tool, tmp_path):
    tool("blueprints")["write"](tmp_path)
    made, there = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*")}
        for folder in (tmp_path, ROOT / "subgraphs")
    )
    assert made == there and len(made) == 2, "make graphs"
