"""Trains the embedded autoencoder on emoji crops at every image scale of the schedule."""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..distill.average import ema_of
from ..distill.checkpoint import load_checkpoint, save_checkpoint
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from .autoencoder import LATENT_CHANNELS, Autoencoder, widen
from .data import load_images

log = logging.getLogger(__name__)
IMAGE_SIDES = (128, 160, 192, 256)
CROP = 64
TRAINED_WIDTHS = (24, 40, 64, 64)  # narrow at high resolution: three times faster on a CPU


def pyramid(images: Tensor) -> dict[int, Tensor]:
    """uint8 images (N, 3, 256, 256) at every side of the schedule, by area."""
    sides = {}
    for side in IMAGE_SIDES:
        small = F.interpolate(images.float(), size=(side, side), mode="area")
        sides[side] = small.round().byte() if side != images.shape[-1] else images
    return sides


def random_crops(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` crops (count, 3, 64, 64) in [0, 1], most of them not mere background."""
    side, crops = images.shape[-1], []
    while len(crops) < count:
        i = int(torch.randint(len(images), (), generator=generator))
        y, x = torch.randint(0, side - CROP + 1, (2,), generator=generator).tolist()
        crop = images[i, :, y : y + CROP, x : x + CROP]
        if crop.float().std() > 4 or torch.rand((), generator=generator) < 0.1:
            crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(crops).float() / 255


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, L1 of the gradients (edges) and a little L2 (PSNR)."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(output), gradients(target), strict=True))
    return F.l1_loss(output, target) + edges + 2 * F.mse_loss(output, target)


@torch.no_grad()
def psnr(model: Autoencoder, images: Tensor) -> float:
    x = images.float() / 255
    out = torch.cat([model.decode(model.encode(b)).clamp(0, 1) for b in x.split(8)])
    return float((-10 * (out - x).square().mean((1, 2, 3)).log10()).mean())


def train(assets: Path, out: Path, minutes: float, freeze_encoder: bool, lr: float, seed: int):
    """Trains for `minutes` of wall time in all; resumes where a killed run stopped."""
    sides = pyramid(load_images(assets))
    torch.manual_seed(seed)
    model = Autoencoder(TRAINED_WIDTHS).to(memory_format=torch.channels_last)
    state = load_checkpoint(out / "autoencoder.pt")
    if freeze_encoder:
        if state is None:
            raise FileNotFoundError(
                f"--freeze-encoder continues {out / 'autoencoder.pt'}: train it first."
            )
        model.taesd_encoder.requires_grad_(False)
    path = out / ("decoder.pt" if freeze_encoder else "autoencoder.pt")
    average = ema_of(model, 0.998)
    optimiser = Optimisers(model, lr=lr)
    step, spent = 0, 0.0
    resumed = load_checkpoint(path)
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        average.load_state_dict(resumed["average"])
        optimiser.load_state_dict(resumed["optimiser"])
        step, spent = resumed["step"], resumed["seconds"]
    elif state is not None:
        model.load_state_dict(
            {k[len("module.") :]: v for k, v in state["average"].items() if "module." in k}
        )
    start = time.monotonic() - spent
    noise_level = 0.06
    running, last_log, last_save = 0.0, step, time.monotonic()
    while (elapsed := time.monotonic() - start) < 60 * minutes:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        progress = elapsed / (60 * minutes)
        optimiser.set_lr(
            min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress)) + 0.01
        )
        side = IMAGE_SIDES[int(torch.randint(4, (), generator=generator))]
        x = random_crops(sides[side], 16, generator).to(memory_format=torch.channels_last)
        noise = noise_level * torch.randn(
            16, LATENT_CHANNELS, CROP // 8, CROP // 8, generator=generator
        )
        with fast_autocast():
            z = model.encode(x).float()
            output = model.decode(z + noise).float()
        loss = reconstruction_loss(output, x)
        # Half of the steps decode the latent at a smaller size against the smaller image, so that
        # resizing a latent means resizing the picture: what the scale-wise sampler relies on.
        if step % 2 and not freeze_encoder:
            small = F.interpolate(z, scale_factor=0.5, mode="bicubic", antialias=True)
            with fast_autocast():
                output = model.decode(small).float()
            loss = loss + 0.5 * reconstruction_loss(output, F.avg_pool2d(x, 2))
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        loss = loss + 1e-2 * (mean.square() + var - var.clamp(min=1e-4).log()).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(model)
        step += 1
        running += loss.item()
        if step % 100 == 0:
            log.info("step %d %.1f min loss %.4f", step, elapsed / 60, running / (step - last_log))
            running, last_log = 0.0, step
        if time.monotonic() - last_save > 180:
            checkpoint(path, model, average, optimiser, step, elapsed)
            last_save = time.monotonic()
            log.info(
                "psnr %s", {s: round(psnr(average.module, sides[s][::24]), 2) for s in (128, 256)}
            )
    checkpoint(path, model, average, optimiser, step, time.monotonic() - start)
    export(average.module, out / "emoji_vae.safetensors")
    log.info(
        "final psnr %s", {s: round(psnr(average.module, sides[s][::6]), 2) for s in IMAGE_SIDES}
    )


def checkpoint(path, model, average, optimiser, step, seconds) -> None:
    save_checkpoint(
        path,
        {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": seconds,
        },
    )


def export(model: Autoencoder, path: Path) -> None:
    """Writes the host's format: widths padded, float16."""
    save_file({k: v.half().contiguous() for k, v in widen(model.state_dict()).items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="go on with the decoder alone"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(a.assets, a.out, a.minutes, a.freeze_encoder, a.lr, a.seed)


if __name__ == "__main__":
    main()
