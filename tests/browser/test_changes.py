"""What was changed in the graph, or went from it, between a sheet and what is done with it."""

import json
import re

import pytest
from sheets import BUTTONS, CELLS, PICK, SET, STATUS, cached, marked, node_id, numbers, small_graph

GRAPH = small_graph()
ANOTHER = {**GRAPH, "id": "00000000-0000-4000-8000-000000000000"}
WIDGET = """([type, name]) => app.graph.nodes.find((n) => n.type === type)
  .widgets.find((w) => w.name === name).value"""
SHOWN = "() => document.querySelectorAll('.swd-sheet:not([hidden])').length"
DRAFTS = "app.graph.nodes.find((n) => n.type === 'SwDDrafts')"
HEIGHT = f"() => {DRAFTS}.size[1]"
# The sheet's own, and what the host has put on its node beside it in one of its two editors.
PICTURES = f"""() => {{
  const {{ id, widgets }} = {DRAFTS};
  const here = [...document.querySelectorAll(`[data-node-id="${{id}}"] img`)];
  return 1 + here.filter((one) => !one.closest(".swd-sheet")).length
    + widgets.filter((one) => one.name === "$$canvas-image-preview").length;
}}"""
# A negative, which guidance needs, for the quick start's sampler.
GUIDED = """(cfg) => {
  const find = (type) => app.graph.nodes.find((n) => n.type === type);
  const sample = find("SwDSample");
  find("CLIPTextEncode").connect(0, sample, sample.inputs.findIndex((i) => i.name === "negative"));
  sample.widgets.find((w) => w.name === "cfg").value = cfg;
}"""
SAID = """() => app.graph.nodes.find((n) => n.type === "SwDSample")
  .widgets.filter((w) => /text-preview/.test(w.name)).map((w) => String(w.value))"""

# What stood there while it ran: the newest page itself takes it down when the run ends.
SEEN = """() => {
  window.seen = [];
  app.api.addEventListener("progress_text", () =>
    requestAnimationFrame(() => window.seen.push(...(SAID)())));
}""".replace("SAID", SAID)


COMMAND = "(id) => app.extensionManager.command.execute(id)"


def capture(page) -> None:
    """Lets the page take the graph as it is for what an undo undoes."""
    page.evaluate("() => document.activeElement.blur()")
    page.evaluate(
        """() => {
          const { changeTracker } = app.extensionManager.workflow.activeWorkflow;
          (changeTracker.captureCanvasState ?? changeTracker.checkState).call(changeTracker);
        }"""
    )


def test_what_is_clicked_is_finished_whatever_was_changed_since(sheet, run, host, posted, look):
    """And a prompt of which every run makes another one."""
    page = sheet
    page.evaluate(SET, ["CLIPTextEncode", {"text": "a {fox|dog|cat|owl|bear|frog} in the snow"}])
    made = json.loads(json.dumps(run()["prompt"][2]))
    text = made[node_id(page, "CLIPTextEncode")]["inputs"]["text"]
    assert re.fullmatch("a [a-z]+ in the snow", text)
    page.wait_for_function(f"() => app.graph.nodes.some((n) => {CELLS}(n)?.sheet)")
    later = {"CLIPTextEncode": {"text": "a penguin on a beach"}, "SwDDrafts": {"count": 4},
             "EmptySD3LatentImage": {"width": 192}}  # fmt: skip
    for node, values in later.items():
        page.evaluate(SET, [node, values])
    page.locator(BUTTONS).nth(6).click()
    page.evaluate(SET, ["SwDDrafts", {"seed": 99}])
    known = set(host.get("/history"))
    page.keyboard.press("Control+Enter")
    while not (new := [e for k, e in host.get("/history").items() if k not in known]):
        page.wait_for_timeout(300)
    [entry] = new
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 1
    upstream = {node_id(page, k) for k in ("CLIPTextEncode", "SwDDrafts", "EmptySD3LatentImage")}
    assert upstream <= cached(entry), "nothing of the sheet runs again"
    asked = posted[-1]["prompt"]
    assert all(asked[k]["inputs"] == made[k]["inputs"] for k in upstream)
    assert asked[node_id(page, "SwDDrafts")]["inputs"]["seed"] != 99
    later["SwDDrafts"]["seed"] = 99
    for node, values in later.items():
        for name, value in values.items():
            assert page.evaluate(WIDGET, [node, name]) == value, "what was typed stays"
    assert marked(page) == ["Draft 7"]
    look("finished")


