"""Trains the autoencoder's decoder alone, on real latents and on such as the models make.

Latents that a model makes lack a little of the finest detail, and a decoder that saw only real ones
draws soft pictures of them. The encoder stays as it is, and so do all latents and what was trained
on them.
"""

import argparse
import logging
import math
import shutil
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..distill.average import Average
from ..distill.checkpoint import resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..scenes.autoencoder import FACTOR, Autoencoder
from ..scenes.student import VAE_FILE
from ..tensor_files import read_tensors
from .detail import detail_loss, laplacian, reconstruction_loss
from .latents import LATENT_SIDES, latent_path, load_autoencoder
from .made import made_path
from .pictures import load_pictures, shrunk
from .train_autoencoder import NOISE, export, likeness

log = logging.getLogger(__name__)
CHECKPOINT = "decoder.pt"
CELLS, BORDER = 12, 2  # of a crop, and of its border: that is made without what lies beyond
ASKED = (32, 32, 24, 20, 16)  # sides, as often as they are trained
KINDS = ("real", "teacher", "student")
HELD = 32  # last pictures of each size, which are measured and not trained on
SAVE_SECONDS, LOG_EVERY = 180, 100


@dataclass(frozen=True)
class Crops:
    """Pictures, uint8 (N, 3, S, S) by latent side, and latents (N, C, side, side) of each by kind
    and side."""

    pictures: Mapping[int, Tensor]
    latents: Mapping[str, Mapping[int, Tensor]]

    @classmethod
    def load(cls, folder: Path, shard: int, device: torch.device | str) -> "Crops":
        made = {k: v.to(device) for k, v in read_tensors(made_path(folder, shard))[0].items()}
        count = len(made[f"teacher_{LATENT_SIDES[0]}"])
        whole = load_pictures(folder, shard)[:count]
        real = {
            side: read_tensors(latent_path(folder, side, shard))[0]["latents"][:count].to(device)
            for side in LATENT_SIDES
        }
        by_kind = {
            kind: {s: made[f"{kind}_{s}"] for s in LATENT_SIDES if f"{kind}_{s}" in made}
            for kind in KINDS[1:]
        }
        sizes = {side: shrunk(whole, FACTOR * side).to(device) for side in LATENT_SIDES}
        return cls(sizes, {KINDS[0]: real, **by_kind})

    def draw(
        self, kind: str, side: int, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Latents (count, C, CELLS, CELLS) and what they are of, (count, 3, ..) in [0, 1]: each the
        livelier of two crops."""
        latents, pictures = self.latents[kind][side], self.pictures[side]
        rows = torch.randint(len(pictures) - HELD, (2 * count,), generator=generator).tolist()
        corners = torch.randint(side - CELLS + 1, (2 * count, 2), generator=generator).tolist()
        cells, pixels = [], []
        for row, (y, x) in zip(rows, corners, strict=True):
            cells.append(latents[row, :, y : y + CELLS, x : x + CELLS])
            top, left, size = (FACTOR * n for n in (y, x, CELLS))
            pixels.append(pictures[row, :, top : top + size, left : left + size])
        z, x0 = torch.stack(cells).float(), torch.stack(pixels).float() / 255
        lively = (x0[..., 1:, :] - x0[..., :-1, :]).abs().mean((1, 2, 3)).view(2, count)
        chosen = torch.where(lively[0] > lively[1], 0, count) + torch.arange(count, device=z.device)
        return z[chosen], x0[chosen]


def discriminator() -> nn.Sequential:
    """Real or decoded, for each patch of about 30 pixels of (B, 3, H, W) in [-1, 1]."""
    widths = ((3, 32, 4, 2), (32, 64, 4, 2), (64, 96, 3, 1))
    layers: list[nn.Module] = []
    for before, after, size, stride in widths:
        layers += [spectral_norm(nn.Conv2d(before, after, size, stride, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1][1], 1, 3, 1, 1)))


def inner(pictures: Tensor) -> Tensor:
    edge = slice(FACTOR * BORDER, -FACTOR * BORDER)
    return pictures[..., edge, edge]


def energy_loss(output: Tensor, real: Tensor) -> Tensor:
    """How far the power of the finest detail of all pictures is off, wherever they have it."""
    power = [laplacian(x).square().mean() for x in (output, real)]
    return (power[0] / power[1] - 1).abs()


class DecoderTraining:
    """A step at a time, on crops of one kind and size.

    Args:
        detail, energy, gan: weights of `detail_loss`, of `energy_loss` and of the discriminator;
            the latter two are of latents whose detail is not the picture's.
    """

    def __init__(self, vae: Autoencoder, detail: float, energy: float, gan: float, lr: float):
        self.vae, self.weights = vae, (detail, energy, gan)
        vae.taesd_encoder.requires_grad_(False)
        self.before = deepcopy(vae).requires_grad_(False)
        self.device = next(vae.parameters()).device
        self.head = discriminator().to(self.device)
        self.average = Average(vae, 0.995)
        self.optimiser = Optimisers(vae, lr=lr)
        self.optimiser_head = torch.optim.Adam(self.head.parameters(), 2e-4, betas=(0.5, 0.9))

    def loss(self, kind: str, z: Tensor, x: Tensor) -> Tensor:
        detail, energy, gan = self.weights
        output, x = inner(self.decode(self.vae, z)), inner(x)
        if kind != "student":
            return reconstruction_loss(output, x) + detail * detail_loss(output, x)
        with torch.no_grad():
            before = inner(self.decode(self.before, z))
        colours = F.l1_loss(F.avg_pool2d(output, FACTOR), F.avg_pool2d(before, FACTOR))
        loss = colours + energy * energy_loss(output, x)
        if gan:
            self.train_head(output.detach(), x)
            loss = loss - gan * self.judged(output).mean()
        return loss

    def decode(self, vae: Autoencoder, z: Tensor) -> Tensor:
        with fast_autocast(self.device):
            return vae.decode(z.to(memory_format=torch.channels_last)).float()

    def judged(self, pictures: Tensor) -> Tensor:
        with fast_autocast(self.device):
            return self.head(2 * pictures - 1).float()

    def train_head(self, output: Tensor, real: Tensor) -> None:
        self.head.requires_grad_(True)
        loss = F.relu(1 - self.judged(real)).mean() + F.relu(1 + self.judged(output)).mean()
        self.optimiser_head.zero_grad()
        loss.backward()
        self.optimiser_head.step()
        self.head.requires_grad_(False)

    def step(self, kind: str, z: Tensor, x: Tensor, share: float) -> Tensor:
        """share: of the full rate. Returns the loss, which is not waited for."""
        self.optimiser.set_lr(share)
        loss = self.loss(kind, z, x)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.vae)
        return loss.detach()


@torch.inference_mode()
def quality(vae: Autoencoder, crops: Crops) -> dict[str, dict[str, float]]:
    """`likeness` of the pictures held back, by kind and side."""
    rows = {}
    for kind, latents in crops.latents.items():
        for side, z in latents.items():
            x = crops.pictures[side][-HELD:].float() / 255
            y = torch.cat([vae.decode(part.float()).clamp(0, 1) for part in z[-HELD:].split(8)])
            rows[f"{kind} {side}"] = likeness(y, x)
    return rows


def begun_with(folder: Path) -> Path:
    """The autoencoder that the training in `folder` begins with, which is kept there.

    Raises:
        ValueError: if another autoencoder has been put in its place since.
    """
    now, start = folder / VAE_FILE, folder / f"before_{VAE_FILE}"
    if not start.is_file():
        shutil.copy(now, start)
    ours, theirs = (load_autoencoder(path).taesd_encoder.state_dict() for path in (start, now))
    if not all(torch.equal(ours[name], theirs[name]) for name in theirs):
        raise ValueError(
            f"{start} has another encoder than {now}. Move it and {folder / CHECKPOINT} away to "
            "train the decoder of the latter."
        )
    return start


def train(
    folder: Path,
    minutes: float,
    shard: int = 0,
    *,
    detail: float = 8.0,
    energy: float = 0.1,
    gan: float = 0.02,
    lr: float = 4e-4,
    batch: int = 12,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Trains the decoder of the autoencoder in `folder` for `minutes` in all, and writes it there.

    It goes on from its checkpoint. Raises as `begun_with`.
    """
    torch.manual_seed(seed)
    vae = load_autoencoder(begun_with(folder), device).to(memory_format=torch.channels_last)
    crops = Crops.load(folder, shard, device)
    run = DecoderTraining(vae, detail, energy, gan, lr)
    parts = {
        "model": vae, "average": run.average, "optimiser": run.optimiser, "head": run.head,
        "optimiser_head": run.optimiser_head,
    }  # fmt: skip
    step, spent = resume_training(folder / CHECKPOINT, parts)
    log.info("before %s", quality(vae, crops))
    start, last = time.monotonic() - spent, time.monotonic()
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            side = ASKED[int(torch.randint(len(ASKED), (), generator=generator))]
            kinds = [kind for kind in KINDS if side in crops.latents[kind]]
            kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
            z, x = crops.draw(kind, side, batch, generator)
            if kind == "real":
                z = z + NOISE * torch.randn(z.shape, generator=generator).to(z)
            falling = 0.5 * (1 + math.cos(math.pi * elapsed / (60 * minutes))) + 0.01
            loss = run.step(kind, z, x, min(1.0, (step + 1) / 50) * falling)
            step += 1
            if step % LOG_EVERY == 0:
                log.info("step %d %.1f min loss %.4f", step, elapsed / 60, float(loss))
            if time.monotonic() - last > SAVE_SECONDS:
                save_training(folder / CHECKPOINT, parts, step, elapsed)
                last = time.monotonic()
    save_training(folder / CHECKPOINT, parts, step, time.monotonic() - start)
    export(run.average.module, folder / VAE_FILE)
    log.info("step %d %s", step, quality(run.average.module, crops))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--shard", type=int, default=0, help="that the models' latents are of")
    parser.add_argument("--minutes", type=float, default=30, help="in all")
    for name, value in (("detail", 8.0), ("energy", 0.1), ("gan", 0.02), ("lr", 4e-4)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--batch", type=int, default=12, help="crops a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="that trains, such as cuda")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(
        a.out, a.minutes, a.shard, detail=a.detail, energy=a.energy, gan=a.gan, lr=a.lr,
        batch=a.batch, seed=a.seed, device=a.device,
    )  # fmt: skip


if __name__ == "__main__":
    main()
