"""Sheets of drafts in subgraphs: placed twice, nested, saved, with what they offer outside."""

import uuid

import pytest
from sheets import entry_beyond, small_graph

GRAPH = small_graph()
# Drafts, finishing and decoding in a subgraph of the user's own, which stands there twice: the
# second for another prompt, with its own saver. Gives both nodes' and both savers' numbers.
TWICE = """() => {
  const all = (type) => app.graph.nodes.filter((n) => n.type === type);
  const [drafts] = all("SwDDrafts"), [finish] = all("SwDFinishDrafts"), [saver] = all("SaveImage");
  const [text] = all("CLIPTextEncode"), [student] = all("SwDSceneStudent");
  for (const node of [...all("SwDScaleStrip"), ...all("PreviewImage")]) app.graph.remove(node);
  for (const node of all("VAEDecode")) if (!node.outputs[0].links?.length) app.graph.remove(node);
  const [decode] = all("VAEDecode");
  const first = app.graph.convertToSubgraph(new Set([drafts, finish, decode])).node;
  const second = LiteGraph.createNode(first.type);
  const other = LiteGraph.createNode("CLIPTextEncode");
  const beside = LiteGraph.createNode("SaveImage");
  for (const node of [second, other, beside]) app.graph.add(node);
  other.widgets[0].value = "a happy dog on a beach";
  student.connect(1, other, 0);
  for (const [slot, input] of first.inputs.entries()) {
    if (input.link == null) continue;
    const { origin_id, origin_slot } = app.graph.links.get(input.link);
    const from = app.graph.getNodeById(origin_id);
    from === text ? other.connect(0, second, slot) : from.connect(origin_slot, second, slot);
  }
  const out = first.outputs.findIndex((o) => o.type === "IMAGE");
  second.connect(out, beside, 0);
  const [x, y] = first.pos;
  first.setSize([420, first.size[1]]);
  second.setSize([420, second.size[1]]);
  second.pos = [x + 500, y];
  other.pos = [x, y - 300];
  beside.pos = [x + 1000, y];
  return [first.id, second.id, saver.id, beside.id].map(String);
}"""
SHEET_OF = """(id) => app.graph.getNodeById(id).widgets
  .map((w) => w.name === "swd_sheet" && w.element)
  .find((sheet) => sheet && sheet.querySelector(".swd-grid button"))"""
MARKED = f"""(id) => [...({SHEET_OF})(id)?.querySelectorAll('[aria-pressed="true"]') ?? []]
  .map((b) => b.title).filter((title) => title.startsWith("Draft"))"""
CLICK = f"([id, number]) => ({SHEET_OF})(id).querySelector(`[title='Draft ${{number}}']`).click()"
GO = f"(id) => ({SHEET_OF})(id).querySelector('.swd-bar button').click()"
SHOWN = "(ids) => ids.every((id) => (%s)(id))" % SHEET_OF  # noqa: UP031  braces are JavaScript's
INSIDE = """async (id) => {
  const holder = app.graph.getNodeById(id);
  app.canvas.openSubgraph(holder.subgraph, holder);
  for (let i = 0; i < 8; i++) await new Promise(requestAnimationFrame);
  const node = holder.subgraph.nodes.find((n) => n.type === "SwDDrafts");
  app.canvas.ds.scale = 0.75;
  app.canvas.ds.offset = [300 - node.pos[0], 250 - node.pos[1]];
  const { element } = node.widgets.find((w) => w.name === "swd_sheet");
  return [...element.querySelectorAll('.swd-grid [aria-pressed="true"]')]
    .map((b) => b.title);
}"""


@pytest.fixture
def finish(page, host):
    """Presses the button on a node's sheet and gives what that ran."""

    def press(node: str) -> dict:
        known = set(host.get("/history"))
        page.evaluate(GO, node)
        return entry_beyond(known, page, host)

    return press


def load(page, graph: dict) -> None:
    page.evaluate("(graph) => app.loadGraphData(graph)", {**graph, "id": str(uuid.uuid4())})


