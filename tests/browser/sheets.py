"""What the tests of contact sheets in the editor read and set."""

import json
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds until a page has asked something of the host, on a slow machine
# For what is of the page itself, in either editor the same.
ONE_EDITOR = pytest.mark.parametrize("editor", ["classic"], indirect=True)
# A page with the graph that it begins with, which it loads behind all else.
THERE = "window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph"
BUTTONS = ".swd-grid button"
STATUS = '.swd-bar [role="status"]'
GO = ".swd-bar button:first-child"
PICK = (
    "() => app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts')"
    ".widgets.find((w) => w.name === 'pick').value"
)
# A node's sheet as an element, if it has one; and what the page knows of it.
SHEET = "((node) => node?.widgets?.find((w) => w.name === 'swd_sheet')?.element)"
CELLS = "((node) => node.swd?.get(String(node.id))?.cells)"
SEED = (
    "() => { const w = app.graph.nodes.find((n) => n.type === 'SwDDrafts').widgets"
    ".find((w) => w.name === 'seed'); return [w.value, w.linkedWidgets[0].value]; }"
)
SET_SEED = """([seed, control]) => {
  const node = app.graph.nodes.find((n) => n.type === 'SwDDrafts');
  const w = node.widgets.find((w) => w.name === 'seed');
  w.linkedWidgets[0].value = control;
  w.value = seed;
  w.callback?.(seed);
}"""
SET = """([type, values]) => {
  const { widgets } = app.graph.nodes.find((n) => n.type === type);
  for (const widget of widgets) if (widget.name in values) widget.value = values[widget.name];
}"""


def small_graph(name: str = "swd_drafts_scenes") -> dict:
    """A shared graph at half its size, which the host draws in a quarter of the time."""
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    [latent] = [n for n in graph["nodes"] if n["type"] == "EmptySD3LatentImage"]
    latent["widgets_values"][:2] = [128, 128]
    return graph


def numbers(page) -> str:
    """The picks without the sheet they were clicked on."""
    return page.evaluate(PICK).partition(" @")[0]


def node_id(page, kind: str) -> str:
    return str(page.evaluate("(k) => app.graph.nodes.find((n) => n.type === k).id", kind))


def cached(entry: dict) -> set[str]:
    [nodes] = [m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"]
    return set(nodes)


def marked(page) -> list[str]:
    return page.locator(f'{BUTTONS}:visible[aria-pressed="true"]').evaluate_all(
        "(all) => all.map((b) => b.title)"
    )


def entry_beyond(known: set[str], page, host) -> dict:
    """The history entry that isn't among the known, once it is there; it must have succeeded.

    It waits as long as the host is at something, and pytest's timeout ends that.
    """
    deadline = time.monotonic() + PATIENCE
    while not (new := [e for id, e in host.get("/history").items() if id not in known]):
        if any(host.get("/queue").values()):
            deadline = time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            pytest.fail(
                f"Nothing was asked of the host in {PATIENCE} s. Did a dialog take the click? "
                f"The page said: {page.faults or 'nothing'}"
            )
        page.wait_for_timeout(100)
    [entry] = new
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def settled(page, host) -> None:
    """Waits until the host has done all that it was asked for; pytest's timeout ends that."""
    while any(host.get("/queue").values()):
        page.wait_for_timeout(100)
