"""How long picking takes in a real page; not a test, so run by its name:

pytest tests/browser/timings.py --log-cli-level=INFO
"""

import json
import logging
import shutil
import uuid
from pathlib import Path

import pytest
from sheets import BUTTONS, entry_beyond, node_id, settled

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
# When a picture came onto a sheet and the host had taken a request.
CLOCKS = """() => {
  window.seen = {};
  window.requests = 0;
  document.addEventListener("load", ({ target }) => {
    if (target.closest?.(".swd-page")) window.seen.draft ??= performance.now();
  }, true);
  const plain = window.fetch;
  window.fetch = async (...args) => {
    const reply = await plain(...args);
    if (args[1]?.method === "POST" && String(args[0]?.url ?? args[0]).endsWith("/prompt")) {
      window.requests += 1;
      window.seen.queued ??= performance.now();
    }
    return reply;
  };
}"""
# From the next click anywhere.
FROM_CLICK = """() => {
  window.seen = {};
  addEventListener("pointerdown", () => (window.seen.click = performance.now()),
    { capture: true, once: true });
}"""
TURNS = 3
CLEAR = (800, 900)  # where the mouse has the canvas under it
TRACED = ["devtools.timeline", "disabled-by-default-devtools.timeline"]
VIEW_FIRST = [0.8, 100, 150]
TO_VIEW = """([scale, ...offset]) => {
  Object.assign(app.canvas.ds, { scale, offset });
  app.canvas.setDirty(true, true);
}"""
# In the place of the drafts a node of the host's that shows their sheet, as large.
PLAIN = """(name) => {
  const drafts = app.graph.nodes.find((n) => n.type === "SwDDrafts");
  const { pos, size } = drafts;
  app.graph.remove(drafts);
  const node = LiteGraph.createNode("LoadImage");
  app.graph.add(node);
  node.pos = [...pos];
  const widget = node.widgets.find((w) => w.name === "image");
  widget.options.values.push(name);
  widget.value = name;
  widget.callback(name);
  node.setSize([...size]);
}"""
VIEW = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
SET = """([name, value]) => {
  const node = app.graph.nodes.find((n) => n.type === "SwDDrafts");
  node.widgets.find((w) => w.name === name).value = value;
}"""


def since_click(page, what: str) -> float:
    page.wait_for_function("(what) => window.seen[what]", arg=what, polling=50)
    return page.evaluate("(what) => window.seen[what] - window.seen.click", what)


def load(page) -> None:
    path = ROOT / "workflows" / "swd_drafts_scenes.json"
    graph = {**json.loads(path.read_text(encoding="utf-8")), "id": str(uuid.uuid4())}
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)


def test_timings(page, host):
    load(page)
    page.evaluate(CLOCKS)
    go = page.get_by_role("button", name="Run", exact=True).first
    for warm, seed in (("cold", 1), ("warm", 2)):
        page.evaluate(SET, ["seed", seed])
        page.evaluate(FROM_CLICK)
        go.click()
        log.info("Run to first draft, %s: %.0f ms", warm, since_click(page, "draft"))
        page.wait_for_selector(BUTTONS, state="visible")
        settled(page, host)
    page.get_by_title("Draft 2", exact=True).click()
    page.wait_for_timeout(1000)
    page.evaluate("() => (window.requests = 0)")
    page.evaluate(FROM_CLICK)
    page.locator(".swd-bar button:first-child").click()
    log.info("click to queued: %.0f ms", since_click(page, "queued"))
    settled(page, host)
    log.info("requests: %d", page.evaluate("() => window.requests"))


def of_64(page, host) -> dict:
    """A sheet of 64, run; its picture as the host names it."""
    load(page)
    page.evaluate(SET, ["count", 64])
    known = set(host.get("/history"))
    page.get_by_role("button", name="Run", exact=True).first.click()
    entry = entry_beyond(known, page, host)
    page.wait_for_selector(f"{BUTTONS}:nth-child(64)", state="visible")
    [file] = entry["outputs"][node_id(page, "SwDDrafts")]["images"]
    return file


def moved(page) -> list[dict]:
    """Zooms the canvas out and half as far in again, and drags it: the page's tasks meanwhile."""
    page.evaluate(f"(view) => ({TO_VIEW})(view)", VIEW_FIRST)
    page.wait_for_timeout(1500)
    before = page.evaluate(VIEW)
    page.context.browser.start_tracing(page=page, categories=TRACED)
    page.mouse.move(*CLEAR)
    for step in range(20):
        page.mouse.wheel(0, 120 if step < 13 else -120)
        page.wait_for_timeout(50)
    page.mouse.down(button="middle")
    for step in range(20):
        page.mouse.move(CLEAR[0] - 10 * step, CLEAR[1] - 8 * step)
    page.mouse.up(button="middle")
    page.wait_for_timeout(500)
    events = json.loads(page.context.browser.stop_tracing())["traceEvents"]
    after = page.evaluate(VIEW)
    assert before[0] != after[0] and before[1:] != after[1:], "the view stood still"
    [main] = {(e["pid"], e["tid"]) for e in events if e["name"] == "FireAnimationFrame"}
    return [e for e in events if (e["pid"], e["tid"]) == main and e["ph"] == "X"]


def longest(events: list[dict], name: str, of: str = "") -> tuple[float, float]:
    """The longest of such events in ms: by the clock, and of the processor's time."""
    found = [e for e in events if e["name"] == name and of in json.dumps(e.get("args", {}))]
    most = [max((event.get(k, 0) for event in found), default=0) for k in ("dur", "tdur")]
    return round(most[0] / 1000, 1), round(most[1] / 1000, 1)


@pytest.mark.timeout(3000)
def test_64_drafts_moved_and_zoomed(page, host):
    """The same graph with the sheet, and with the host's own picture of it there, in turns."""
    file = of_64(page, host)
    sheet = page.evaluate("() => app.graph.serialize()")
    name = "swd_64.png"
    made = host.base / file["type"] / file["subfolder"] / file["filename"]
    shutil.copy(made, host.base / "input" / name)
    page.evaluate(PLAIN, name)
    plain = page.evaluate("() => app.graph.serialize()")
    rows: dict[str, list[list[dict]]] = {"sheet": [], "plain": []}
    for _ in range(TURNS):
        for kind, graph in (("sheet", sheet), ("plain", plain)):
            page.evaluate("(graph) => app.loadGraphData(graph)", graph)
            if kind == "sheet":
                page.wait_for_selector(f"{BUTTONS}:nth-child(64)", state="visible")
            rows[kind].append(moved(page))
    for kind, turns in rows.items():
        for what, of in (("RunTask", ""), ("FunctionCall", ""), ("FunctionCall", "swd_")):
            found = sorted(longest(events, what, of) for events in turns)
            log.info("%s: longest %s %s (clock, processor): %s", kind, what, of, found)
