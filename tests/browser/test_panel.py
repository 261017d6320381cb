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


@pytest.fixture
def panel(sheet):
    """The panel's parameters of SwD Drafts, which has a sheet."""
    opener = sheet.get_by_role("button", name="Toggle properties panel").first
    if not opener.count():
        pytest.skip("this ComfyUI's page has no properties panel")
    opener.click()
    sheet.evaluate(SELECT)
    panel = sheet.get_by_test_id("properties-panel")
    panel.get_by_role("tab", name="Parameters").click()
    panel.get_by_text("stop_after", exact=True).wait_for()
    yield panel
    opener.click()


def test_the_sheet_stays_as_wide_as_its_node(panel, page, run, look):
    page.wait_for_timeout(500)  # the canvas is drawn when it likes
    look("open")
    assert page.evaluate(BESIDE) <= MARGINS
    page.evaluate(WIDEN)
    run()
    page.wait_for_timeout(500)
    look("widened")
    assert page.locator(BUTTONS).first.is_visible()
    assert page.evaluate(BESIDE) <= MARGINS


def test_the_panel_has_no_label_of_a_sheet_that_it_cannot_show(panel):
    assert not panel.get_by_text("Drafts", exact=True).count()


def test_no_width_that_a_page_leaves_on_the_sheet_narrows_it(sheet):
    """As its list of favourites does, and pages that can't be told to leave it out of the panel."""
    sheet.evaluate(f"() => {{ {WIDGET}.width = 288; app.canvas.setDirty(true, true); }}")
    sheet.wait_for_timeout(500)
    assert sheet.evaluate(BESIDE) <= MARGINS
