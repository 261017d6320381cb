"""What an artist watches: previews, one progress bar, and stopping at any scale."""

import io
import json
import struct
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
import websocket
from graphs import find, to_prompt
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
# Percent of the pixels of scales .5 .625 .75 1 done after each; the host's own node counts steps.
SHARES = {"SwDSample": [11, 29, 55, 100], "SamplerCustomAdvanced": [1, 2, 3, 4]}


class Listener:
    """Collects a prompt's messages over the real websocket."""

    def __init__(self, server):
        self.client = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/ws?clientId={self.client}", timeout=600
        )
        self.progress, self.previews, self.texts, self.ended = [], [], {}, None
        self.on_progress = lambda value: None
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        while self.ended is None:
            data = self.socket.recv()
            if isinstance(data, bytes):
                kind, more = struct.unpack(">II", data[:8])
                if kind == PREVIEW:
                    self.previews.append(Image.open(io.BytesIO(data[8:])))
                elif kind == TEXT:
                    self.texts[data[8 : 8 + more].decode()] = data[8 + more :].decode()
                elif kind == PREVIEW_WITH_METADATA:
                    self.previews.append(Image.open(io.BytesIO(data[8 + more :])))
                continue
            message = json.loads(data)
            if message["type"] == "progress":
                self.progress.append((message["data"]["value"], message["data"]["max"]))
                self.on_progress(message["data"]["value"])
            if message["type"] in ("execution_success", "execution_interrupted", "execution_error"):
                self.error = message["data"].get("exception_message", "")
                self.ended = message["type"]

    def wait(self) -> None:
        self.thread.join(600)
        self.socket.close()


@pytest.fixture
def prompt(server, request):
    name = getattr(request, "param", "swd_quickstart_scenes")
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(graph, server.get("/object_info"))


def new_seed(prompt: dict, seed: int) -> None:
    for node in prompt.values():
        for name in ("seed", "noise_seed"):
            if name in node["inputs"]:
                node["inputs"][name] = seed


@pytest.mark.parametrize(
    "prompt", ["swd_quickstart_scenes", "swd_custom_sampling_scenes"], indirect=True
)
def test_one_progress_bar_over_the_whole_run(server, prompt):
    new_seed(prompt, 1001)
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    nodes = {node["class_type"] for node in prompt.values()}
    [shares] = [marks for name, marks in SHARES.items() if name in nodes]
    values = [
        value for value, _ in listener.progress
    ]  # the host drops some where they come quickly
    assert values == sorted(values) and values[-1] == shares[-1] and len(values) > 1
    assert set(values) <= set(shares), "weighted by the pixels of each step"
    assert {most for _, most in listener.progress} == {shares[-1]}


@pytest.mark.parametrize(
    ("width", "height", "batch"), [(256, 256, 1), (256, 128, 1), (256, 256, 3)]
)
def test_live_previews_grow_and_show_the_whole_batch(preview_server, width, height, batch):
    """One frame for each step, its long side to 512 as the step's to the target's."""
    graph = json.loads(
        (ROOT / "workflows" / "swd_quickstart_scenes.json").read_text(encoding="utf-8")
    )
    prompt = to_prompt(graph, preview_server.get("/object_info"))
    find(prompt, "EmptySD3LatentImage").update(width=width, height=height, batch_size=batch)
    new_seed(prompt, 3000 + batch)
    listener = Listener(preview_server)
    preview_server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    frames = [frame.size for frame in listener.previews]
    assert [max(size) for size in frames] == [256, 320, 384, 512]
    assert all(abs(h * width - w * height) <= 2 * max(width, height) for w, h in frames)
    if batch == 3:  # two by two, the last place black
        last = listener.previews[-1].convert("L")
        tiles = [last.crop((x, y, x + 256, y + 256)) for y in (0, 256) for x in (0, 256)]
        spreads = [tile.crop((20, 20, 236, 236)).getextrema() for tile in tiles]
        assert all(high - low > 20 for low, high in spreads[:3]) and spreads[3][1] < 20


