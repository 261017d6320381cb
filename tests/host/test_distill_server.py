"""Students made by a real server's graph on small random models; another graph loads them."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Server
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
