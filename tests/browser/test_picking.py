"""Picking by keys, looking closely and finishing by one click, as an artist does them."""

import uuid

import pytest
from sheets import (
    BUTTONS,
    GO,
    PICK,
    SEED,
    SET,
    STATUS,
    cached,
    marked,
    node_id,
    numbers,
    settled,
    small_graph,
)

FOCUS = "() => document.activeElement.title"
# A picture that has nothing to do with the drafts.
ASIDE = """() => {
  const [empty, shown] = ["EmptyImage", "PreviewImage"].map((type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  });
  empty.pos = [0, 1200];
  shown.pos = [400, 1200];
  empty.connect(0, shown, 0);
  return String(shown.id);
}"""
# How large a pane's picture is drawn on the screen, and how large it really is.
SHOWN = """async (k) => {
  const picture = document.querySelectorAll(".swd-pane > div")[k];
  const image = new Image();
  image.src = picture.style.backgroundImage.slice(5, -2);
  await image.decode();
  const zoomed = picture.getBoundingClientRect().width / picture.offsetWidth;
  const [width] = picture.style.backgroundSize.split("px");
  return { width: width * zoomed, natural: image.naturalWidth, address: image.src };
}"""
COLUMNS = (
    "() => getComputedStyle(document.querySelector('.swd-grid'))"
    ".gridTemplateColumns.split(' ').length"
)
# Of the frames that took over 50 ms, the longest that a script of this pack ran in one.
WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const script of list.getEntries().flatMap((frame) => frame.scripts)) {
      if (/swd_/.test(script.sourceURL)) window.longest = Math.max(window.longest, script.duration);
    }
  }).observe({ type: "long-animation-frame" });
}"""
SCALE = "() => app.canvas.ds.scale"


@pytest.fixture
def ended(page, host):
    """Waits until the host has done all that was posted, and gives the last history entry."""

    def wait() -> dict:
        settled(page, host)
        return list(host.get("/history").values())[-1]

    return wait


def pick(page, *drafts: int) -> None:
    for number in drafts:
        page.locator(f"{BUTTONS}:visible[title='Draft {number}']").click()
        page.wait_for_timeout(700)  # two at once are a double click


def said(page, text: str) -> None:
    page.wait_for_function(
        "([where, text]) => document.querySelector(where).textContent === text", arg=[STATUS, text]
    )


def test_one_click_finishes_what_is_picked_and_runs_nothing_else(sheet, posted, ended, look):
    page = sheet
    aside = page.evaluate(ASIDE)
    assert page.locator(GO).is_disabled()
    pick(page, 2, 5)
    assert page.locator(GO).inner_text() == "Finish 2 picked"
    page.locator(GO).click()
    said(page, "Last queued: 2, 5")
    assert page.locator(STATUS).evaluate("(e) => e.scrollWidth <= e.clientWidth"), "all is seen"
    entry = ended()
    assert len(posted) == 1, "one request"
    saver = node_id(page, "SaveImage")
    assert saver in posted[0]["partial_execution_targets"]
    assert aside not in posted[0]["partial_execution_targets"]
    assert len(entry["outputs"][saver]["images"]) == 2 and aside not in entry["outputs"]
    upstream = {node_id(page, k) for k in ("SwDSceneStudent", "CLIPTextEncode", "SwDDrafts")}
    assert upstream <= cached(entry), "nothing upstream runs again"
    assert numbers(page) == "2,5"
    look("finished")
    # A double click: just that one, and the picks stay.
    page.get_by_title("Draft 7", exact=True).dblclick()
    said(page, "Last queued: 7")
    entry = ended()
    assert len(posted) == 2, "one request more"
    asked = posted[1]["prompt"][node_id(page, "SwDFinishDrafts")]["inputs"]["pick"]
    assert asked.partition(" @")[0] == "7" and asked.partition("@")[2]
    assert len(entry["outputs"][saver]["images"]) == 1
    page.wait_for_function(f"() => ({PICK})().startsWith('2,5')")
    assert marked(page) == ["Draft 2", "Draft 5"]
    # Where nothing would come of it, nothing is asked for.
    page.evaluate(
        "() => app.graph.nodes.filter((n) => /SaveImage|PreviewImage/.test(n.type))"
        ".forEach((n) => (n.mode = 2))"
    )
    page.locator(GO).click()
    said(page, "Nothing behind Finish SwD Drafts saves or shows a picture")
    assert len(posted) == 2 and numbers(page) == "2,5"
    # What the host refuses isn't said to be queued; the host's page says why.
    page.evaluate(
        """() => {
          for (const node of app.graph.nodes) node.mode = 0;
          app.graph.nodes.find((n) => n.type === "SwDFinishDrafts").widgets
            .find((w) => w.name === "batch").value = 0;
        }"""
    )
    page.locator(GO).click()
    said(page, "Not queued yet")


@pytest.fixture
def many(sheet, run):
    """A sheet of 64, and what keeps the longest that a script of the sheet's took of a frame."""
    page = sheet
    page.evaluate(
        "() => (app.graph.nodes.find((n) => n.type === 'SwDDrafts').widgets"
        ".find((w) => w.name === 'count').value = 64)"
    )
    page.evaluate(WATCH)
    run()
    page.wait_for_function(f"() => document.querySelectorAll('{BUTTONS}').length === 64")
    return page


