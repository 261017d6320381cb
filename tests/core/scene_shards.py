"""Shards of random latents and a random teacher, for tests of students of scenes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swd_core.lab import latents
from swd_core.lab.latents import drawn_prompts, latent_path, prompt_path
from swd_core.lab.train_autoencoder import export as export_autoencoder
from swd_core.lab.train_teacher import Teacher, export
from swd_core.scenes.autoencoder import Autoencoder
from swd_core.scenes.student import VAE_FILE
from swd_core.scenes.text import vocabulary

SHARD = 8


def shards(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Fills a folder with shards of eight pictures: two at 16 and 20 cells, one at 24 and 32."""
    patch.setattr(latents, "SHARD", SHARD)
    generator = torch.Generator().manual_seed(5)
    for side, count in {16: 2, 20: 2, 24: 1, 32: 1}.items():
        for shard in range(count):
            rows = torch.randn(SHARD, 16, side, side, generator=generator).half()
            save_file({"latents": rows}, latent_path(folder, side, shard))
            save_file({"prompts": drawn_prompts(shard, 0)}, prompt_path(folder, shard))
    return folder


def random_teacher(folder: Path) -> Path:
    """A folder with random weights of a teacher and an autoencoder in the shipped formats."""
    torch.manual_seed(1)
    teacher = Teacher(len(vocabulary()), depth=2)
    for parameter in teacher.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    folder.mkdir()
    export(teacher, folder)
    export_autoencoder(Autoencoder((8, 8, 8, 8)), folder / VAE_FILE)
    return folder