def test_a_subgraph_placed_twice_has_a_sheet_on_each(page, host, run, finish, look):
    load(page, GRAPH)
    first, second, saver, beside = page.evaluate(TWICE)
    run()
    page.wait_for_function(SHOWN, arg=[first, second])
    for node, number in ((first, 3), (second, 5), (second, 6)):
        page.evaluate(CLICK, [node, number])
    both = [["Draft 3"], ["Draft 5", "Draft 6"]]
    assert [page.evaluate(MARKED, node) for node in (first, second)] == both
    look("two")
    entry = finish(second)
    assert len(entry["outputs"][beside]["images"]) == 2 and saver not in entry["outputs"]
    entry = finish(first)
    assert len(entry["outputs"][saver]["images"]) == 1
    # Run finishes what is picked on each.
    entry = run()
    assert [len(entry["outputs"][node]["images"]) for node in (saver, beside)] == [1, 2]
    # Saved and opened again.
    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    page.evaluate("(graph) => app.loadGraphData(graph)", saved)
    page.wait_for_function(SHOWN, arg=[first, second])
    assert [page.evaluate(MARKED, node) for node in (first, second)] == both
    version = host.get("/system_stats")["system"]["comfyui_version"]
    if not version.startswith("0.3."):  # where a page says which of them was entered
        assert page.evaluate(INSIDE, first) == ["Draft 3"]
        look("inside")
        page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
        assert page.evaluate(INSIDE, second) == ["Draft 5", "Draft 6"]
    assert not [f for f in page.faults if "swd" in f.lower()]


# Offers widgets of a node outside its subgraph, where the page hasn't by itself.
OFFER = """([id, type, names]) => {
  const { subgraph } = app.graph.getNodeById(id);
  const node = subgraph.nodes.find((n) => n.type === type);
  for (const name of names) {
    const input = node.inputs.find((i) => i.name === name);
    if (input.link == null) subgraph.addInput(name, input.type).connect(input, node);
  }
}"""
# The widget that a subgraph's node has for what it offers.
OFFERED = """([id, name]) => {
  const node = app.graph.getNodeById(id);
  return node.getWidgetFromSlot(node.inputs.find((i) => i.name === name));
}"""
VALUE = f"(what) => ({OFFERED})(what).value"
TO = f"([id, name, value]) => void (({OFFERED})([id, name]).value = value)"
NEST = "(id) => String(app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])).node.id)"


def test_what_a_subgraph_offers_outside_is_picked_and_set_back(page, run, posted, finish, look):
    """Another seed of the subgraph's node between a sheet and the click: the sheet's is meant."""
    load(page, GRAPH)
    holder, other, saver, _ = page.evaluate(TWICE)
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", other)
    page.evaluate(OFFER, [holder, "SwDDrafts", ["seed", "count"]])
    page.evaluate(OFFER, [holder, "SwDFinishDrafts", ["pick"]])
    page.evaluate(TO, [holder, "seed", 4321])
    page.evaluate(TO, [holder, "count", 8])
    run()
    page.wait_for_function(SHOWN, arg=[holder])
    page.evaluate(TO, [holder, "seed", 99])
    page.evaluate(CLICK, [holder, 4])
    assert page.evaluate(MARKED, holder) == ["Draft 4"]
    assert page.evaluate(VALUE, [holder, "pick"]).startswith("4 @")
    assert page.evaluate(VALUE, [holder, "seed"]) == 4321, "the sheet's"
    page.evaluate(TO, [holder, "count", 3])
    assert len(finish(holder)["outputs"][saver]["images"]) == 1
    drafts = [n["inputs"] for n in posted[-1]["prompt"].values() if n["class_type"] == "SwDDrafts"]
    assert [(inputs["seed"], inputs["count"]) for inputs in drafts] == [(4321, 8)]
    assert page.evaluate(VALUE, [holder, "count"]) == 3, "what was typed stays"
    look("offered")
    # The same in a subgraph of another one.
    outer = page.evaluate(NEST, holder)
    run()
    page.wait_for_function(SHOWN, arg=[outer])
    page.evaluate(CLICK, [outer, 2])
    assert page.evaluate(MARKED, outer) == ["Draft 2"]
    assert len(finish(outer)["outputs"][saver]["images"]) == 1
    look("nested")
    assert not [f for f in page.faults if "swd" in f.lower()]