def test_keys_and_looking_closely_on_a_sheet_of_64(many, posted, ended, look, record_property):
    page = many
    assert page.locator(f'{BUTTONS}[tabindex="0"]').count() == 1, "one stop for Tab"
    group = page.get_by_role("group", name="64 drafts")
    assert group.get_by_role("button", pressed=False).count() == 64
    seed = page.evaluate(SEED)[0]
    assert group.get_by_role("button", name=f"Draft 3 · seed {seed} · ").count() == 1

    page.get_by_title("Draft 1", exact=True).focus()
    for key in ("ArrowLeft", "ArrowUp"):  # no way there
        page.keyboard.press(key)
    assert page.evaluate(FOCUS) == "Draft 1"
    columns = int(page.evaluate(COLUMNS))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    second = columns + 2
    assert page.evaluate(FOCUS) == f"Draft {second}"
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.press(" ")
    assert numbers(page) == f"{second},64" and marked(page) == [f"Draft {second}", "Draft 64"]
    look("keys")
    page.keyboard.press("a")
    assert numbers(page) == "all" and len(marked(page)) == 64
    page.keyboard.press("x")
    assert page.evaluate(PICK) == "" and marked(page) == []
    page.keyboard.press("Control+Enter")
    said(page, "Nothing is picked")
    assert posted == []

    # Without the focus the wheel is the canvas's; with it, the sheet's.
    page.evaluate("() => document.activeElement.blur()")
    page.get_by_title("Draft 6", exact=True).hover()
    before = page.evaluate(SCALE)
    page.mouse.wheel(0, -120)
    page.wait_for_function(f"(s) => ({SCALE})() > s", arg=before)
    assert page.locator(".swd-pane").count() == 0
    page.get_by_title("Draft 1", exact=True).focus()
    page.get_by_title("Draft 6", exact=True).hover()
    before = page.evaluate(SCALE)
    page.mouse.wheel(0, -120)
    page.wait_for_selector(".swd-pane", state="visible")
    assert page.evaluate(SCALE) == before
    text = page.locator(".swd-pane p").inner_text()
    assert text.startswith(f"Draft 6 · seed {seed} · ") and "% of a full run" in text, text
    sixth = page.evaluate(SHOWN, 0)
    assert sixth["width"] > 2 * page.locator(".swd-page").bounding_box()["width"] / columns
    look("wheel")
    page.keyboard.press("ArrowRight")
    assert page.locator(".swd-pane p").inner_text().startswith("Draft 7 ")
    assert page.evaluate(SHOWN, 0)["address"] != sixth["address"]
    page.keyboard.press(" ")
    assert numbers(page) == "7" and page.locator(".swd-pane.swd-marked").count() == 1
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        f"(w) => ({SHOWN})(0).then((s) => s.width > 1.5 * w)", arg=sixth["width"]
    )
    look("wheel-closer")
    page.mouse.wheel(0, 2000)
    page.wait_for_selector(".swd-closer", state="hidden")
    assert page.evaluate(FOCUS) == "Draft 7"
    page.keyboard.press("Home")
    page.keyboard.press("z")
    assert page.locator(".swd-pane p").inner_text().startswith("Draft 1 ")
    page.keyboard.press("c")
    texts = page.locator(".swd-pane p").all_inner_texts()
    assert [t[:8] for t in texts] == ["Draft 7 ", "Draft 1 "], "what is picked beside this one"
    for k, text in enumerate(texts):
        shown = page.evaluate(SHOWN, k)
        assert abs(shown["width"] - shown["natural"]) < 1 and text.endswith(" 100 %")
    look("compare")
    page.keyboard.press("ArrowRight")
    texts = page.locator(".swd-pane p").all_inner_texts()
    assert [t[:8] for t in texts] == ["Draft 7 ", "Draft 2 "]
    page.keyboard.press("Escape")
    page.wait_for_selector(".swd-closer", state="hidden")
    assert page.evaluate(FOCUS) == "Draft 2" and numbers(page) == "7"

    page.keyboard.press("Control+Enter")
    said(page, "Last queued: 7")
    entry = ended()
    assert len(posted) == 1 and posted[0]["partial_execution_targets"]
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 1
    assert numbers(page) == "7", "Ctrl+Enter presses no draft"
    assert not [f for f in page.faults if "swd" in f.lower()]
    record_property("longest_script_ms", page.evaluate("() => window.longest"))


# Puts a node into a subgraph, and gives the number of the node that stands for it.
INTO = """(type) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  return String(app.graph.convertToSubgraph(new Set([node])).node.id);
}"""
ENTER = """(id) => {
  const { subgraph } = app.graph.getNodeById(id);
  app.canvas.setGraph(subgraph);
  const [node] = subgraph.nodes;
  app.canvas.ds.scale = 0.75;
  app.canvas.ds.offset = [200 - node.pos[0], 200 - node.pos[1]];
}"""


