"""Files whose names are not text in UTF-8, as other systems left them, and JSON's half characters.

An error that holds one can't be written to the host's log, which ends the thread that runs graphs.
"""

import json
import os
import traceback

import pytest

NAME = b"caf\xe9"  # as Latin-1 has it
SHOWN = os.fsdecode(NAME)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere names are always text")


@pytest.fixture
def folders(pack, tmp_path, monkeypatch, loras):
    """A damaged thing of that name for each of our loaders."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for name in (NAME + b".drafts.safetensors", NAME + b".safetensors"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"{}")
    (tmp_path / SHOWN).mkdir()
    (tmp_path / SHOWN / "prepared.json").write_text("{}")
    return tmp_path


LOADERS = {
    "SwDLoadDrafts": {"file": f"{SHOWN}.drafts.safetensors", "vae": object()},
    "SwDLoadPrepared": {"folder": SHOWN},
    "SwDLoraLoader": {"model": object(), "lora_name": f"{SHOWN}.safetensors", "strength": 1.0},
}


@pytest.mark.parametrize("node", LOADERS)
def test_what_is_said_of_a_damaged_file_can_be_logged(pack, folders, node):
    with pytest.raises((ValueError, OSError), match="caf") as raised:
        pack[node].execute(**LOADERS[node])
    "".join(traceback.format_exception(raised.value)).encode("utf-8")


@pytest.mark.parametrize(
    ("node", "widget"),
    [("SwDLoadDrafts", "file"), ("SwDLoadPrepared", "folder"), ("SwDScaleSchedule", "preset")],
)
def test_what_is_said_of_an_unknown_name_can_be_logged(pack, folders, node, widget):
    own = {"custom_sizes": "", "custom_sigmas": ""} if node == "SwDScaleSchedule" else {}
    said = pack[node].validate_inputs(**{widget: f"{SHOWN}-2", **own})
    assert "caf" in said and said.encode("utf-8")


def test_the_host_goes_on_running_graphs(server):
    name = os.fsdecode(NAME + b".drafts.safetensors")
    (server.base / "input" / name).write_bytes(b"{}")
    student = {"class_type": "SwDSceneStudent", "inputs": {"strength": 1.0}}
    load = {"class_type": "SwDLoadDrafts", "inputs": {"file": name, "vae": ["1", 2]}}
    entry = server.run({"1": student, "2": load})
    assert entry["status"]["status_str"] == "error" and "caf" in json.dumps(entry)
    size = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    after = {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    assert server.run(after)["status"]["status_str"] == "success"
