"""Sheets in graphs of all kinds: rerouted, muted, bypassed, copied, two, saved, as an app."""

import uuid

import pytest
from sheets import BUTTONS, CELLS, SHEET, THERE, cached, entry_beyond, node_id, small_graph

# Between the drafts and the node that finishes them: what is made there, and its node, if any.
BETWEEN = {
    "native reroutes": """([link]) => {
      const { graph } = app;
      const first = graph.createReroute([700, 500], link);
      graph.createReroute([760, 560], first);
    }""",
    "the old Reroute node": """([link, drafts, finish]) => {
      const node = window.add("Reroute");
      drafts.connect(0, node, 0);
      node.connect(0, finish, link.target_slot);
    }""",
    "a bypassed node": """([link, drafts, finish]) => {
      const node = window.add("LatentUpscaleBy");
      node.mode = 4;
      drafts.connect(0, node, 0);
      node.connect(0, finish, link.target_slot);
    }""",
    "a bypassed subgraph": """([link, drafts, finish]) => {
      const node = window.add("LatentUpscaleBy");
      drafts.connect(0, node, 0);
      node.connect(0, finish, link.target_slot);
      app.graph.convertToSubgraph(new Set([node])).node.mode = 4;
    }""",
}
HELPERS = f"""() => {{
  window.sheetOf = {SHEET};
  window.cellsOf = {CELLS};
}}"""
PARTS = """() => {
  // By number: the page changes their order when one comes to the front.
  window.all = (type) =>
    app.graph.nodes.filter((n) => n.type === type).sort((a, b) => a.id - b.id);
  window.add = (type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [700, 600];
    return node;
  };
  window.parts = () => {
    const [drafts] = all("SwDDrafts"), [finish] = all("SwDFinishDrafts");
    const slot = finish.inputs.findIndex((i) => i.name === "drafts");
    const link = app.graph.links.get(finish.inputs[slot].link);
    return [link, drafts, finish];
  };
  window.button = (k, number) =>
    sheetOf(all("SwDDrafts")[k]).querySelector(`.swd-grid button[title="Draft ${number}"]`);
}"""
PICKS = """() => all("SwDFinishDrafts").map((n) =>
  n.widgets.find((w) => w.name === "pick").value.split(" @")[0])"""
SAID = """() => all("SwDDrafts").map((n) =>
  sheetOf(n)?.querySelector("[role=status]").textContent)"""
GO = "(k) => sheetOf(all('SwDDrafts')[k]).querySelector('.swd-bar button')"
APPS = """() => app.extensionManager.command.commands
  .some((c) => c.id === "Comfy.ToggleLinear")"""
IDS = "(type) => all(type).map((n) => String(n.id))"


def finish(page, host, k: int = 0) -> dict:
    """Presses the k-th sheet's button, and gives the history entry of what that ran."""
    known = set(host.get("/history"))
    page.evaluate(f"(k) => ({GO})(k).click()", k)
    entry = entry_beyond(known, page, host)
    page.wait_for_function(f"(k) => ({SAID})()[k].startsWith('Last queued')", arg=k)
    return entry


def load(page, graph: dict | None = None) -> None:
    """A graph, such as the one of drafts under a new name."""
    if graph is None:
        graph = {**small_graph(), "id": str(uuid.uuid4())}
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.evaluate(HELPERS)
    page.evaluate(PARTS)


def test_past_reroutes_and_what_is_bypassed_or_muted(sheet, host, posted):
    page = sheet
    for number, (what, make) in enumerate(BETWEEN.items(), 1):
        load(page)
        page.evaluate(f"() => ({make})(parts())")
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_selector(BUTTONS, state="visible")
        page.evaluate("(number) => button(0, number).click()", number)
        assert page.evaluate(PICKS) == [str(number)], what
        entry = finish(page, host)
        assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 1, what
    # What is muted finishes nothing, by itself or with the subgraph it is in.
    asked = len(posted)
    page.evaluate(
        """() => {
          app.graph.convertToSubgraph(new Set(all("SaveImage"))).node.mode = 2;
          all("PreviewImage")[0].mode = 2;
          button(0, 9).dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
        }"""
    )
    assert page.evaluate(SAID) == ["Nothing behind Finish SwD Drafts saves or shows a picture"]
    page.evaluate("() => { all('SwDDrafts')[0].mode = 4; button(0, 9).ondblclick(); }")
    assert page.evaluate(SAID) == ["This node is muted or bypassed"]
    page.evaluate("() => { all('SwDDrafts')[0].mode = 0; parts()[2].mode = 2; }")
    page.evaluate("() => button(0, 9).onclick()")
    assert page.evaluate(f"() => ({GO})(0).textContent") == "No Finish SwD Drafts behind"
    assert len(posted) == asked
    assert not [f for f in page.faults if "swd" in f.lower()]


