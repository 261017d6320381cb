"""SwDLoadPrepared: what the command line prepared trains in the graph."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from swd_core.commands import main
from swd_core.lora_files import read_lora

CAPTIONS = ("a fox", "happy dog")
CONFIG = """
[model]
family = "scenes"
[schedule]
preset = "scenes-4"
[data]
source = "{0}/pictures"
prepared = "{0}/prepared"
size = 64
most_oblong = 1.0
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two pictures, prepared by the command; the folder of both."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "pictures").mkdir()
    for i, caption in enumerate(CAPTIONS):
        pixels = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(i)).mul(255).byte()
        big = Image.fromarray(pixels.numpy()).resize((64, 64), Image.Resampling.BICUBIC)
        big.save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(caption)
    (folder / "scenes.toml").write_text(CONFIG.format(folder))
    assert main(["prepare", "--config", str(folder / "scenes.toml")]) == 0
    return folder


@pytest.fixture
def offered(pack, prepared, tmp_path, monkeypatch):
    """The folder in the host's input folder, under the name that the node offers."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    (tmp_path / "sets").mkdir()
    (prepared / "prepared").rename(tmp_path / "sets" / "pets")
    yield "sets/pets"
    (tmp_path / "sets" / "pets").rename(prepared / "prepared")


def test_the_folder_is_offered_and_holds_what_distill_data_makes(pack, prepared, offered):
    node = pack["SwDLoadPrepared"]
    assert importlib.import_module("swd_pack.nodes.prepared").prepared_folders() == [offered]
    assert node.validate_inputs(offered) is True
    data, schedule = node.execute(folder=offered).result
    model, clip, vae, expected = pack["SwDSceneStudent"].execute(strength=0.0).result
    assert schedule == expected

    pictures = [Image.open(prepared / "pictures" / f"{i}.png") for i in range(2)]
    images = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8)
                          .view(64, 64, 3).float() / 255 for p in pictures])  # fmt: skip
    made = pack["SwDDistillData"].execute(
        [images], [clip], [vae], [schedule], ["\n".join(CAPTIONS)]
    ).result[0]  # fmt: skip
    run = importlib.import_module("swd_pack.nodes.distill_run")
    made, shown = run.copied(made, model), data.first(2)
    order = [shown.captions.index(caption) for caption in CAPTIONS]
    own = made.latents[(8, 8)]
    # Shards are in float16, and the two encode by torch's and by the host's own layers.
    assert (shown.real[order] - own).abs().mean() < 0.02 * own.abs().mean()
    text = shown.text.map(lambda part: part[order])
    for name in ("context", "pooled"):
        wanted = torch.cat([getattr(one, name) for one in made.text])
        torch.testing.assert_close(getattr(text, name), wanted, rtol=2e-3, atol=2e-3)
    assert text.size.tolist() == [list(made.target)] * 2


def test_a_graph_trains_from_the_folder_and_samples(server, prepared):
    folder = Path(server.base) / "input" / "pets"
    if not folder.exists():
        folder.symlink_to(prepared / "prepared")
    inputs = {
        "model": ["1", 0], "data": ["2", 0], "lora_name": "from_disk", "steps": 3, "rank": 4,
        "lr": 1e-2, "batch_tokens": 32, "mmd": 1.0, "dmd": 0.0, "gan": 0.0, "guidance": 1.0,
        "fake_steps": 1, "seed": 0, "resume": False, "vae": ["1", 2],
    }  # fmt: skip
    graph = {
        "1": {"class_type": "SwDSceneStudent", "inputs": {"strength": 0.0}},
        "2": {"class_type": "SwDLoadPrepared", "inputs": {"folder": "pets"}},
        "3": {"class_type": "SwDDistillTrain", "inputs": inputs},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 2]}},
    }
    entry = server.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"]["4"]["images"]
    lora = read_lora(Path(server.base) / "models" / "loras" / "from_disk")
    assert json.loads(lora.metadata["swd_sigmas"])[0] == 1.0
    assert any(layer.up.abs().max() > 0 for layer in lora.layers.values())

    graph["2"]["inputs"]["folder"] = "cats"
    refused = json.dumps(server.run(graph))
    assert "no prepared folder 'cats'" in refused and "swd_core prepare" in refused


def test_data_of_another_family_or_width_is_refused(pack, prepared, offered, tmp_path):
    data = pack["SwDLoadPrepared"].execute(folder=offered).result[0]
    model = pack["SwDSceneStudent"].execute(strength=0.0).result[0]
    run = importlib.import_module("swd_pack.nodes.distill_run")
    run.check_data(model, data)
    index = tmp_path / offered / "prepared.json"
    right = index.read_text()
    index.write_text(right.replace('"scenes"', '"flux"'))
    with pytest.raises(ValueError, match="prepared for flux, this model is scenes"):
        run.check_data(model, type(data)(tmp_path / offered))
    index.write_text(right)
    made = pack["SwDDistillData"].execute(
        [torch.rand(1, 64, 64, 3)],
        *([part] for part in pack["SwDSceneStudent"].execute(strength=0.0).result[1:]), ["a"],
    ).result[0]  # fmt: skip
    text = [dataclasses.replace(one, pooled=one.pooled[:, :7]) for one in made.text]
    narrow = dataclasses.replace(made, text=tuple(text))
    with pytest.raises(ValueError, match="pooled 7 wide, this model reads"):
        run.check_data(model, narrow)


@pytest.mark.parametrize("folder", ["sets/none", "../prepared", "sets/pets/.."])
def test_a_folder_that_is_not_offered_is_refused(pack, offered, folder):
    """Also where the name comes through a link, which the host doesn't validate."""
    node = pack["SwDLoadPrepared"]
    assert f"no prepared folder {folder!r}" in node.validate_inputs(folder)
    with pytest.raises(ValueError, match="no prepared folder.*swd_core prepare"):
        node.execute(folder=folder)
