"""SwDDistillData and SwDDistillTrain: the scene teacher to a student inside a real ComfyUI."""

import importlib
import json
import threading
import uuid
from pathlib import Path

import pytest
import torch

from swd_core.distill.conditioning import Conditioning
from swd_core.distill.mmdit import MMDiTModel
from swd_core.lora_files import read_lora
from swd_core.scenes.student import SceneStudent

SIZE = {"width": 64, "height": 64}


def graph(name: str, steps: int, lr: float = 1e-3, seed: int = 0) -> dict:
    """Two pictures of the teacher's decoder, a short training, and a picture of the student."""
    return {
        "1": {"class_type": "SwDSceneStudent", "inputs": {"strength": 0.0}},
        "2": {"class_type": "EmptyImage", "inputs": {**SIZE, "batch_size": 2, "color": 4242}},
        "3": {
            "class_type": "SwDDistillData",
            "inputs": {
                "images": ["2", 0], "clip": ["1", 1], "vae": ["1", 2], "schedule": ["1", 3],
                "captions": "a fox\nhappy dog",
            },
        },
        "4": {
            "class_type": "SwDDistillTrain",
            "inputs": {
                "model": ["1", 0], "data": ["3", 0], "lora_name": name, "steps": steps,
                "rank": 4, "lr": lr,
                "batch_tokens": 32, "mmd": 1.0, "dmd": 1.0, "gan": 0.005, "guidance": 2.0,
                "fake_steps": 1,
                "seed": seed, "resume": True, "vae": ["1", 2],
            },
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 2]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a fox"}},
        "7": {"class_type": "EmptySD3LatentImage", "inputs": {**SIZE, "batch_size": 1}},
        "8": {
            "class_type": "SwDSample",
            "inputs": {
                "model": ["4", 0], "positive": ["6", 0], "latent_image": ["7", 0],
                "schedule": ["1", 3],
                "seed": 1, "cfg": 1.0, "upscale_method": "bicubic",
            },
        },
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
    }  # fmt: skip


def test_a_student_is_made_in_the_graph_and_sampled(server):
    entry = server.run(graph("made_here", 3))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"]["5"]["images"] and entry["outputs"]["10"]["images"]
    lora = read_lora(Path(server.base) / "models" / "loras" / "made_here")
    assert lora.architecture == "sd3" and lora.ranks == "rank 4"
    assert json.loads(lora.metadata["swd_scales"])[-1] == 1.0
    assert any(layer.up.abs().max() > 0 for layer in lora.layers.values())


def test_interrupted_then_run_again_goes_on(server):
    """The checkpoint of the interrupted run is whole, and the second run does only the rest."""
    import websocket

    client = uuid.uuid4().hex
    socket = websocket.create_connection(
        f"ws://127.0.0.1:{server.port}/ws?clientId={client}", timeout=600
    )
    result = {}
    runner = threading.Thread(
        target=lambda: result.update(server.run(graph("halted", 4000), client))
    )
    runner.start()
    while True:
        message = socket.recv()
        if isinstance(message, str):
            data = json.loads(message)
            if (
                data["type"] == "progress"
                and data["data"]["max"] == 4000
                and data["data"]["value"] >= 2
            ):
                break
    server.post("/interrupt", {})
    runner.join()
    socket.close()
    assert result["status"]["status_str"] == "error"
    assert any(kind == "execution_interrupted" for kind, _ in result["status"]["messages"])
    folder = Path(server.base) / "models" / "loras" / "halted"
    done = int(read_lora(folder).metadata["swd_step"])
    assert 2 <= done < 4000
    entry = server.run(graph("halted", done + 1))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert int(read_lora(folder).metadata["swd_step"]) == done + 1


@pytest.fixture(scope="module")
def parts(pack):
    model, clip, vae, schedule = pack["SwDSceneStudent"].execute(strength=0.0).result
    return model, clip, vae, schedule


def test_data_are_the_encoded_area_means(pack, parts):
    _, clip, vae, schedule = parts
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    data = (
        pack["SwDDistillData"]
        .execute([images], [clip], [vae], [schedule], ["a fox\nhappy dog"])
        .result[0]
    )
    own = SceneStudent.load(lora=None)
    assert data.sizes == ((4, 4), (6, 6), (6, 6), (8, 8))
    half = images.reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
    for size, pixels in (((8, 8), images), ((4, 4), half)):
        with torch.no_grad():
            expected = own.vae.encode(pixels.movedim(-1, 1).contiguous())
        stored = parts[0].model.process_latent_in(data.latents[size])
        assert (stored - expected).abs().mean() < 0.02
    text = own.encode(["a fox", "happy dog"])
    assert torch.equal(torch.cat([one.context for one in data.text]), text.context)
    assert torch.equal(torch.cat([one.pooled for one in data.text]), text.pooled)
    assert data.target == (64, 64)


