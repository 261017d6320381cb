"""Click to pick, as an artist does it: template, run, click, run again, reload."""

import pytest

BUTTONS = ".swd-sheet button"
PICK = (
    "() => app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts')"
    ".widgets.find((w) => w.name === 'pick').value"
)


def node_id(page, kind: str) -> str:
    return str(page.evaluate("(k) => app.graph.nodes.find((n) => n.type === k).id", kind))


def cached(entry: dict) -> set[str]:
    [nodes] = [m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"]
    return set(nodes)


def marked(page) -> list[str]:
    return page.locator(f'{BUTTONS}[aria-pressed="true"]').evaluate_all(
        "(all) => all.map((b) => b.title)"
    )


@pytest.fixture
def sheet(page, browse, run):
    """The template, run once with nothing picked."""
    browse()
    page.get_by_text("swd_drafts_emoji", exact=True).first.click()
    page.wait_for_function(
        "() => app.graph.nodes.some((n) => n.type === 'SwDDrafts')", timeout=60_000
    )
    page.wait_for_timeout(500)
    entry = run()
    assert node_id(page, "SaveImage") not in entry["outputs"], "nothing was picked"
    page.wait_for_selector(BUTTONS, state="visible", timeout=60_000)
    return page


def test_click_two_run_again_reload(sheet, run, look):
    page = sheet
    assert page.locator(BUTTONS).count() == 16
    look("sheet")
    page.get_by_title("Draft 2", exact=True).click()
    page.get_by_title("Draft 7", exact=True).click()
    page.get_by_title("Draft 5", exact=True).click()
    page.get_by_title("Draft 7", exact=True).click()
    assert page.evaluate(PICK) == "2,5" and marked(page) == ["Draft 2", "Draft 5"]
    entry = run()
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 2
    assert node_id(page, "SwDDrafts") in cached(entry)
    page.wait_for_timeout(1500)
    look("finished")
    page.reload()
    page.wait_for_selector(BUTTONS, state="visible", timeout=120_000)
    assert marked(page) == ["Draft 2", "Draft 5"]
    look("reloaded")
    assert not [f for f in page.faults if "swd" in f.lower()]


def test_keyboard_and_typing(sheet):
    page = sheet
    page.get_by_title("Draft 3", exact=True).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press(" ")
    assert page.evaluate(PICK) == "3,4"
    page.evaluate(
        "() => { const w = app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts').widgets"
        ".find((w) => w.name === 'pick'); w.value = '1-3, 16'; w.callback(w.value); }"
    )
    assert marked(page) == ["Draft 1", "Draft 2", "Draft 3", "Draft 16"]
