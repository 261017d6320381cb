"""Drafts put aside: one by one, over runs and a restart, finished with their own prompts."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from graphs import find
from test_drafts_server import graph_of, key_of, saved
from test_live import Listener
from test_prompts import prompts_graph

TRAY = "/swd/tray"


def put(server, sheet: str, pick: str) -> list[str]:
    """Asks as the page does; what is refused is an error with the words of the host."""
    request = urllib.request.Request(
        server.url + TRAY, json.dumps({"sheet": sheet, "pick": pick}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def sheet_of(entry: dict, prompt: dict, node: str) -> dict:
    assert entry["status"]["status_str"] == "success", entry
    [cells] = entry["outputs"][key_of(prompt, node)]["swd_sheet"]
    return cells


def tray_graph(server) -> dict:
    """The graph of drafts with the tray in place of the drafting node and of the prompts."""
    prompt = prompts_graph(server, "unused")
    texts, drafts = key_of(prompt, "SwDPrompts"), key_of(prompt, "SwDDrafts")
    student = key_of(prompt, "SwDSceneStudent")
    del prompt[texts]
    prompt[drafts] = {
        "class_type": "SwDTray", "inputs": {"vae": [student, 2], "clip": [student, 1]}
    }  # fmt: skip
    find(prompt, "SwDFinishDrafts")["positive"] = [drafts, 2]
    return prompt


def said_by_tray(server, shown: dict) -> str:
    """What the page is told of the node in a run that succeeds."""
    listener = Listener(server)
    server.post("/prompt", {"prompt": shown, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    return listener.texts[key_of(shown, "SwDTray")]


def error_of(server, shown: dict) -> str:
    """What the page is told of a run that fails."""
    listener = Listener(server)
    server.post("/prompt", {"prompt": shown, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_error"
    return listener.error


def files(base: Path) -> list[str]:
    return sorted(p.name for p in (base / "output" / "drafts" / "tray").glob("*"))


def test_from_two_runs_over_a_restart_to_finished_pictures(start_server):
    first = start_server()
    prompt = prompts_graph(first, "a fox in the snow\na happy dog")
    cells = sheet_of(first.run(prompt), prompt, "SwDDrafts")
    assert len(put(first, cells["sheet"], "2,5")) == 2
    find(prompt, "SwDFinishDrafts")["pick"] = "2,5"
    apple, dog = saved(first, prompt)
    find(prompt, "SwDFinishDrafts")["pick"] = ""
    find(prompt, "SwDDrafts")["seed"] = 6200
    find(prompt, "SwDPrompts")["prompts"] = "a green frog"
    cells = sheet_of(first.run(prompt), prompt, "SwDDrafts")
    names = put(first, cells["sheet"], "3")
    assert put(first, cells["sheet"], "3") == names, "twice is once"
    find(prompt, "SwDFinishDrafts")["pick"] = "3"
    [frog] = saved(first, prompt)
    assert len(first.get(TRAY)) == len(files(first.base)) == 3
    first.stop()

    (first.base / "custom_nodes" / "ComfyUI-SwD").unlink()
    second = type(first)(first.base)
    try:
        prompt = tray_graph(second)
        cells = sheet_of(second.run(prompt), prompt, "SwDTray")
        texts = ["a fox in the snow", "a happy dog", "a green frog"]
        assert [label.partition(" · ")[0] for label in cells["labels"]] == texts
        assert cells["kept"] == second.get(TRAY) and cells["count"] == 3
        find(prompt, "SwDFinishDrafts")["pick"] = "3,1,2"
        again = saved(second, prompt)
        for picture, known in zip(again, (frog, apple, dog), strict=True):
            assert np.abs(picture - known).max() <= 1
        # Taken off one by one; what is no name of the tray takes nothing away.
        odd = ["../tray/" + cells["kept"][1], "..", "", cells["kept"][1] + ".drafts.safetensors"]
        left = second.post(f"{TRAY}/remove", {"names": [cells["kept"][0], *odd]})
        assert left == cells["kept"][1:] and len(files(second.base)) == 2
        find(prompt, "SwDFinishDrafts")["pick"] = ""
        assert sheet_of(second.run(prompt), prompt, "SwDTray")["count"] == 2, "seen at once"
        second.post(f"{TRAY}/remove", {"names": left})
        entry = second.run(prompt)
        assert entry["status"]["status_str"] == "success" and files(second.base) == []
        assert entry["outputs"][key_of(prompt, "SwDTray")]["swd_sheet"] == []
    finally:
        second.stop()


@pytest.fixture
def empty_tray(server):
    server.post(f"{TRAY}/remove", {"names": server.get(TRAY)})


@pytest.mark.usefixtures("empty_tray")
def test_drafts_of_another_kind_wait(server):
    """Other steps or another size can't lie on one sheet; the newest draft says which do."""
    prompt = prompts_graph(server, "a fox in the snow")
    for stop_after in (1, 2):
        find(prompt, "SwDDrafts").update(seed=6300, stop_after=stop_after)
        cells = sheet_of(server.run(prompt), prompt, "SwDDrafts")
        put(server, cells["sheet"], "1-2")
    shown = tray_graph(server)
    cells = sheet_of(server.run(shown), shown, "SwDTray")
    assert cells["count"] == 2 and len(server.get(TRAY)) == 4
    server.post(f"{TRAY}/remove", {"names": cells["kept"]})
    assert sheet_of(server.run(shown), shown, "SwDTray")["count"] == 2, "those that waited"


