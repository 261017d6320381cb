"""Small random weights in the shipped file formats, so that no test depends on the trained ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swd_core import commands
from swd_core.distill.mmdit import published_layers
from swd_core.distill.teachers import SceneEncoder
from swd_core.lab.train_autoencoder import export as export_autoencoder
from swd_core.lora_files import write_peft
from swd_core.scenes.autoencoder import Autoencoder
from swd_core.scenes.model import MMDiT
from swd_core.scenes.student import LORA_FOLDER, MODEL_FILE, TEXT_FILE, VAE_FILE
from swd_core.scenes.text import SceneTextEncoder, SceneTokenizer, vocabulary
from swd_core.tensor_files import save_tensors

ROOT = Path(__file__).parents[2]
sys.path.append(str(Path(__file__).parent))  # for what tests share, such as draft_runs
RANK = 4


def shake(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Replaces the parameters, zero ones too, by small random ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5, generator=generator)
    return module


@pytest.fixture(autouse=True)
def same_numbers_every_run():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory) -> Path:
    """A weights folder with a teacher of depth 2, a narrow autoencoder and a LoRA of rank 4."""
    folder = tmp_path_factory.mktemp("weights")
    meanings = vocabulary()
    parts = shake(torch.nn.ModuleList([SceneTextEncoder(len(meanings)), MMDiT(2)]), seed=1)
    text, model = ({k: v.half() for k, v in part.state_dict().items()} for part in parts)
    save_tensors(folder / TEXT_FILE, text, {"vocabulary": json.dumps(meanings)})
    save_tensors(folder / MODEL_FILE, model)
    export_autoencoder(shake(Autoencoder((8, 8, 8, 8)), seed=2), folder / VAE_FILE)
    generator = torch.Generator().manual_seed(3)
    layers = {
        f"joint_blocks.0.x_block.{leaf}": (
            torch.randn(RANK, rows, generator=generator) / rows**0.5,
            torch.randn(columns, RANK, generator=generator) / 8,
        )
        for leaf, rows, columns in (("attn.qkv", 128, 384), ("mlp.fc1", 128, 512))
    }
    write_peft(
        folder / LORA_FOLDER, published_layers(layers), rank=RANK, alpha=RANK, base_model="test"
    )
    return folder


@pytest.fixture
def run_cli():
    """Runs `python -m swd_core` as a user would: (exit code, stdout, stderr)."""

    def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-m", "swd_core", *arguments],
            cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="session")
def tokenizer() -> SceneTokenizer:
    return SceneTokenizer(vocabulary())


@pytest.fixture
def main(monkeypatch, capsys, tmp_path, random_weights):
    """Runs the command line in this process, which is faster: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = commands.main([*arguments, "--weights", str(random_weights)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def encoder(random_weights):
    return SceneEncoder(random_weights)


@pytest.fixture
def source(tmp_path):
    """A folder of pictures with captions."""
    from prepared_pictures import fill

    fill(tmp_path / "pictures")
    return tmp_path / "pictures"
