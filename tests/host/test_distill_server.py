"""Students made by a real server's graph on small random models; another graph loads them."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Server
from PIL import Image
from safetensors.torch import load_file

FILES = {
    "checkpoints": ["sd3.5_medium.safetensors", "sd_xl_base_1.0.safetensors"],
    "diffusion_models": ["flux1-dev.safetensors"],
    "text_encoders": ["clip_l.safetensors"],
    "vae": ["ae.safetensors"],
}
FAMILIES = ("sd35-medium", "flux", "sdxl")


@pytest.fixture(scope="module")
def host(small, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy_distill")
    for folder, names in FILES.items():
        for name in names:
            (base / "models" / folder).mkdir(parents=True, exist_ok=True)
            (base / "models" / folder / name).touch()
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "stand_ins.py").symlink_to(Path(__file__).with_name("stand_ins.py"))
    running = Server(base)
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders(family: str) -> tuple[dict, list, list, list]:
    """Loader nodes, and the links of MODEL, CLIP and VAE."""
    if family == "flux":
        clip = {"clip_name1": "clip_l.safetensors", "clip_name2": "clip_l.safetensors"}
        return (
            {
                "m": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
                "c": node("DualCLIPLoader", type="flux", **clip),
                "v": node("VAELoader", vae_name="ae.safetensors"),
            },
            ["m", 0],
            ["c", 0],
            ["v", 0],
        )
    name = FILES["checkpoints"][family == "sdxl"]
    return {"m": node("CheckpointLoaderSimple", ckpt_name=name)}, ["m", 0], ["m", 1], ["m", 2]


def sampled(family: str, loaded: dict, clip: list, student: list) -> dict:
    latent = node("EmptyLatentImage", width=128, height=128, batch_size=1)
    return {
        **loaded,
        "schedule": node("SwDScaleSchedule", model=student, preset="auto", custom_sizes="",
                         custom_sigmas=""),
        "text": node("CLIPTextEncode", clip=clip, text="a fox by a lake"),
        "empty": latent if family == "sdxl" else {**latent, "class_type": "EmptySD3LatentImage"},
        "sample": node("SwDSample", model=student, positive=["text", 0], latent_image=["empty", 0],
                       schedule=["schedule", 0], seed=1, cfg=1.0, upscale_method="bicubic"),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/x"),
    }  # fmt: skip


def run(host, prompt: dict) -> torch.Tensor:
    entry = host.run(prompt)
    assert entry.get("status", {}).get("status_str") == "success", entry
    newest = max((host.base / "output" / "latents").iterdir(), key=lambda p: p.name)
    return load_file(newest)["latent_tensor"]


def training(model: list, clip: list, vae: list, images: list, captions, name: str) -> dict:
    return {
        "plan": node("SwDScaleSchedule", model=model, preset="flux-4", custom_sizes="",
                     custom_sigmas=""),
        "data": node("SwDDistillData", images=images, clip=clip, vae=vae, schedule=["plan", 0],
                     captions=captions),
        "train": node("SwDDistillTrain", model=model, data=["data", 0], lora_name=name, steps=2,
                      rank=4, lr=0.02, batch_tokens=32, mmd=1.0, dmd=0.0, gan=0.0, guidance=2.0,
                      fake_steps=1, seed=0, resume=False),
        "plot": node("PreviewImage", images=["train", 2]),
    }  # fmt: skip


def test_a_list_of_pictures_and_captions_is_one_training_as_a_batch_is(host):
    """Loaders of folders give lists, with which the host runs a node once for each entry."""
    folder, pairs = host.base / "input" / "pairs", {"a": 65280, "b": 255}
    folder.mkdir()
    for name, colour in pairs.items():
        Image.new("RGB", (128, 128), f"#{colour:06x}").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}")
    listed = [name[0] for name in os.listdir(folder) if name.endswith(".png")]
    captions = "\n".join(f"picture {name}" for name in listed)
    loaded, model, clip, vae = loaders("flux")
    images = {
        name: node("EmptyImage", width=128, height=128, batch_size=1, color=colour)
        for name, colour in pairs.items()
    }
    images |= {
        "batch": node("ImageBatch", image1=[listed[0], 0], image2=[listed[1], 0]),
        "list": node("RebatchImages", images=["batch", 0], batch_size=1),
        "folder": node("LoadImageTextDataSetFromFolder", folder="pairs"),
    }
    ways = {"batch": captions, "list": captions}
    if images["folder"]["class_type"] in host.get("/object_info"):  # 0.3.64 has none
        ways["folder"] = ["folder", 1]
    found = []
    for name, given in ways.items():
        graph = {**loaded, **images, **training(model, clip, vae, [name, 0], given, name)}
        used = {key: part for key, part in graph.items() if key != "folder" or name == "folder"}
        entry = host.run(used)
        assert entry.get("status", {}).get("status_str") == "success", entry
        found.append(load_file(host.base / "models" / "loras" / name / "adapter_model.safetensors"))
    assert any(value.abs().max() > 0 for key, value in found[0].items() if "lora_B" in key)
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_makes_a_student_and_another_one_loads_it(host, family):
    loaded, model, clip, vae = loaders(family)
    training = {
        "plan": node("SwDScaleSchedule", model=model, preset=f"{family}-4", custom_sizes="",
                     custom_sigmas=""),
        "image": node("EmptyImage", width=128, height=128, batch_size=2, color=4242),
        "data": node("SwDDistillData", images=["image", 0], clip=clip, vae=vae,
                     schedule=["plan", 0], captions="a fox by a lake\na green frog"),
        "train": node("SwDDistillTrain", model=model, data=["data", 0], lora_name=family, steps=3,
                      rank=4, lr=0.02, batch_tokens=32, mmd=1.0, dmd=1.0, gan=0.005, guidance=2.0,
                      fake_steps=1, seed=0, resume=False, vae=vae),
        "plot": node("PreviewImage", images=["train", 2]),
    }  # fmt: skip
    made = run(host, {**sampled(family, loaded, clip, ["train", 0]), **training})
    lora = node("SwDLoraLoader", model=model, lora_name=family, strength=1.0)
    assert torch.equal(run(host, sampled(family, {**loaded, "l": lora}, clip, ["l", 0])), made)
    bare = run(host, sampled(family, loaded, clip, model))
    assert not torch.equal(bare, made)