@pytest.mark.usefixtures("empty_tray")
def test_those_of_another_kind_are_reached_without_removing_any(server):
    prompt, shown = prompts_graph(server, "a fox in the snow"), tray_graph(server)
    for stop_after, pick in ((1, "1-2"), (2, "3"), (1, "3")):
        find(prompt, "SwDDrafts").update(seed=6310, stop_after=stop_after)
        put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], pick)
    tray = find(shown, "SwDTray")
    for kind, count in ((1, 3), (2, 1), (9, 1)):
        tray["kind"] = kind
        cells = sheet_of(server.run(shown), shown, "SwDTray")
        assert (cells["count"], cells["kinds"]) == (count, 2)
    tray["kind"] = 2
    find(shown, "SwDFinishDrafts")["pick"] = "1"
    assert len(saved(server, shown)) == 1 and len(server.get(TRAY)) == 4


@pytest.mark.usefixtures("empty_tray")
def test_a_damaged_file_hides_no_other_draft(server):
    prompt, shown = prompts_graph(server, "a fox in the snow"), tray_graph(server)
    find(prompt, "SwDDrafts")["seed"] = 6320
    put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], "1-2")
    folder = server.base / "output" / "drafts" / "tray"
    for name in ("mine", "yours"):
        (folder / f"{name}.drafts.safetensors").write_bytes(b"no drafts")
    said = said_by_tray(server, shown)
    assert said.startswith("2 put aside") and ".. " not in said
    assert "mine.drafts.safetensors" in said and "yours.drafts.safetensors" in said
    server.post(f"{TRAY}/remove", {"names": server.get(TRAY)})
    assert files(server.base) == [], "it can be removed"


@pytest.mark.usefixtures("empty_tray")
def test_removing_one_of_a_file_of_several_leaves_the_others_and_it_can_be_put_back(server):
    prompt = prompts_graph(server, "a fox in the snow")
    find(prompt, "SwDDrafts")["seed"] = 6330
    prompt["97"] = {
        "class_type": "SwDSaveDrafts",
        "inputs": {"drafts": [key_of(prompt, "SwDDrafts"), 0], "filename_prefix": "drafts/tray/x"},
    }
    find(prompt, "SwDFinishDrafts")["pick"] = "1,3"
    first, third = saved(server, prompt)
    shown = tray_graph(server)
    cells = sheet_of(server.run(shown), shown, "SwDTray")
    assert cells["count"] == len(set(cells["kept"])) == 3
    # One after the other, as by a key: the page has the names of the sheet that it shows.
    for gone in cells["kept"][:2]:
        server.post(f"{TRAY}/remove", {"names": [gone]})
    find(shown, "SwDFinishDrafts")["pick"] = "all"
    [left] = saved(server, shown)
    assert np.abs(left - third).max() <= 1
    assert len(server.post(f"{TRAY}/back", {"names": [cells["kept"][0]]})) == 1
    left, back = saved(server, shown)
    assert np.abs(left - third).max() <= 1 and np.abs(back - first).max() <= 1
    assert server.post(f"{TRAY}/back", {"names": ["../x", "x#1#2", "x#a"]}) == []
    assert len(files(server.base)) == 2, "of other names nothing"


