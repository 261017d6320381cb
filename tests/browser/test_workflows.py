"""The shared graphs in the real editor: offered as templates, whole when opened, and they run."""

import base64
import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from sheets import ONE_EDITOR, SET

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "workflows").glob("swd_*.json"))
}
PICTURE = "docs/images/fox_with_graph.png"
OPENED = """async (graph) => {
    await app.loadGraphData(graph);
    const saved = app.graph.serialize();
    return {
        unknown: app.graph.nodes.map((n) => n.type)
            .filter((t) => !(t in LiteGraph.registered_node_types)),
        values: Object.fromEntries(saved.nodes.map((n) => [n.id, n.widgets_values ?? []])),
        links: saved.links.length,
    };
}"""
UNKNOWN = """() => app.graph.nodes.map((n) => n.type)
    .filter((type) => !(type in LiteGraph.registered_node_types))"""
# Where each node is drawn, with its title, in the graph's own units, while those that sample show
# their live preview.
DRAWN = """async (graph) => {
    await app.loadGraphData(graph);
    const picture = Object.assign(document.createElement("canvas"), { width: 512, height: 512 });
    const blob = await new Promise((done) => picture.toBlob(done, "image/jpeg"));
    const sampling = app.graph.nodes.filter(({ type }) =>
        /^(SwDSample|SwDFinishDrafts|SamplerCustomAdvanced)$/.test(type));
    const high = (node) => document.querySelector(`[data-node-id="${node.id}"]`)?.offsetHeight
        ?? node.size[1];
    const before = sampling.map(high);
    for (const node of sampling) {
        const displayNodeId = String(node.id);
        app.api.dispatchCustomEvent("b_preview_with_metadata", { blob, displayNodeId });
    }
    const grown = () => sampling.every((node, k) => high(node) > before[k] + 50);
    const { ds, canvas } = app.canvas;
    ds.scale = 0.5;
    ds.offset = [800, 400];
    app.canvas.setDirty(true, true);
    for (let i = 0; i < 8 || (!grown() && i < 99); i++) await new Promise(requestAnimationFrame);
    const { left, top } = canvas.getBoundingClientRect();
    const nodes = app.graph.nodes.map((node) => {
        const box = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
        const [x, y] = box ? [(box.left - left) / 0.5 - 800, (box.top - top) / 0.5 - 400]
            : [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT];
        const [width, height] = box ? [box.width / 0.5, box.height / 0.5]
            : [node.size[0], node.size[1] + LiteGraph.NODE_TITLE_HEIGHT];
        return { name: `${node.id} ${node.type}`, x, y, width, height };
    });
    const groups = app.graph.groups.map(({ title, pos, size, titleHeight }) => (
        { name: title, title: titleHeight, x: pos[0], y: pos[1], width: size[0], height: size[1] }
    ));
    return [nodes, groups];
}"""
GAP = 10  # between two nodes and between two groups, at least


def models_of(graph: dict) -> list[str]:
    return [m["name"] for n in graph["nodes"] for m in n.get("properties", {}).get("models", [])]


def own_faults(page) -> list[str]:
    """Without those of the page asking the web how large a file is, or whose a node."""
    return [f for f in page.faults if "swd" in f.lower() and "'url': 'https://" not in f]


def card(page, name: str):
    """A template's in the dialog, of which older pages show more as one scrolls."""
    found = page.get_by_text(name, exact=True).first
    while not found.count():
        page.get_by_text(re.compile("^swd_")).last.evaluate("(e) => e.scrollIntoView()")
        page.wait_for_timeout(300)
    return found


@ONE_EDITOR
def test_every_graph_is_a_template_with_its_picture(page, browse, look):
    """A card's picture is loaded when the page likes: where from is seen on the first card."""
    shown, *_ = GRAPHS
    with page.expect_response(f"**/{shown}.jpg") as loaded:
        browse()
    picture = page.locator(f'img[alt="{shown}"]').first
    page.wait_for_function("(i) => i.naturalWidth > 0", arg=picture.element_handle())
    for name in GRAPHS:
        card(page, name).wait_for()
        reply = page.request.get(loaded.value.url.replace(shown, name))
        assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg"), name
        assert reply.body() == (ROOT / "workflows" / f"{name}.jpg").read_bytes(), name
    look("dialog")


def lacking(host) -> set[str]:
    """Nodes of shared graphs that this ComfyUI hasn't got, being older than their model."""
    types = {n["type"] for graph in GRAPHS.values() for n in graph["nodes"]}
    hosts = {kind for kind in types if not kind.startswith(("SwD", "MarkdownNote"))}
    return hosts - set(host.get("/object_info"))


