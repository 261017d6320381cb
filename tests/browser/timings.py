"""How long picking takes in a real page; not a test, so run by its name:

pytest tests/browser/timings.py --log-cli-level=INFO
"""

import json
import logging
import uuid
from pathlib import Path

from sheets import BUTTONS

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
# When a picture came onto a sheet, when the host had taken a request, how long scripts took.
CLOCKS = """() => {
  window.seen = {};
  window.requests = 0;
  window.scripts = [];
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
  new PerformanceObserver((list) => {
    for (const s of list.getEntries().flatMap((frame) => frame.scripts)) {
      window.scripts.push([Math.round(s.duration), s.invoker, s.sourceURL.split("/").pop()]);
    }
  }).observe({ type: "long-animation-frame" });
}"""
# From the next click anywhere.
FROM_CLICK = """() => {
  window.seen = {};
  addEventListener("pointerdown", () => (window.seen.click = performance.now()),
    { capture: true, once: true });
}"""
VIEW = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
SET = """([name, value]) => {
  const node = app.graph.nodes.find((n) => n.type === "SwDDrafts");
  node.widgets.find((w) => w.name === name).value = value;
}"""


def since_click(page, what: str) -> float:
    page.wait_for_function("(what) => window.seen[what]", arg=what, polling=50)
    return page.evaluate("(what) => window.seen[what] - window.seen.click", what)


def test_timings(page, host):
    path = ROOT / "workflows" / "swd_drafts_scenes.json"
    graph = {**json.loads(path.read_text(encoding="utf-8")), "id": str(uuid.uuid4())}
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.evaluate(CLOCKS)
    go = page.get_by_role("button", name="Run", exact=True).first
    for warm, seed in (("cold", 1), ("warm", 2)):
        page.evaluate(SET, ["seed", seed])
        page.evaluate(FROM_CLICK)
        go.click()
        log.info("Run to first draft, %s: %.0f ms", warm, since_click(page, "draft"))
        page.wait_for_selector(BUTTONS, state="visible")
        while any(host.get("/queue").values()):
            page.wait_for_timeout(300)
    page.get_by_title("Draft 2", exact=True).click()
    page.wait_for_timeout(1000)
    page.evaluate("() => (window.requests = 0)")
    page.evaluate(FROM_CLICK)
    page.locator(".swd-bar button:first-child").click()
    log.info("click to queued: %.0f ms", since_click(page, "queued"))
    while any(host.get("/queue").values()):
        page.wait_for_timeout(300)
    log.info("requests: %d", page.evaluate("() => window.requests"))

    page.evaluate(SET, ["count", 64])
    go.click()
    page.wait_for_function(f"() => document.querySelectorAll('{BUTTONS}').length === 64")
    page.wait_for_timeout(2000)
    page.evaluate("() => (window.scripts = [])")
    before = page.evaluate(VIEW)
    page.mouse.move(800, 900)
    for step in range(30):  # the canvas zooms out, and half as far in again
        page.mouse.wheel(0, 120 if step < 20 else -120)
        page.wait_for_timeout(50)
    page.keyboard.down("Space")  # and is moved
    page.mouse.down()
    for step in range(30):
        page.mouse.move(800 - 10 * step, 900 - 8 * step)
    page.mouse.up()
    page.keyboard.up("Space")
    page.wait_for_timeout(1000)
    after = page.evaluate(VIEW)
    assert before[0] != after[0] and before[1:] != after[1:], "the view stood still"
    longest = sorted(page.evaluate("() => window.scripts"), reverse=True)[:5]
    log.info("64 drafts moved and zoomed, longest scripts in ms: %s", longest or "none")
