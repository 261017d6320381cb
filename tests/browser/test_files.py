"""The loaders' menus, as a page fills them: neither start nor load looks into a folder."""

import json
import os
import time

import pytest

ADD = """() => {
  const node = LiteGraph.createNode('SwDLoadDrafts');
  app.graph.add(node);
  return String(node.id);
}"""
MENU = """(id) => {
  const menu = app.graph.getNodeById(id).widgets.find((w) => w.name === 'file');
  return { value: menu.value, values: [...menu.options.values] };
}"""


@pytest.fixture
def saved(host):
    """Makes an empty drafts file in the output folder, older by `age` seconds."""

    def make(name: str, age: int = 0) -> str:
        path = host.base / "output" / "drafts" / f"{name}.drafts.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
        return f"drafts/{path.name} [output]"

    return make


AT = """(id) => {
  const node = app.graph.getNodeById(id);
  const menu = node.widgets.find((w) => w.name === 'file');
  const spot = [node.pos[0] + node.size[0] / 2, node.pos[1] + menu.last_y + 8];
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(spot);
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  return [left + x, top + y];
}"""


def menu(page, node: str) -> dict:
    return page.evaluate(MENU, node)


def opened(page, node: str) -> list[str]:
    """The entries an artist sees who clicks the menu, in either editor."""
    box = page.get_by_role("combobox")
    vue = box.count() > 0
    entries = (
        page.get_by_role("option") if vue else page.locator(".litecontextmenu .litemenu-entry")
    )

    def click() -> None:
        if vue:
            box.first.click()
            return
        drawn = page.wait_for_function(
            f"(id) => {{ const at = ({AT})(id); return at[1] && at; }}", arg=node
        )
        page.mouse.click(*drawn.json_value())

    clicked_until(page, click, entries.first)
    texts = [text.strip() for text in entries.all_inner_texts()]
    page.keyboard.press("Escape")
    page.mouse.click(1000, 900)  # beside it, which closes the classic editor's
    entries.first.wait_for(state="hidden")
    return texts


def clicked_until(page, click, shown) -> None:
    """Clicks again where a late dialog or a redrawn canvas took the click."""
    from playwright.sync_api import TimeoutError

    for _ in range(10):
        click()
        try:
            shown.wait_for(state="visible", timeout=6_000)
            return
        except TimeoutError:
            page.keyboard.press("Escape")
    pytest.fail("ten clicks on the menu opened nothing")


def test_a_new_loader_offers_what_was_saved_the_newest_first(page, saved, look):
    older, newer = saved("older", age=60), saved("newer")
    page.evaluate("() => app.graph.clear()")
    node = page.evaluate(ADD)
    page.wait_for_function(f"(id) => ({MENU})(id).values.length", arg=node)
    found = menu(page, node)
    assert found["values"].index(newer) < found["values"].index(older)
    assert found["value"] == found["values"][0]
    assert {older, newer} <= set(opened(page, node))
    look("new")
    later = saved(f"later {time.time_ns()}", age=30)
    assert later not in menu(page, node)["values"]
    page.evaluate("() => app.refreshComboInNodes()")
    page.wait_for_function(f"([id, name]) => ({MENU})(id).values.includes(name)", arg=[node, later])
    assert menu(page, node)["value"] == found["value"], "what was chosen stays"
    assert later in opened(page, node)
    look("opened")
    assert not [f for f in page.faults if "swd" in f.lower()]


def test_a_saved_graph_keeps_its_file(page, saved):
    """Also one that is no longer there: the host says so, and nothing is put in its place."""
    there, gone = saved("there"), "drafts/gone.drafts.safetensors [output]"
    page.evaluate("() => app.graph.clear()")
    nodes = [page.evaluate(ADD) for _ in range(2)]
    graph = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    for node in graph["nodes"]:
        node["widgets_values"] = [there if str(node["id"]) == nodes[0] else gone]
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.wait_for_function(f"(id) => ({MENU})(id).values.length", arg=nodes[0])
    page.evaluate("() => app.refreshComboInNodes()")
    page.wait_for_timeout(1000)
    assert [menu(page, node)["value"] for node in nodes] == [there, gone]
    prompt = page.evaluate("() => app.graphToPrompt().then((p) => p.output)")
    assert [prompt[node]["inputs"]["file"] for node in nodes] == [there, gone]