@ONE_EDITOR
def test_every_graph_opens_whole(page, host, look):
    """No unknown node, no widget that took another's value, no link lost."""
    missing = lacking(host)
    for name, graph in GRAPHS.items():
        opened = page.evaluate(OPENED, graph)
        assert set(opened["unknown"]) <= missing, name
        assert opened["links"] == len(graph["links"]), name
        for node in graph["nodes"]:
            if node["type"] in ("Note", "MarkdownNote", *missing):
                continue
            now, kind = opened["values"][str(node["id"])], node["type"]
            assert now[: len(node["widgets_values"])] == node["widgets_values"], (name, kind)
        look(name)
    assert own_faults(page) == []


def apart(a: dict, b: dict, gap: float = GAP) -> bool:
    beside = a["x"] + a["width"] + gap <= b["x"] or b["x"] + b["width"] + gap <= a["x"]
    return beside or a["y"] + a["height"] + gap <= b["y"] or b["y"] + b["height"] + gap <= a["y"]


def inside(node: dict, group: dict) -> bool:
    """Whole, and clear of the group's title."""
    return (
        group["x"] < node["x"]
        and node["x"] + node["width"] < group["x"] + group["width"]
        and group["y"] + group["title"] <= node["y"]
        and node["y"] + node["height"] < group["y"] + group["height"]
    )


def test_no_two_nodes_overlap_and_groups_hold_whole_ones(page, look):
    """In the classic editor and in the new one, whose nodes are taller."""
    found = []
    for name, graph in GRAPHS.items():
        nodes, groups = page.evaluate(DRAWN, graph)
        assert len(nodes) == len(graph["nodes"])
        found += [(name, a, b) for a, b in combinations(nodes, 2) if not apart(a, b)]
        found += [(name, a, b) for a, b in combinations(groups, 2) if not apart(a, b)]
        for node in nodes:
            around = [g for g in groups if not apart(node, g, 0)]
            noted = node["name"].endswith("Note")
            if len(around) != (not noted) or not all(inside(node, g) for g in around):
                found.append((name, node, around))
        look(name)
    assert found == []


def test_no_note_has_code_in_it():
    """Blue on brown, in the editor's notes: nobody can read it."""
    for name, graph in GRAPHS.items():
        notes = [n["widgets_values"][0] for n in graph["nodes"] if n["type"] == "MarkdownNote"]
        assert not [note for note in notes if "`" in note], name


@ONE_EDITOR
@pytest.mark.usefixtures("small_window")
def test_every_template_opens_by_a_click(page, host, browse, look):
    """Nothing in the way but the host's word on the nodes and models that it lacks."""
    missing = lacking(host)
    for name, graph in GRAPHS.items():
        browse()
        card(page, name).click()
        page.wait_for_function(
            "([name, count]) => app.extensionManager.workflow.activeWorkflow?.filename === name"
            " && app.graph.nodes.length === count",
            arg=[name, len(graph["nodes"])],
        )
        page.wait_for_timeout(500)
        look(name)
        unknown = set(page.evaluate(UNKNOWN))
        assert unknown <= missing, name
        dialogs = [d for d in page.get_by_role("dialog").all() if d.is_visible()]
        for dialog in reversed(dialogs):  # the last one lies over the others
            text = dialog.inner_text()
            if "Missing Models" in text:
                assert (files := models_of(graph)) and all(f in text for f in files), (name, text)
            else:
                assert unknown and all(kind in text for kind in unknown), (name, text)
            dialog.get_by_role("button", name="Close").first.click()
            dialog.wait_for(state="hidden")
        assert page.locator(".p-toast-message").count() == 0, name
    assert own_faults(page) == []


@ONE_EDITOR
def test_the_readmes_picture_brings_its_graph(page, look):
    data = base64.b64encode((ROOT / PICTURE).read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "picture.png", { type: "image/png" }));
            return dropped;
        }""",
        data,
    )
    page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": dropped})
    page.wait_for_function("() => app.graph.nodes.some((n) => n.type === 'SwDSceneStudent')")
    look("dropped")
    types = page.evaluate("app.graph.nodes.map((n) => n.type)")
    assert sorted(types) == sorted(n["type"] for n in GRAPHS["swd_quickstart_scenes"]["nodes"])
    assert own_faults(page) == []


def test_a_graph_runs_and_shows_its_pictures(page, editor, run, look):
    """What it saved, and in the schedule's node what the schedule does."""
    page.evaluate("(graph) => app.loadGraphData(graph)", GRAPHS["swd_custom_sampling_scenes"])
    # Another size in each editor: the host tells a page only of nodes that it ran.
    width = {"classic": 128, "vue": 160}[editor]
    page.evaluate(SET, ["EmptySD3LatentImage", {"width": width}])
    run()
    for kind in ("SaveImage", "SwDScaleSchedule"):
        page.wait_for_function(
            """(kind) => {
                const node = app.graph.nodes.find((n) => n.type === kind);
                return (app.nodeOutputs[node.id]?.images ?? []).length === 1;
            }""",
            arg=kind,
        )
    look("done")
    assert own_faults(page) == []
