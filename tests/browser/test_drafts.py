"""Click to pick, as an artist does it: template, run, click, run again, reload."""

import numpy as np
import pytest
from PIL import Image
from sheets import (
    BUTTONS,
    ONE_EDITOR,
    PICK,
    SEED,
    SET_SEED,
    STATUS,
    cached,
    marked,
    node_id,
    numbers,
)


def test_click_two_run_again_reload(sheet, run, look):
    page = sheet
    assert page.locator(BUTTONS).count() == 16
    look("sheet")
    page.get_by_title("Draft 2", exact=True).click()
    page.get_by_title("Draft 7", exact=True).click()
    page.get_by_title("Draft 5", exact=True).click()
    page.get_by_title("Draft 7", exact=True).click()
    assert numbers(page) == "2,5" and marked(page) == ["Draft 2", "Draft 5"]
    entry = run()
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 2
    assert node_id(page, "SwDDrafts") in cached(entry)
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
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    assert numbers(page) == "3,4"
    page.evaluate(
        "() => { const w = app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts').widgets"
        ".find((w) => w.name === 'pick'); w.value = '1-3, 16'; w.callback(w.value); }"
    )
    assert marked(page) == ["Draft 1", "Draft 2", "Draft 3", "Draft 16"]


def picture(host, entry: dict, node: str) -> np.ndarray:
    [file] = entry["outputs"][node]["images"]
    path = host.base / "output" / file["subfolder"] / file["filename"]
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_what_was_clicked_is_finished_though_the_seed_rolls(sheet, run, host):
    """As a graph of an older page has it: the seed is another one after every run."""
    page = sheet
    page.evaluate(SET_SEED, [4321, "randomize"])
    run()
    page.wait_for_function(f"() => ({SEED})()[0] !== 4321")
    page.wait_for_timeout(1000)
    page.get_by_title("Draft 5", exact=True).click()
    assert page.evaluate(SEED) == [4321, "fixed"], "the sheet's, and it stays"
    said = page.locator(STATUS).inner_text()
    assert said == "The seed is that of these drafts again: 4321"
    entry = run()
    clicked = picture(host, entry, node_id(page, "SaveImage"))
    assert node_id(page, "SwDDrafts") in cached(entry)
    assert page.evaluate(SEED) == [4321, "fixed"]
    # The same draft by its number alone, on the sheet of that seed.
    page.evaluate(
        "() => { const w = app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts').widgets"
        ".find((w) => w.name === 'pick'); w.value = '5'; }"
    )
    typed = picture(host, run(), node_id(page, "SaveImage"))
    assert np.array_equal(typed, clicked)


def test_another_seed_is_another_sheet_with_nothing_picked(sheet, run):
    page = sheet
    page.get_by_title("Draft 3", exact=True).click()
    assert numbers(page) == "3"
    page.evaluate(SET_SEED, [777, "fixed"])
    entry = run()
    assert node_id(page, "SaveImage") not in entry["outputs"]
    page.wait_for_function(f"() => ({PICK})() === ''")
    assert marked(page) == []
    page.get_by_title("Draft 3", exact=True).click()
    assert numbers(page) == "3" and page.evaluate(SEED) == [777, "fixed"]


def test_a_linked_pick_is_not_clicked(sheet):
    """What comes by the link is what is finished, so a click must not seem to count."""
    page = sheet
    page.evaluate(
        "() => { const node = LiteGraph.createNode('PrimitiveString'); app.graph.add(node);"
        " const to = app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts');"
        " node.connect(0, to, to.inputs.findIndex((i) => i.name === 'pick')); }"
    )
    page.get_by_title("Draft 5", exact=True).click()
    assert page.evaluate(PICK) == "" and marked(page) == []


@ONE_EDITOR
@pytest.mark.parametrize("node", ["SwDDrafts", "SwDDistillTrain"])
def test_a_new_node_keeps_its_seed(page, node):
    """While one picks; and a training goes on only with the seed it began with."""
    control = page.evaluate(
        "(kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node);"
        " return node.widgets.find((w) => w.name === 'seed').linkedWidgets[0].value; }",
        node,
    )
    assert control == "fixed"