def test_in_and_out_of_subgraphs(sheet, posted, ended, run, look):
    """The finishing node in one, the sheet outside it; then the sheet in another, seen on both."""
    page = sheet
    saver = node_id(page, "SaveImage")
    page.evaluate(INTO, "SwDFinishDrafts")
    pick(page, 5)
    page.locator(GO).click()
    said(page, "Last queued: 5")
    assert len(ended()["outputs"][saver]["images"]) == 1
    holder = page.evaluate(INTO, "SwDDrafts")
    run()
    seen = page.locator(f"{BUTTONS}:visible")
    seen.first.wait_for()
    assert seen.count() == 16 and marked(page) == ["Draft 5"], "on the subgraph's node"
    pick(page, 8)
    look("outside")
    page.evaluate(ENTER, holder)
    seen.first.wait_for()
    assert seen.count() == 16 and marked(page) == ["Draft 5", "Draft 8"], "and inside"
    pick(page, 5, 3)
    look("inside")
    page.locator(f"{GO}:visible").click()
    said(page, "Last queued: 8, 3")
    assert len(posted) == 3 and saver in posted[2]["partial_execution_targets"]
    assert len(ended()["outputs"][saver]["images"]) == 2
    assert not [f for f in page.faults if "swd" in f.lower()]


# From here on the sheet's pictures as they load: whether it is a frame, and whether clicks count.
FRAMES = """() => {
  window.frames = [];
  document.addEventListener("load", ({ target }) => {
    if (!target.closest?.(".swd-page")) return;
    const clickable = document.querySelector(".swd-grid").checkVisibility();
    const others = [...document.querySelectorAll("[data-node-id] img")]
      .filter((i) => !i.closest(".swd-sheet") && i.checkVisibility()).length;
    window.frames.push([target.src.startsWith("blob:"), clickable, target.naturalWidth, others]);
  }, true);
}"""


def test_drafts_appear_on_the_sheet_as_they_are_made(page, host, run, look):
    """On the first run, where there is no sheet yet; and when stopped, the sheet before is back."""
    graph = {**small_graph(), "id": str(uuid.uuid4())}  # never run before
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.evaluate(SET, ["SwDDrafts", {"seed": 52_000 + len(host.get("/history")), "batch": 2}])
    page.evaluate(FRAMES)
    run()
    page.wait_for_function("() => window.frames.at(-1)?.[0] === false")
    frames = page.evaluate("() => window.frames")
    made, [last] = frames[:-1], frames[-1:]
    assert made and all(is_frame and not clickable for is_frame, clickable, *_ in made)
    assert last[:2] == [False, True] and {width for _, _, width, _ in frames} == {last[2]}
    assert {others for *_, others in frames} == {0}, "nowhere else in the node"
    before = page.evaluate("() => document.querySelector('.swd-page img').src")
    page.evaluate(SET, ["SwDDrafts", {"seed": 7, "count": 64, "batch": 1}])
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_selector(BUTTONS, state="hidden")
    look("making")
    host.post("/interrupt", {})
    page.wait_for_selector(BUTTONS, state="visible")
    assert page.evaluate("() => document.querySelector('.swd-page img').src") == before
    assert page.locator(BUTTONS).count() == 16
    assert not [f for f in page.faults if "swd" in f.lower()]


def test_rows_by_prompt(page, run, posted, ended, look):
    """Three prompts, four seeds: arrows go by what is seen, picks by number."""
    graph = {**small_graph(), "id": str(uuid.uuid4())}
    [text] = [n for n in graph["nodes"] if n["type"] == "CLIPTextEncode"]
    text.update(type="SwDPrompts", widgets_values=["a fox in the snow\na happy dog\na green frog"])
    text["properties"] = {}
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.evaluate(SET, ["SwDDrafts", {"count": 4}])
    run()
    page.wait_for_selector(BUTTONS, state="visible")
    assert page.locator(BUTTONS).count() == 12
    boxes = [page.get_by_title(f"Draft {k}", exact=True).bounding_box() for k in (1, 4, 5, 9)]
    first, fourth, fifth, ninth = boxes
    assert fourth["y"] == first["y"] < fifth["y"] < ninth["y"]
    assert fifth["x"] == first["x"] == ninth["x"] < fourth["x"]
    page.get_by_title("Draft 2", exact=True).focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate(FOCUS) == "Draft 6"
    page.keyboard.press(" ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert numbers(page) == "6,10"
    group = page.get_by_role("group", name="12 drafts")
    assert group.get_by_role("button", name="Draft 10 · a green frog · ").count() == 1
    page.keyboard.press("Control+Enter")
    said(page, "Last queued: 6, 10")
    entry = ended()
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 2
    look("prompts")
    assert not [f for f in page.faults if "swd" in f.lower()]
