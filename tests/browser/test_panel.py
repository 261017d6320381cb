"""The page's properties panel, which draws a selected node's widgets once more at its own width."""

import pytest
from sheets import BUTTONS, SHEET

DRAFTS = "app.graph.nodes.find((n) => n.type === 'SwDDrafts')"
WIDGET = f"{DRAFTS}.widgets.find((w) => w.name === 'swd_sheet')"
SELECT = f"() => app.canvas.selectItems([{DRAFTS}])"
# How much of its node's width the sheet leaves empty, whatever the canvas's zoom.
BESIDE = f"() => {DRAFTS}.size[0] - {SHEET}({DRAFTS}).offsetWidth"
WIDEN = f"() => {{ const node = {DRAFTS}; node.setSize([node.size[0] + 150, node.size[1]]); }}"
MARGINS = 40  # of a widget in its node, both sides, at most


# Until the canvas, and what lies on it, has been laid out anew: it draws once in a frame at most.
DRAWN = """async () => {
    app.canvas.setDirty(true, true);
    for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame);
}"""


@pytest.fixture
def panel(old_page, sheet):
    """The panel's parameters of SwD Drafts, which has a sheet."""
    if old_page:
        pytest.skip(f"{old_page} has no properties panel")
    opener = sheet.get_by_role("button", name="Toggle properties panel").first
    opener.click()
    sheet.evaluate(SELECT)
    panel = sheet.get_by_test_id("properties-panel")
    panel.get_by_role("tab", name="Parameters").click()
    panel.get_by_text("stop_after", exact=True).wait_for()
    yield panel
    opener.click()


def test_the_sheet_stays_as_wide_as_its_node(panel, page, run, look):
    page.evaluate(DRAWN)
    look("open")
    assert page.evaluate(BESIDE) <= MARGINS
    page.evaluate(WIDEN)
    run()
    page.evaluate(DRAWN)
    look("widened")
    assert page.locator(BUTTONS).first.is_visible()
    assert page.evaluate(BESIDE) <= MARGINS


def test_the_panel_has_no_label_of_a_sheet_that_it_cannot_show(panel):
    assert not panel.get_by_text("Drafts", exact=True).count()


def test_no_width_that_a_page_leaves_on_the_sheet_narrows_it(sheet):
    """As its list of favourites does, and pages that can't be told to leave it out of the panel."""
    sheet.evaluate(f"() => {{ {WIDGET}.width = 288; }}")
    sheet.evaluate(DRAWN)
    assert sheet.evaluate(BESIDE) <= MARGINS
