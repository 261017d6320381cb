"""What an artist watches: previews, one progress bar, and stopping at any scale."""

import json
import struct
import threading
import uuid
from pathlib import Path

import pytest
import websocket
from graphs import find, to_prompt

ROOT = Path(__file__).resolve().parents[2]
PREVIEW = 1


class Listener:
    """Collects a prompt's messages over the real websocket."""

    def __init__(self, server):
        self.client = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/ws?clientId={self.client}", timeout=120
        )
        self.progress, self.previews, self.ended = [], 0, None
        self.on_progress = lambda value: None
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        while self.ended is None:
            data = self.socket.recv()
            if isinstance(data, bytes):
                self.previews += struct.unpack(">I", data[:4])[0] in (PREVIEW, 4)
                continue
            message = json.loads(data)
            if message["type"] == "progress":
                self.progress.append((message["data"]["value"], message["data"]["max"]))
                self.on_progress(message["data"]["value"])
            if message["type"] in ("execution_success", "execution_interrupted", "execution_error"):
                self.ended = message["type"]

    def wait(self) -> None:
        self.thread.join(120)
        self.socket.close()


@pytest.fixture
def prompt(server, request):
    name = getattr(request, "param", "swd_quickstart_emoji")
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(graph, server.get("/object_info"))


def new_seed(prompt: dict, seed: int) -> None:
    for node in prompt.values():
        for name in ("seed", "noise_seed"):
            if name in node["inputs"]:
                node["inputs"][name] = seed


@pytest.mark.parametrize(
    "prompt", ["swd_quickstart_emoji", "swd_custom_sampling_emoji"], indirect=True
)
def test_one_progress_bar_over_the_whole_run(server, prompt):
    new_seed(prompt, 1001)
    listener = Listener(server)
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    values = [value for value, _ in listener.progress]  # the host drops some where they come quickly
    assert values == sorted(values) and values[-1] == 4 and len(values) > 1
    assert {most for _, most in listener.progress} == {4}


def test_live_previews_one_per_scale(preview_server):
    graph = json.loads((ROOT / "workflows" / "swd_quickstart_emoji.json").read_text(encoding="utf-8"))
    prompt = to_prompt(graph, preview_server.get("/object_info"))
    listener = Listener(preview_server)
    preview_server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_success"
    assert listener.previews >= 4


@pytest.mark.parametrize("step", [1, 2, 3])
def test_interrupt_stops_within_a_step_and_leaves_the_host_whole(server, prompt, step):
    find(prompt, "EmptySD3LatentImage").update(width=512, height=512, batch_size=8)
    new_seed(prompt, 2000 + step)
    listener = Listener(server)
    listener.on_progress = lambda value: value == step and server.post("/interrupt", {})
    server.post("/prompt", {"prompt": prompt, "client_id": listener.client})
    listener.wait()
    assert listener.ended == "execution_interrupted"
    assert max(value for value, _ in listener.progress) <= step + 1
    find(prompt, "EmptySD3LatentImage").update(width=256, height=256, batch_size=1)
    assert server.run(prompt)["status"]["status_str"] == "success"
