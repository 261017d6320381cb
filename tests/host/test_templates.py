"""Graphs nobody here made: the host's own templates, with our sampler in the place of theirs.

Run by a real server with small random models, at a small size; the rest of each graph is as it
comes. COMFYUI_TEMPLATES names a folder of them for a host whose environment has none.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Server
from PIL import Image
from safetensors.torch import load_file
from templates import (
    HEIGHT,
    WIDTH,
    folder,
    make_small,
    needed,
    of_type,
    read,
    text_of,
    with_our_sampler,
)

# Height and width of the finished latent.
SIZE, PADDED = (HEIGHT // 8, WIDTH // 8), (HEIGHT // 8 + 8, WIDTH // 8 + 16)
TEMPLATES = {
    "sd3.5_simple_example": SIZE,
    "sd3.5_large_canny_controlnet_example": SIZE,
    "sd3.5_large_blur": SIZE,
    "flux_dev_checkpoint_example": SIZE,
    "flux_dev_full_text_to_image": SIZE,
    "flux_schnell": SIZE,
    "flux1_krea_dev": SIZE,
    "flux_fill_inpaint_example": SIZE,
    "flux_fill_outpaint_example": PADDED,
    "flux_kontext_dev_basic": SIZE,
    "flux_redux_model_example": SIZE,
    "flux_canny_model_example": SIZE,
    "flux1_dev_uso_reference_image_gen": SIZE,
    "sdxl_simple_example": SIZE,
    "sdxl_refiner_prompt_example": SIZE,
    "sdxl_revision_text_prompts": SIZE,
    "sdxlturbo_example": SIZE,
}
# The menu that a loader takes its file from.
FOLDERS = {
    "ckpt_name": "checkpoints", "unet_name": "diffusion_models", "clip_name1": "text_encoders",
    "clip_name2": "text_encoders", "vae_name": "vae", "control_net_name": "controlnet",
    "clip_name": "clip_vision", "style_model_name": "style_models", "name": "model_patches",
}  # fmt: skip
PICTURES = ("LoadImage", "LoadImageOutput")


@pytest.fixture(scope="module")
def host(small, tmp_path_factory):
    """A server whose loaders give small random models."""
    if folder() is None:
        pytest.skip(
            "comfyui-workflow-templates is not in this environment; COMFYUI_TEMPLATES may name "
            "a folder of its graphs"
        )
    base = tmp_path_factory.mktemp("comfy_templates")
    (base / "custom_nodes").mkdir()
    stand_ins = Path(__file__).with_name("template_stand_ins.py")
    (base / "custom_nodes" / stand_ins.name).symlink_to(stand_ins)
    running = Server(base)
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def object_info(host):
    return host.get("/object_info")


def painting(path: Path, seed: int) -> None:
    """A picture of random blocks, transparent (to be painted) in the middle."""
    blocks = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 32, WIDTH // 32, 4))
    blocks[..., 3] = 255
    blocks[2:4, 2:6, 3] = 0
    Image.fromarray(blocks.astype(np.uint8).repeat(32, 0).repeat(32, 1)).save(path, "PNG")


def prepare(host: Server, name: str, object_info: dict) -> tuple[dict, str]:
    """The template with our sampler, files in place, its latent saved; and the sampler's key."""
    if not (folder() / f"{name}.json").is_file():
        pytest.skip(f"this version of comfyui-workflow-templates has no {name}")
    prompt = read(name).prompt(object_info)
    make_small(prompt)
    key = with_our_sampler(prompt)
    saved = {"samples": [key, 0], "filename_prefix": "latents/template"}
    prompt["latent"] = {"class_type": "SaveLatent", "inputs": saved}
    pictures = [k for k, n in prompt.items() if n["class_type"] == "SaveImage"]
    prompt = needed(prompt, ["latent", *pictures])
    for node in prompt.values():
        for widget, place in FOLDERS.items():
            if isinstance(node["inputs"].get(widget), str):
                file = host.base / "models" / place / node["inputs"][widget]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    for i, inputs in enumerate(of_type(prompt, *PICTURES)):
        name, _, place = inputs["image"].partition(" [")
        painting(host.base / (place.rstrip("]") or "input") / name, i)
    painting(host.base / "input" / "another.png", 99)
    return prompt, key


def run(host: Server, prompt: dict) -> tuple[torch.Tensor, np.ndarray]:
    """The finished latent and the saved picture."""
    entry = host.run(prompt)
    assert entry.get("status", {}).get("status_str") == "success", json.dumps(entry)[:3000]
    [latent] = [f for o in entry["outputs"].values() for f in o.get("latents", [])]
    [image] = [
        f for o in entry["outputs"].values() for f in o.get("images", []) if f["type"] == "output"
    ]
    output = host.base / "output"
    tensor = load_file(output / latent["subfolder"] / latent["filename"])["latent_tensor"]
    picture = Image.open(output / image["subfolder"] / image["filename"]).convert("RGB")
    return tensor, np.asarray(picture)


def differ(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("name", TEMPLATES)
def test_template(host, object_info, name):
    """It runs; size, numbers and picture are right; text, seed and given picture matter."""
    prompt, key = prepare(host, name, object_info)
    latent, picture = run(host, prompt)
    height, width = TEMPLATES[name]
    assert tuple(latent.shape[-2:]) == (height, width) and latent.shape[0] == 1
    assert latent.isfinite().all() and latent.std() > 0.1
    assert picture.shape == (8 * height, 8 * width, 3) and picture.std() > 10
    for part in [k for k, v in text_of(prompt, key).items() if isinstance(v, str)]:
        changed = copy.deepcopy(prompt)
        text_of(changed, key)[part] += " under a rainbow"
        assert differ(latent, run(host, changed)[0]) > 1e-3, f"{part} does nothing"
    changed = copy.deepcopy(prompt)
    seeds = seed_of(changed, key)
    seeds["noise_seed" if "noise_seed" in seeds else "seed"] += 1
    assert differ(latent, run(host, changed)[0]) > 1e-2, "the seed does nothing"
    for i in range(len(of_type(prompt, *PICTURES))):
        changed = copy.deepcopy(prompt)
        of_type(changed, *PICTURES)[i]["image"] = "another.png"
        assert differ(latent, run(host, changed)[0]) > 1e-4, "a given picture does nothing"


def seed_of(prompt: dict, key: str) -> dict:
    """The inputs of the node that has the seed."""
    inputs = prompt[key]["inputs"]
    return prompt[inputs["noise"][0]]["inputs"] if "noise" in inputs else inputs