def test_drafts_appear_on_their_sheet_as_they_are_made(preview_server):
    """Two at a time, two steps each: drawn as large as their scale, at the place of the sheet."""
    name = ROOT / "workflows" / "swd_drafts_scenes.json"
    graph = json.loads(name.read_text(encoding="utf-8"))
    prompt = to_prompt(graph, preview_server.get("/object_info"))
    find(prompt, "SwDDrafts").update(count=4, batch=2, stop_after=2, seed=3100)
    [drafts] = [key for key, node in prompt.items() if node["class_type"] == "SwDDrafts"]
    listener = Listener(preview_server)
    output = preview_server.run(prompt, listener.client)["outputs"][drafts]
    listener.wait()
    assert listener.ended == "execution_success"
    assert len(listener.previews) == 4
    values = [value for value, _ in listener.progress]
    assert set(values) <= {19, 50, 69, 100} and values == sorted(values), "256 of 656 cells, ..."
    [cells], [file] = output["swd_sheet"], output["images"]
    sheet = Image.open(preview_server.base / "temp" / file["subfolder"] / file["filename"])
    wide, high = sheet.width / cells["columns"], sheet.height / cells["rows"]

    def drawn(frame: Image.Image, k: int, share: float) -> Image.Image:
        """Draft k where it is drawn `share` as large; and nothing beside it."""
        frame = frame.convert("L").resize(sheet.size)
        x, y = (k % cells["columns"] + 0.5) * wide, k // cells["columns"] * high + (high - 44) / 2
        inner, outer = share * (wide - 8) / 2, (wide - 8) / 2
        edge = (x - outer + 4, y - 4, x - inner - 4, y + 4)
        assert share == 1 or is_empty(frame.crop(tuple(map(int, edge))))
        box = (x - inner + 2, y - inner + 2, x + inner - 2, y + inner - 2)
        return frame.crop(tuple(map(int, box)))

    def is_empty(tile: Image.Image) -> bool:
        low, high = tile.getextrema()
        return high - low < 12

    shares = [0.8, 1, 0.8, 1]  # of scales .5 and .625
    for frame, (step, share) in zip(listener.previews, enumerate(shares), strict=True):
        made = 2 if step < 2 else 4
        tiles = [drawn(frame, k, share if made - 2 <= k < made else 1) for k in range(4)]
        assert [is_empty(tile) for tile in tiles] == [False] * made + [True] * (4 - made), step
    colours = [channel.convert("RGB").split() for channel in (listener.previews[-1], sheet)]
    rough, fine = (
        np.array([[drawn(c, k, 1).resize((16, 16)) for c in three] for k in range(4)], float)
        for three in colours
    )
    # The host's rough colours are another VAE's: some mix of them is what the sheet then shows.
    seen = np.concatenate([rough, np.ones_like(rough[:, :1])], 1).swapaxes(1, 0).reshape(4, -1).T
    shown = fine.mean(1).ravel()
    left = shown - seen @ np.linalg.lstsq(seen, shown, rcond=None)[0]
    assert left.var() < 0.5 * shown.var()


def test_taesd_previews(start_server):
    """With --preview-method taesd and a decoder in vae_approx: ours has that format."""
    weights = load_file(ROOT / "swd_core" / "scenes" / "weights" / "scenes_vae.safetensors")
    prefix = "taesd_decoder."
    decoder = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    server = start_server("--preview-method", "taesd")
    approx = server.base / "models" / "vae_approx"
    approx.mkdir(parents=True, exist_ok=True)
    save_file(decoder, approx / "taesd3_decoder.safetensors")
    graph = json.loads(
        (ROOT / "workflows" / "swd_quickstart_scenes.json").read_text(encoding="utf-8")
    )
    prompt = to_prompt(graph, server.get("/object_info"))
    find(prompt, "EmptySD3LatentImage").update(batch_size=3)
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    assert [max(frame.size) for frame in listener.previews] == [256, 320, 384, 512]
    assert "could not find" not in server.log.read_text()


def test_no_previews_when_they_are_off(server, prompt):
    new_seed(prompt, 4001)
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success" and not listener.previews


def test_fp8_weights_by_the_hosts_own_option(start_server, server):
    """The picture stays what it is without, to the rounding of the weights."""
    graph = json.loads(
        (ROOT / "workflows" / "swd_quickstart_scenes.json").read_text(encoding="utf-8")
    )
    pictures = []
    for running in (server, start_server("--fp8_e4m3fn-unet")):
        prompt = to_prompt(graph, running.get("/object_info"))
        new_seed(prompt, 77)
        entry = running.run(prompt)
        assert entry["status"]["status_str"] == "success", entry
        [file] = [i["filename"] for o in entry["outputs"].values() for i in o.get("images", [])]
        with Image.open(running.base / "output" / file) as image:
            pictures.append(list(image.convert("L").resize((32, 32)).getdata()))
    difference = sum(abs(a - b) for a, b in zip(*pictures, strict=True)) / len(pictures[0])
    assert difference <= 8, difference


@pytest.mark.parametrize("step", [1, 2, 3])
def test_interrupt_stops_within_a_step_and_leaves_the_host_whole(server, prompt, step):
    find(prompt, "EmptySD3LatentImage").update(width=512, height=512, batch_size=8)
    new_seed(prompt, 2000 + step)
    listener = Listener(server)
    marks = SHARES["SwDSample"]
    listener.on_progress = lambda value: value >= marks[step - 1] and server.post("/interrupt", {})
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_interrupted"
    assert max(value for value, _ in listener.progress) <= marks[step]
    find(prompt, "EmptySD3LatentImage").update(width=256, height=256, batch_size=1)
    assert server.run(prompt)["status"]["status_str"] == "success"


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_the_node_says_what_guidance_costs(server, prompt, cfg):
    [sample] = [key for key, node in prompt.items() if node["class_type"] == "SwDSample"]
    prompt[sample]["inputs"].update(cfg=cfg, negative=prompt[sample]["inputs"]["positive"])
    new_seed(prompt, 1700 + int(cfg))
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    if cfg == 1.0:
        assert sample not in listener.texts
    else:
        assert "twice" in listener.texts[sample] and "2.5" in listener.texts[sample]


@pytest.mark.parametrize("side", [16, 128])
def test_a_picture_too_small_for_its_first_step_is_said_beside_what_else_is(server, prompt, side):
    [sample] = [key for key, node in prompt.items() if node["class_type"] == "SwDSample"]
    prompt[sample]["inputs"].update(cfg=1.5, negative=prompt[sample]["inputs"]["positive"])
    find(prompt, "EmptySD3LatentImage").update(width=side, height=2 * side, batch_size=1)
    new_seed(prompt, 1710 + side)
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    said = listener.texts[sample]
    assert "twice" in said and ("2 x 2 latent cells" in said) == (side == 16)