@pytest.mark.usefixtures("empty_tray")
def test_the_same_draft_kept_from_two_sheets_lies_there_once(server):
    """Of sixteen and of four of a seed, which differ in batch; other drafts of that seed don't."""
    prompt = graph_of(server)
    drafting = find(prompt, "SwDDrafts")
    drafting.update(seed=6325, count=16)
    large = sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"]
    names = put(server, large, "3,2")
    drafting["count"] = 4
    small = sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"]
    assert small != large and server.get(f"{TRAY}/{small}") == [2, 3], "seen on this sheet, too"
    assert put(server, small, "2,3,4")[:2] == names[::-1] and len(server.get(TRAY)) == 3
    find(prompt, "CLIPTextEncode")["text"] = "a green frog"
    other = sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"]
    find(prompt, "CLIPTextEncode")["text"] = "a fox in the snow"
    drafting["stop_after"] = 1
    earlier = sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"]
    for sheet in (other, earlier):
        assert server.get(f"{TRAY}/{sheet}") == []
        put(server, sheet, "3")
    assert len(server.get(TRAY)) == 5
    assert server.get(f"{TRAY}/long_ago") == [] and server.get(f"{TRAY}/{large}") == [2, 3, 4]


@pytest.mark.usefixtures("empty_tray")
def test_more_than_a_sheet_holds_is_said(server):
    prompt, shown = prompts_graph(server, "a fox in the snow"), tray_graph(server)
    find(prompt, "SwDDrafts")["seed"] = 6340
    put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], "1")
    folder = server.base / "output" / "drafts" / "tray"
    [file] = folder.glob("*")
    for k in range(299):
        (folder / f"copy_{k:03}.drafts.safetensors").write_bytes(file.read_bytes())
    said = said_by_tray(server, shown)
    assert said.startswith("256 put aside") and "44 older ones" in said and "another" not in said


@pytest.mark.usefixtures("empty_tray")
def test_where_the_tray_can_t_be_written_the_page_is_told_what_to_do(server):
    prompt = prompts_graph(server, "a fox in the snow")
    find(prompt, "SwDDrafts")["seed"] = 6350
    cells = sheet_of(server.run(prompt), prompt, "SwDDrafts")
    folder = server.base / "output" / "drafts" / "tray"
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    try:
        with pytest.raises(urllib.error.HTTPError, match="400") as error:
            put(server, cells["sheet"], "1")
        assert b"let ComfyUI write to it" in error.value.read()
    finally:
        folder.unlink()
    for path, data in (("", {}), ("", []), ("/remove", {}), ("/back", {"names": 3})):
        request = urllib.request.Request(server.url + TRAY + path, json.dumps(data).encode())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request, timeout=30)


@pytest.mark.usefixtures("empty_tray")
def test_the_node_says_what_lies_on_the_tray(server):
    """Each time: what it said before would stay in the page."""
    prompt, shown = prompts_graph(server, "a fox in the snow"), tray_graph(server)
    assert "empty" in said_by_tray(server, shown)
    for stop_after, wanted in ((1, "2 put aside"), (2, "2 put aside; 2 of another")):
        find(prompt, "SwDDrafts").update(seed=6301, stop_after=stop_after)
        put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], "1-2")
        assert said_by_tray(server, shown).startswith(wanted)