def test_run_after_a_change_draws_the_sheet_anew_and_drops_old_clicks(sheet, run, host, look):
    """With a word, not in an error; and they are there again where the change is taken back."""
    page = sheet
    saver = node_id(page, "SaveImage")
    first = page.evaluate(WIDGET, ["CLIPTextEncode", "text"])
    for number in (2, 5):
        page.get_by_title(f"Draft {number}", exact=True).click()
        page.wait_for_timeout(700)  # two at once are a double click
    page.keyboard.press("Control+Enter")
    said = "([at, text]) => document.querySelector(at).textContent === text"
    page.wait_for_function(said, arg=[STATUS, "Last queued: 2, 5"])
    for text in ("a penguin on a beach", "an owl on a beach"):  # the word stays
        page.evaluate(SET, ["CLIPTextEncode", {"text": text}])
        assert saver not in run()["outputs"], "nothing of the new sheet is picked"
        page.wait_for_timeout(1500)  # for the word that all is done
        page.wait_for_function(said, arg=[STATUS, "New drafts; picked before: 2,5"])
    status = page.locator(STATUS)
    assert marked(page) == [] and page.evaluate(PICK) == ""
    look("new")
    page.get_by_title("Draft 3", exact=True).click()
    assert numbers(page) == "3" and status.inner_text().startswith("New drafts")
    assert len(run()["outputs"][saver]["images"]) == 1
    page.evaluate(SET, ["CLIPTextEncode", {"text": first}])
    run()
    page.wait_for_function(f"() => ({PICK})().startsWith('2,5 @')")
    assert marked(page) == ["Draft 2", "Draft 5"]
    assert len(run()["outputs"][saver]["images"]) == 2
    assert not [f for f in page.faults if "swd" in f.lower()]


def test_queued_is_said_when_it_is(sheet, host):
    """Not when another run ends while the page still sends what was clicked."""
    page = sheet
    page.get_by_title("Draft 2", exact=True).click()
    waiting = []
    page.route("**/prompt", lambda route: waiting.append(route))
    page.keyboard.press("Control+Enter")
    while not waiting:
        page.wait_for_timeout(100)
    before = page.locator(STATUS).inner_text()
    page.evaluate(
        """() => app.api.dispatchEvent(
          new CustomEvent("status", { detail: { exec_info: { queue_remaining: 0 } } }))"""
    )
    assert page.locator(STATUS).inner_text() == before and "ueued" not in before
    page.unroute("**/prompt")  # which lets go of those that wait
    page.wait_for_function(
        "(at) => document.querySelector(at).textContent === 'Last queued: 2'", arg=STATUS
    )


def test_a_run_that_ends_before_the_page_hears_of_it_is_not_said_to_wait(sheet, host):
    """As on a busy machine, where what is finished was finished before."""
    page = sheet

    def late(route):
        reply = route.fetch()
        while any(host.get("/queue").values()):
            page.wait_for_timeout(100)
        page.wait_for_timeout(500)  # for the host's word that all is done
        route.fulfill(response=reply)

    page.get_by_title("Draft 3", exact=True).click()
    page.route("**/prompt", late)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "(at) => document.querySelector(at).textContent === 'Last queued: 3'", arg=STATUS
    )
    page.unroute("**/prompt")


def test_a_key_on_a_sheet_never_deletes_its_node(sheet):
    page = sheet
    page.evaluate(
        "() => app.canvas.selectItems(app.graph.nodes.filter((n) => n.type === 'SwDDrafts'))"
    )
    page.locator(BUTTONS).nth(2).focus()
    for key in ("Delete", "Backspace"):
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert page.evaluate("() => app.graph.nodes.some((n) => n.type === 'SwDDrafts')")


