"""Trains the autoencoder of scenes on crops of every picture size of the schedule."""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.average import Average
from ..distill.checkpoint import resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..scenes.autoencoder import FACTOR, LATENT_CHANNELS, Autoencoder, widen
from ..scenes.student import VAE_FILE
from ..spectrum import top_octave_ratio
from ..tensor_files import save_tensors
from ..transfer import sent
from .detail import detail_loss, laplacian, reconstruction_loss
from .latents import load_autoencoder
from .pictures import load_pictures, shrunk

log = logging.getLogger(__name__)
SIDES = (128, 160, 192, 256)
CROP, BATCH = 64, 16
NOISE = 0.06  # on the latents, so that small errors in them do no harm
WIDTHS = (24, 40, 64, 64)  # narrow at high resolution: three times faster on a CPU
CHECKPOINT = "autoencoder.pt"


def random_crops(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` crops (count, 3, 64, 64) in [0, 1], each the livelier of two."""
    side, crops = images.shape[-1], []
    for _ in range(count):
        pair = []
        for _ in range(2):
            i = int(torch.randint(len(images), (), generator=generator))
            y, x = torch.randint(0, side - CROP + 1, (2,), generator=generator).tolist()
            pair.append(images[i, :, y : y + CROP, x : x + CROP].float() / 255)
        lively = max(pair, key=lambda crop: float((crop[:, 1:] - crop[:, :-1]).abs().mean()))
        crops.append(lively.flip(2) if torch.rand((), generator=generator) < 0.5 else lively)
    return torch.stack(crops)


def likeness(output: Tensor, x: Tensor) -> dict[str, float]:
    """Mean PSNR in dB of pictures (N, 3, H, W) in [0, 1], and the ratio of their top octaves."""
    decibels = -10 * (output - x).square().mean((1, 2, 3)).log10()
    return {
        "psnr": round(float(decibels.mean()), 2),
        "top_octave": round(top_octave_ratio(output.mean(1, True), x.mean(1, True)), 3),
    }


@torch.no_grad()
def quality(model: Autoencoder, images: Tensor) -> dict[str, float]:
    """How like pictures (N, 3, H, W), uint8, what comes back of them is."""
    x = images.to(next(model.parameters()).device).float() / 255
    return likeness(torch.cat([model.decode(model.encode(b)).clamp(0, 1) for b in x.split(8)]), x)


def start_model(begin: Path | None) -> Autoencoder:
    """A new autoencoder, or one from a file."""
    if begin is not None:
        return load_autoencoder(begin)
    return Autoencoder(WIDTHS).to(memory_format=torch.channels_last)


def train(
    out: Path,
    minutes: float,
    shards: int = 1,
    begin: Path | None = None,
    lr: float = 2e-3,
    seed: int = 0,
    detail: float = 2.0,
    smooth: float = 0.03,
    device: torch.device | str = "cpu",
) -> None:
    """Trains for `minutes` of wall time in all; resumes where a killed run stopped.

    Args:
        out: folder of the painted shards, of which the first `shards` are used, and of the results.
        begin: weights of an autoencoder to begin from. detail: weight of `detail_loss`.
        smooth: weight of what varies from cell to cell in the latents, the energy of their finest
            octave: only what the pictures need of it shall stay, as a model has to learn it all.
    """
    whole = torch.cat([load_pictures(out, shard) for shard in range(shards)])
    sides = {side: shrunk(whole, side) for side in SIDES}
    torch.manual_seed(seed)
    model, device = start_model(begin).to(device), torch.device(device)
    path = out / CHECKPOINT
    average = Average(model, 0.998)
    optimiser = Optimisers(model, lr=lr)
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, spent = resume_training(path, parts)
    start = time.monotonic() - spent
    running, last_log, last_save = torch.zeros((), device=device), step, time.monotonic()
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            progress = elapsed / (60 * minutes)
            optimiser.set_lr(
                min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress)) + 0.01
            )
            side = SIDES[int(torch.randint(len(SIDES), (), generator=generator))]
            x = sent(random_crops(sides[side], BATCH, generator), device)
            x = x.to(memory_format=torch.channels_last)
            cells = CROP // FACTOR
            noise = torch.randn(BATCH, LATENT_CHANNELS, cells, cells, generator=generator)
            noise = NOISE * sent(noise, device)
            loss = whole_loss(model, x, noise, detail, smooth, resized=step % 2 == 1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            step += 1
            running = running + loss.detach()
            if step % 100 == 0:
                mean = float(running) / (step - last_log)
                log.info("step %d %.1f min loss %.4f", step, elapsed / 60, mean)
                running, last_log = torch.zeros((), device=device), step
            if time.monotonic() - last_save > 180:
                save_training(path, parts, step, elapsed)
                last_save = time.monotonic()
                log.info("%s", {s: quality(average.module, sides[s][::50]) for s in (128, 256)})
    save_training(path, parts, step, time.monotonic() - start)
    export(average.module, out / VAE_FILE)
    log.info("final %s", {s: quality(average.module, sides[s][::20]) for s in SIDES})


def whole_loss(
    model: Autoencoder, x: Tensor, noise: Tensor, detail: float, smooth: float, resized: bool
) -> Tensor:
    """Reconstruction and zero mean, unit variance of the latents.

    resized: decodes the latent at half its size against the half-size picture too, so that resizing
    a latent means resizing the picture: what the scale-wise sampler relies on.
    """
    with fast_autocast(x.device):
        z = model.encode(x).float()
        output = model.decode(z + noise).float()
    loss = reconstruction_loss(output, x) + detail * detail_loss(output, x)
    if resized:
        small = F.interpolate(z, scale_factor=0.5, mode="bicubic", antialias=True)
        with fast_autocast(x.device):
            output = model.decode(small).float()
        loss = loss + 0.5 * reconstruction_loss(output, F.avg_pool2d(x, 2))
    loss = loss + smooth * laplacian(z).square().mean()
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
    return loss + 1e-2 * (mean.square() + var - var.clamp(min=1e-4).log()).mean()


def export(model: Autoencoder, path: Path) -> None:
    """Writes the host's format: widths padded, float16."""
    save_tensors(path, {k: v.half() for k, v in widen(model.state_dict()).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--shards", type=int, default=1, help="of 1,000 painted pictures")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--begin", type=Path, help="weights of an autoencoder to begin from")
    parser.add_argument("--detail", type=float, default=2.0)
    parser.add_argument("--smooth", type=float, default=0.03)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="that trains, such as cuda")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(
        a.out,
        a.minutes,
        a.shards,
        a.begin,
        a.lr,
        a.seed,
        a.detail,
        a.smooth,
        a.device,
    )


if __name__ == "__main__":
    main()