@pytest.mark.usefixtures("empty_tray")
def test_saving_some_of_a_sheet_lays_them_there_without_a_page(server):
    prompt = prompts_graph(server, "a fox in the snow\na happy dog")
    find(prompt, "SwDDrafts")["seed"] = 6400
    prompt["97"] = {
        "class_type": "SwDSaveDrafts",
        "inputs": {"drafts": [key_of(prompt, "SwDDrafts"), 0], "filename_prefix": "drafts/tray/x",
                   "pick": "2,4"},
    }  # fmt: skip
    assert server.run(prompt)["status"]["status_str"] == "success"
    shown = tray_graph(server)
    cells = sheet_of(server.run(shown), shown, "SwDTray")
    assert cells["count"] == 2 and cells["labels"][1].startswith("a happy dog")
    prompt["97"]["inputs"]["pick"] = ""
    find(prompt, "SwDDrafts")["seed"] = 6401
    assert server.run(prompt)["status"]["status_str"] == "success"
    assert len(files(server.base)) == 1, "nothing picked, nothing saved"


@pytest.mark.usefixtures("empty_tray")
def test_what_can_t_be_kept_is_said(server):
    with pytest.raises(urllib.error.HTTPError, match="404") as gone:
        put(server, "00000000", "1")
    assert b"too long ago" in gone.value.read()
    prompt = prompts_graph(server, "a fox in the snow")
    find(prompt, "SwDDrafts")["seed"] = 6500
    cells = sheet_of(server.run(prompt), prompt, "SwDDrafts")
    with pytest.raises(urllib.error.HTTPError, match="400") as wrong:
        put(server, cells["sheet"], "4")
    assert b"drafts 1 to 3" in wrong.value.read()
    assert files(server.base) == []


@pytest.mark.usefixtures("empty_tray")
def test_drafts_of_the_hosts_own_text_node_have_their_prompts_with_them(server):
    """As in the graph that comes with the pack, whose text changes from sheet to sheet."""
    prompt, expected = graph_of(server), []
    find(prompt, "SwDDrafts").update(count=3, seed=6610)
    for text, pick in (("a fox in the snow", "2"), ("a happy dog", "1")):
        find(prompt, "CLIPTextEncode")["text"] = text
        find(prompt, "SwDFinishDrafts")["pick"] = ""
        put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], pick)
        find(prompt, "SwDFinishDrafts")["pick"] = pick
        expected += saved(server, prompt)
    shown = tray_graph(server)
    find(shown, "SwDFinishDrafts")["pick"] = "all"
    for picture, known in zip(saved(server, shown), expected, strict=True):
        assert np.abs(picture - known).max() <= 1
    cells = sheet_of(server.run(shown), shown, "SwDTray")
    assert [label.partition(" · ")[0] for label in cells["labels"]] == [
        "a fox in the snow", "a happy dog"
    ]  # fmt: skip


@pytest.mark.usefixtures("empty_tray")
def test_prompts_that_are_not_known_are_asked_for(server):
    prompt = prompts_graph(server, "a fox in the snow")
    find(prompt, "SwDDrafts")["seed"] = 6600
    put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], "1")
    shown = tray_graph(server)
    del find(shown, "SwDTray")["clip"]
    find(shown, "SwDFinishDrafts")["pick"] = "1"
    assert "connect its clip" in error_of(server, shown)


@pytest.mark.usefixtures("empty_tray")
def test_a_text_that_was_emptied_is_not_the_drafts_prompt(server):
    prompt = graph_of(server)
    text, drafts = key_of(prompt, "CLIPTextEncode"), key_of(prompt, "SwDDrafts")
    prompt["96"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": [text, 0]}}
    prompt[drafts]["inputs"].update(positive=["96", 0], count=1, seed=6620)
    put(server, sheet_of(server.run(prompt), prompt, "SwDDrafts")["sheet"], "1")
    shown = tray_graph(server)
    find(shown, "SwDFinishDrafts")["pick"] = "1"
    assert "their own conditioning" in error_of(server, shown)