@pytest.mark.parametrize(
    ("size", "captions", "message"),
    [((64, 64), "a\nb\nc", "3 captions for 2 pictures"),
     ((60, 64), "a", "64x60 px.*multiple of 16"),
     ((64, 64), "", "0 captions for 2")],
)  # fmt: skip
def test_wrong_pictures_and_captions(pack, parts, size, captions, message):
    _, clip, vae, schedule = parts
    with pytest.raises(ValueError, match=message):
        pack["SwDDistillData"].execute(
            [torch.rand(2, *size, 3)], [clip], [vae], [schedule], [captions]
        )


def test_a_list_of_pictures_has_a_caption_each_and_one_size(pack, parts):
    """As the host's loaders of folders give them; one without a caption has the empty prompt."""
    _, clip, vae, schedule = parts
    images = [torch.rand(1, 64, 64, channels) for channels in (3, 4, 3)]
    captions, node = ["a fox\nin snow ", "", "happy dog"], pack["SwDDistillData"]
    data = node.execute(images, [clip], [vae], [schedule], captions).result[0]
    assert data.captions == ("a fox\nin snow", "", "happy dog")
    assert all(len(latents) == 3 for latents in data.latents.values())
    assert torch.equal(data.text[1].context, data.empty.context)
    with pytest.raises(ValueError, match="2 captions for 3 pictures"):
        node.execute(images, [clip], [vae], [schedule], captions[:2])
    images[1] = torch.rand(1, 64, 80, 3)
    with pytest.raises(ValueError, match="64x64 and 80x64 px.*Scale or crop them to one size"):
        node.execute(images, [clip], [vae], [schedule], captions)
    with pytest.raises(ValueError, match="clip brings a list of 2"):
        node.execute(images, [clip, clip], [vae], [schedule], captions)


def test_wrong_teachers_and_names(pack, parts):
    model, clip, vae, schedule = parts
    data = pack["SwDDistillData"].execute(
        [torch.rand(1, 64, 64, 3)], [clip], [vae], [schedule], ["a"]
    ).result[0]  # fmt: skip
    values = {
        "steps": 1, "rank": 4, "lr": 1e-3, "batch_tokens": 16, "mmd": 1.0, "dmd": 0.0, "gan": 0.0,
        "guidance": 1.0, "fake_steps": 1, "seed": 0, "resume": False,
    }  # fmt: skip
    node = pack["SwDDistillTrain"]
    with pytest.raises(ValueError, match="'../x' can't name a folder"):
        node.execute(model, data, "../x", **values)
    with pytest.raises(ValueError, match="nothing to learn"):
        node.execute(model, data, "x", **{**values, "mmd": 0.0})
    student = pack["SwDSceneStudent"].execute(strength=1.0).result[0]
    with pytest.raises(ValueError, match="bare teacher.*set strength to 0"):
        node.execute(student, data, "x", **values)


def test_the_teacher_is_the_one_of_make_train_student(pack, parts):
    """The embedded teacher goes the way of every loaded model; make has an adapter of its own."""
    twin = importlib.import_module("swd_pack.nodes.twin")
    module = importlib.import_module("swd_pack.nodes.host_model")
    own = SceneStudent.load(lora=None)
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(2, 16, 12, 16, generator=generator), torch.tensor([0.8, 0.3])
    text = own.encode(["a fox", "happy dog"])
    with twin.training_mode():
        ours = module.HostModel(parts[0], 4)
        theirs = MMDiTModel(own.model.requires_grad_(False))
        conditioning = Conditioning(text.context, text.pooled, size=torch.full((2, 2), 128.0))
        assert ours.width == theirs.width
        results = []
        for model in (ours, theirs):
            leaf = x.clone().requires_grad_()
            x0, tokens = model.predict_with_features(leaf, sigma, conditioning)
            (x0.square().mean() + tokens.square().mean()).backward()
            results.append((x0.detach(), tokens.detach(), leaf.grad))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    ends = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert ours.parts.keys() == {
        name for name, layer in own.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(ends)
    }  # fmt: skip
