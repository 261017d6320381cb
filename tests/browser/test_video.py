"""Drafts of a video on the sheet, where they play."""

import io
import uuid

from PIL import Image
from sheets import BUTTONS, SHEET, entry_beyond, marked, node_id, numbers, small_graph

FRAMES = 5  # of a draft after two of the schedule's steps
# The graph of drafts, of a small video model.
VIDEO = """() => {
  const all = (type) => app.graph.nodes.filter((n) => n.type === type);
  const make = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, y];
    return node;
  };
  const join = (from, slot, to, name) =>
    from.connect(slot, to, to.inputs.findIndex((i) => i.name === name));
  const set = (node, name, value) => (node.widgets.find((w) => w.name === name).value = value);
  const [x, y] = all("SaveImage")[0].pos;
  const small = make("SmallVideo", -300, -300), schedule = make("SwDScaleSchedule", 0, -300);
  const tray = make("SwDTray", x, y + 330);
  join(small, 0, schedule, "model");
  set(schedule, "preset", "wan21-1.3b-4");
  for (const node of [...all("SwDDrafts"), ...all("SwDFinishDrafts")]) {
    join(small, 0, node, "model");
    join(small, 1, node, "positive");
  }
  const [drafts] = all("SwDDrafts");
  join(small, 3, drafts, "latent_image");
  join(schedule, 0, drafts, "schedule");
  set(drafts, "count", 6);
  set(drafts, "stop_after", 2);
  for (const node of [drafts, tray, ...all("VAEDecode")]) join(small, 2, node, "vae");
  for (const node of [...all("SwDScaleStrip"), ...all("PreviewImage")]) node.mode = 2;
}"""


def brightness(page, boxes: list[dict]) -> list[int]:
    """Of the middle of the upper half of each box, from 0 to 255, all at one moment."""
    left, top = (min(b[side] for b in boxes) for side in "xy")
    spots = [(b["x"] + b["width"] / 2 - left, b["y"] + b["height"] / 3 - top) for b in boxes]
    width, height = (max(spot[i] for spot in spots) + 9 for i in (0, 1))
    clip = {"x": left, "y": top, "width": width, "height": height}
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L")
    return [shot.getpixel((round(x), round(y))) for x, y in spots]


def played(page, boxes: list[dict]) -> list[list[int]]:
    """What is seen until most of the frames were."""
    seen: list[list[int]] = []
    while len({round(b[0] / 255 * (FRAMES - 1)) for b in seen}) < FRAMES - 1:
        assert len(seen) < 60, f"it stands still: {seen}"
        seen.append(brightness(page, boxes))
        page.wait_for_timeout(150)
    return seen


def test_drafts_of_a_video_play_in_step_and_finish(page, host, run, look):
    host.post("/swd/tray/remove", {"names": host.get("/swd/tray")})
    page.evaluate("(graph) => app.loadGraphData(graph)", {**small_graph(), "id": str(uuid.uuid4())})
    page.evaluate(VIDEO)
    drafts = node_id(page, "SwDDrafts")
    output = run()["outputs"][drafts]
    [file] = output["images"]
    assert file["filename"].endswith(".webp") and output["animated"] == [True]
    page.wait_for_selector(BUTTONS, state="visible")
    assert page.locator(BUTTONS).count() == 6
    boxes = [button.bounding_box() for button in page.locator(BUTTONS).all()]
    for seen in played(page, boxes):
        assert max(seen) - min(seen) < 12, "all cells at one moment"
    look("plays")

    page.get_by_title("Draft 2", exact=True).click()
    page.get_by_title("Draft 5", exact=True).focus()
    page.keyboard.press("z")
    page.wait_for_selector(".swd-pane", state="visible")
    played(page, [page.locator(".swd-pane > div").bounding_box()])
    page.keyboard.press("z")
    page.keyboard.press("c")
    panes = [pane.bounding_box() for pane in page.locator(".swd-pane > div").all()]
    assert len(panes) == 2
    moments = [abs(one - other) < 12 for one, other in played(page, panes)]
    assert moments.count(True) > len(moments) / 2, "both at the same frame, but while one turns"
    look("compares")
    page.keyboard.press("Escape")
    assert numbers(page) == "2" and marked(page) == ["Draft 2"]

    page.get_by_title("Draft 3", exact=True).focus()
    page.keyboard.press("k")
    page.wait_for_function(
        f"() => {SHEET}(app.graph.nodes.find((n) => n.type === 'SwDTray'))"
        "?.querySelector('img').naturalWidth > 0"
    )
    look("tray")
    known = set(host.get("/history"))
    page.get_by_title("Draft 2", exact=True).first.focus()
    page.keyboard.press("Control+Enter")
    entry = entry_beyond(known, page, host)
    page.wait_for_function(
        f"() => {SHEET}(app.graph.nodes.find((n) => n.type === 'SwDDrafts'))"
        ".querySelector('[role=status]').textContent === 'Last queued: 2'"
    )
    assert len(entry["outputs"][node_id(page, "SaveImage")]["images"]) == 9, "one whole video"
    assert not [f for f in page.faults if "swd" in f.lower()]