def test_undo_and_another_tab_leave_one_picture_and_what_can_be_done_again(sheet, look):
    """The page draws the graph and the pictures it knows before it has asked for the sheet."""
    page = sheet
    height = page.evaluate(HEIGHT)
    for number in (2, 4):
        page.locator(BUTTONS).nth(number).click()
        page.wait_for_timeout(500)
    capture(page)
    page.evaluate(COMMAND, "Comfy.Undo")
    page.wait_for_function(f"() => !({PICK})().startsWith('3,5 @') && ({SHOWN})() === 1")
    page.wait_for_timeout(1500)  # for what the page draws
    look("undone")
    assert page.evaluate(HEIGHT) == height and page.evaluate(PICTURES) == 1
    page.evaluate(COMMAND, "Comfy.Redo")
    page.wait_for_function(f"() => ({PICK})().startsWith('3,5 @') && ({SHOWN})() === 1")
    page.wait_for_timeout(1500)
    assert page.evaluate(HEIGHT) == height and page.evaluate(PICTURES) == 1
    assert marked(page) == ["Draft 3", "Draft 5"]
    page.evaluate(COMMAND, "Comfy.NewBlankWorkflow")
    page.wait_for_function("() => app.graph.nodes.length === 0")
    page.evaluate(COMMAND, "Workspace.PreviousOpenedWorkflow")
    page.wait_for_function(f"() => ({SHOWN})() === 1")
    page.wait_for_timeout(1500)
    look("back")
    assert page.evaluate(HEIGHT) == height and page.evaluate(PICTURES) == 1
    assert marked(page) == ["Draft 3", "Draft 5"]


@pytest.mark.parametrize("history", [{"status": 500}, {"json": {}}], ids=["unread", "cleared"])
def test_a_sheet_outlives_an_undo_where_the_host_tells_nothing_of_its_runs(sheet, history):
    page = sheet
    page.locator(BUTTONS).nth(2).click()
    page.wait_for_function(f"() => ({PICK})().startsWith('3 @')")
    capture(page)
    page.route("**/history?*", lambda route: route.fulfill(**history))
    with page.expect_response("**/history?*"):
        page.evaluate(COMMAND, "Comfy.Undo")
    page.wait_for_function(f"() => !({PICK})() && ({SHOWN})() === 1")
    page.unroute("**/history?*")
    assert page.locator(BUTTONS).count() == 16 and page.evaluate(PICTURES) == 1


def test_a_graph_that_was_left_meanwhile_shows_no_sheet(sheet):
    """The host's answer for it may come when another graph is open."""
    page = sheet
    waiting = []
    page.route("**/history?*", lambda route: waiting.append(route))
    page.evaluate("(graph) => app.loadGraphData(graph)", GRAPH)
    page.wait_for_function("() => document.querySelectorAll('.swd-sheet').length === 0")
    while not waiting:
        page.wait_for_timeout(100)
    page.evaluate("(graph) => app.loadGraphData(graph)", ANOTHER)
    page.wait_for_timeout(500)
    page.unroute("**/history?*")  # which lets go of those that wait
    page.wait_for_timeout(1500)
    assert page.evaluate(SHOWN) == 0, "the one open was never run"


def test_a_warning_goes_when_it_no_longer_holds(page, run):
    page.keyboard.press("Escape")
    page.evaluate("(graph) => app.loadGraphData(graph)", small_graph("swd_quickstart_scenes"))
    page.evaluate(GUIDED, 2)
    page.evaluate(SEEN)
    run()
    page.wait_for_function("() => window.seen.some((text) => text.includes('twice as much'))")
    page.evaluate(GUIDED, 1)
    run()
    page.wait_for_function(f"() => ({SAID})().length === 0")
    assert page.evaluate("() => app.graph.nodes.some((n) => n.type === 'SwDSample')")