def test_copies_are_a_pair_of_their_own_and_come_back_saved(sheet, host, posted, look):
    """Ctrl+C and Ctrl+V of the graph: each sheet finishes its own, also when it is reloaded."""
    page = sheet
    load(page)
    page.evaluate(
        """() => {
          for (const n of [...all("SwDScaleStrip"), ...all("PreviewImage")]) n.mode = 2;
          app.canvas.selectItems(app.graph.nodes);
          app.canvas.canvas.focus();
        }"""
    )
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    page.wait_for_function("() => all('SwDFinishDrafts').length === 2")
    page.evaluate("() => (all('SwDDrafts')[1].widgets[0].value = 8)")
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function("() => all('SwDDrafts').every(cellsOf)")
    sheets = page.evaluate("() => all('SwDDrafts').map(cellsOf).map((c) => [c.sheet, c.seed])")
    assert sheets[0][0] != sheets[1][0] and [s for _, s in sheets] == [7, 8]
    page.evaluate("() => { button(0, 3).click(); button(1, 5).click(); button(1, 6).click(); }")
    assert page.evaluate(PICKS) == ["3", "5,6"]
    look("two")
    savers = page.evaluate(IDS, "SaveImage")
    asked = len(posted)
    entry = finish(page, host, 1)
    assert len(posted) == asked + 1, "one request"
    assert len(entry["outputs"][savers[1]]["images"]) == 2 and savers[0] not in entry["outputs"]

    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    page.reload()
    page.wait_for_function(THERE)
    load(page, saved)
    page.wait_for_function("() => all('SwDDrafts').every(cellsOf)")
    marked = """() => all("SwDDrafts").map((n) =>
      [...sheetOf(n).querySelectorAll('[aria-pressed="true"]')].map((b) => b.title))"""
    assert page.evaluate(marked) == [["Draft 3"], ["Draft 5", "Draft 6"]]
    # Older hosts' history has the other's pictures, too, from before: what is new is in the folder.
    there = set((host.base / "output").glob("swd_finished*"))
    entry = finish(page, host, 0)
    [new] = set((host.base / "output").glob("swd_finished*")) - there
    assert [i["filename"] for i in entry["outputs"][savers[0]]["images"]] == [new.name]
    assert set(page.evaluate(IDS, "SwDDrafts")) & set(entry["prompt"][2]) <= cached(entry)
    assert not [f for f in page.faults if "swd" in f.lower()]


@pytest.mark.own_page
def test_an_app_has_the_sheet_as_one_of_its_parts(page, old_page, host, look):
    """App Mode, which newer pages have: run, pick and finish there with no node in sight."""
    graph = {**small_graph(), "id": str(uuid.uuid4())}
    [drafts] = [n["id"] for n in graph["nodes"] if n["type"] == "SwDDrafts"]
    [saver] = [n["id"] for n in graph["nodes"] if n["type"] == "SaveImage"]
    parts = [[f"{graph['id']}:{drafts}:{name}", name] for name in ("seed", "swd_sheet")]
    app = {"linearMode": True, "linearData": {"inputs": parts, "outputs": [str(saver)]}}
    if old_page:
        pytest.skip(f"{old_page} has no App Mode")
    assert page.evaluate(APPS)
    welcome = page.get_by_test_id("coach-landing-overlay")
    page.add_locator_handler(welcome, lambda: page.get_by_role("button", name="Skip").click())
    load(page, {**graph, "extra": {**graph["extra"], **app}})
    page.wait_for_selector("[data-testid='linear-widgets']")
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_selector(BUTTONS, state="visible")
    page.get_by_title("Draft 4", exact=True).click()
    look("app")
    known = set(host.get("/history"))
    page.get_by_role("button", name="Finish 1 picked").click()
    entry = entry_beyond(known, page, host)
    page.wait_for_function(f"() => ({SAID})()[0] === 'Last queued: 4'")
    assert len(entry["outputs"][str(saver)]["images"]) == 1
