"""Drafts put aside with a key, seen on the tray at once, and taken off it again."""

import pytest
from sheets import BUTTONS, CELLS, SET, SHEET, marked, node_id

SHEETS = f"""(type) => {{
  const sheet = {SHEET}(app.graph.nodes.find((n) => n.type === type));
  return [...sheet?.querySelectorAll(".swd-grid button") ?? []].map((b) => b.ariaLabel);
}}"""
TRAY = """() => {
  const find = (type) => app.graph.nodes.find((n) => n.type === type);
  const tray = LiteGraph.createNode("SwDTray");
  app.graph.add(tray);
  const [x, y] = find("SaveImage").pos;
  tray.pos = [x + 430, y]; // where all of it shows and nothing grows over it
  find("SwDSceneStudent").connect(2, tray, 0);
  find("SwDSceneStudent").connect(1, tray, 1);
  const behind = LiteGraph.createNode("SwDFinishDrafts");
  app.graph.add(behind);
  behind.pos = [x + 930, y];
  tray.connect(0, behind, behind.inputs.findIndex((i) => i.name === "drafts"));
}"""
STORED = """() => Object.values({ ...localStorage, ...sessionStorage })
  .some((text) => text.includes("SwDTray"))"""
MARKED = f"""{SHEET}(app.graph.nodes.find((n) => n.type === "SwDTray"))
  .querySelectorAll('[aria-pressed="true"][title^="Draft"]').length"""
STARS = "() => [...document.querySelectorAll('.swd-kept')].map((b) => b.title)"


@pytest.fixture
def tray(sheet, host):
    """The graph of drafts, run once, with an empty tray beside it."""
    host.post("/swd/tray/remove", {"names": host.get("/swd/tray")})
    sheet.evaluate(TRAY)
    return sheet


def shown(page, count: int) -> list[str]:
    """The tray's drafts, once there are so many."""
    page.wait_for_function(f"(n) => ({SHEETS})('SwDTray').length === n", arg=count)
    return page.evaluate(SHEETS, "SwDTray")


def on_tray(page):
    return page.locator(".swd-sheet", has_text="Remove").locator(".swd-grid button")


def test_kept_seen_reloaded_and_removed(tray, host, run, look):
    page = tray
    page.get_by_title("Draft 3", exact=True).focus()
    page.keyboard.press("k")
    assert len(shown(page, 1)) == 1
    page.get_by_title("Draft 5", exact=True).first.click()
    page.get_by_title("Draft 9", exact=True).click()
    page.get_by_role("button", name="Keep", exact=True).click()
    assert len(shown(page, 3)) == 3
    page.wait_for_function(f"() => ({STARS})().length === 3")
    assert page.evaluate(STARS) == ["Draft 3", "Draft 5", "Draft 9"]
    assert marked(page) == ["Draft 5", "Draft 9"], "the picks are another thing"
    look("kept")
    page.wait_for_function(STORED)  # the page keeps a changed graph when it likes
    page.reload()
    page.wait_for_selector(BUTTONS, state="visible", timeout=120_000)
    page.wait_for_function(f"() => ({STARS})().length === 3")
    page.wait_for_function(f"() => ({SHEETS})('SwDTray').length === 3")
    on_tray(page).nth(1).focus()
    page.keyboard.press("Delete")
    assert len(shown(page, 2)) == 2
    on_tray(page).nth(0).click()
    page.get_by_role("button", name="Clear the rest").click()
    assert len(shown(page, 1)) == 1 and len(host.get("/swd/tray")) == 1
    page.wait_for_function(f"() => ({MARKED}) === 1")  # what was marked stays so
    look("cleared")
    on_tray(page).nth(0).focus()
    page.keyboard.press("Delete")
    page.wait_for_function(f"() => ({SHEETS})('SwDTray').length === 0")
    assert host.get("/swd/tray") == [] and node_id(page, "SwDTray")
    # A key pressed by mistake loses nothing.
    page.get_by_role("button", name="Put back").click()
    assert len(shown(page, 1)) == 1 and len(host.get("/swd/tray")) == 1
    # What waits, as it can't lie on the same sheet, is a click away.
    page.get_by_title("Draft 5", exact=True).first.focus()
    page.keyboard.press("x")  # these picks are of another sheet then
    page.evaluate(SET, ["SwDDrafts", {"stop_after": 1}])
    run()
    page.get_by_title("Draft 4", exact=True).first.focus()
    page.keyboard.press("k")
    page.get_by_role("button", name="Others").click()
    page.wait_for_function(f"() => app.graph.nodes.some((n) => {CELLS}(n)?.kind === 2)")
    assert len(shown(page, 1)) == 1
    look("others")
    assert not [f for f in page.faults if "swd" in f.lower()]
