"""The shared graphs in the real editor: offered as templates, whole when opened, and they run."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "workflows").glob("swd_*.json"))
}
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


def own_faults(page) -> list[str]:
    """Without those of the page asking the hub how large a missing student is."""
    return [f for f in page.faults if "swd" in f.lower() and "huggingface.co" not in f]


def test_every_graph_is_a_template_with_its_picture(page, look):
    page.keyboard.press("Escape")  # a new user's page begins with the dialog open
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("ComfyUI-SwD", exact=True).first.click()
    for name in GRAPHS:
        page.get_by_text(name, exact=True).first.wait_for()
        picture = page.locator(f'img[alt="{name}"]').first
        picture.scroll_into_view_if_needed()
        page.wait_for_function("(i) => i.naturalWidth > 0", arg=picture.element_handle())
    look("dialog")


def test_every_graph_opens_whole(page, look):
    """No unknown node, no widget that took another's value, no link lost."""
    page.keyboard.press("Escape")
    for name, graph in GRAPHS.items():
        opened = page.evaluate(OPENED, graph)
        assert opened["unknown"] == [], name
        assert opened["links"] == len(graph["links"]), name
        for node in graph["nodes"]:
            if node["type"] in ("Note", "MarkdownNote"):
                continue
            now, kind = opened["values"][str(node["id"])], node["type"]
            assert now[: len(node["widgets_values"])] == node["widgets_values"], (name, kind)
        page.wait_for_timeout(300)
        look(name)
    assert own_faults(page) == []


def test_a_graph_runs_and_shows_its_pictures(page, host, run, look):
    """What it saved, and in the schedule's node what the schedule does."""
    page.keyboard.press("Escape")
    page.evaluate("(graph) => app.loadGraphData(graph)", GRAPHS["swd_custom_sampling_emoji"])
    # Another size for each run: the host tells a page only of nodes that it ran.
    page.evaluate(
        "(count) => { app.graph.nodes.find((n) => n.type === 'EmptySD3LatentImage')"
        ".widgets.find((w) => w.name === 'width').value = 256 + 32 * count; }",
        len(host.get("/history")),
    )
    run()
    for kind in ("SaveImage", "SwDScaleSchedule"):
        page.wait_for_function(
            """(kind) => {
                const node = app.graph.nodes.find((n) => n.type === kind);
                return (app.nodeOutputs[node.id]?.images ?? []).length === 1;
            }""",
            arg=kind,
        )
    page.wait_for_timeout(1500)
    look("done")
    assert own_faults(page) == []
