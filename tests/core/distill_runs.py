"""A small training from a config, for the tests that stop, kill, resume and share it."""

import dataclasses
import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from swd_core.distill import session
from swd_core.distill.config import Settings, parse_settings
from swd_core.distill.prepare import prepare
from swd_core.distill.teachers import SceneEncoder

ROOT = Path(__file__).parents[2]
STEPS = 12
# SWD_TEST_DEVICE=gpu trains on a graphics card where torch finds one.
DEVICE = "cpu" if os.environ.get("SWD_TEST_DEVICE", "cpu") == "cpu" else "auto"
CONFIG = """
[model]
family = "scenes"
base = '{weights}'
device = "{device}"
rank = 2
[data]
source = "pictures"
prepared = "{folder}/prepared"
size = 64
[train]
steps = {steps}
batch_tokens = 16
fake_steps = 1
warmup = 2
lr = 1e-3
[output]
run = "{folder}/run"
save_every = 2
log_every = 1
samples = 2
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def make_place(folder: Path, weights: Path, device: str = DEVICE) -> Path:
    """Prepared random pictures and a config that trains a rank-2 student of the small teacher."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a fox")
    text = CONFIG.format(weights=weights, device=device, steps=STEPS, folder=folder)
    (folder / "config.toml").write_text(text)
    schedule = settings_of(folder).scale_schedule()
    prepare(pictures, folder / "prepared", SceneEncoder(weights), schedule, 64)
    return folder


def settings_of(folder: Path, run: str = "run", **train) -> Settings:
    data = tomllib.loads((folder / "config.toml").read_text())
    data["train"].update(train)
    data["output"]["run"] = str(folder / run)
    return parse_settings(data)


def train(folder: Path, run: str, resume: bool = False, **options) -> Path:
    session.train(settings_of(folder, run, **options), resume=resume)
    return folder / run


def changed(settings: Settings, section: str, **values) -> Settings:
    part = dataclasses.replace(getattr(settings, section), **values)
    return dataclasses.replace(settings, **{section: part})


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "swd_core", "distill", "--config", "config.toml", *arguments]


def record(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[dict]:
    return [line for line in record(run) if "evaluation" not in line]


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["evaluation"] for line in record(run) if "evaluation" in line}


def assert_same(run: Path, straight: Path) -> None:
    """The same losses and measures, step by step, and the same student."""
    assert record(run) == record(straight)
    a, b = (load_file(r / "swd_lora" / "adapter_model.safetensors") for r in (run, straight))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
