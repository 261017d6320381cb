"""Trains the embedded autoencoder on emoji crops at every image scale of the schedule."""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.average import ema_of
from ..distill.checkpoint import load_checkpoint, resume_training, save_training
from ..distill.optim import Optimisers
from ..distill.precision import fast_autocast
from ..distill.stopping import stoppable
from ..spectrum import top_octave_ratio
from ..tensor_files import save_tensors
from .autoencoder import LATENT_CHANNELS, Autoencoder, widen
from .data import load_images
from .detail import detail_loss, pyramid

log = logging.getLogger(__name__)
IMAGE_SIDES = (128, 160, 192, 256)
CROP = 64
NOISE = 0.06  # on the latents, so that small errors in them do no harm
TRAINED_WIDTHS = (24, 40, 64, 64)  # narrow at high resolution: three times faster on a CPU


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
def quality(model: Autoencoder, images: Tensor) -> dict[str, float]:
    """Mean PSNR in dB over pictures (N, 3, H, W), uint8, and the ratio of their top octaves."""
    x = images.float() / 255
    out = torch.cat([model.decode(model.encode(b)).clamp(0, 1) for b in x.split(8)])
    decibels = -10 * (out - x).square().mean((1, 2, 3)).log10()
    return {
        "psnr": round(float(decibels.mean()), 2),
        "top_octave": round(top_octave_ratio(out.mean(1, True), x.mean(1, True)), 3),
    }


def start_model(out: Path, freeze_encoder: bool) -> Autoencoder:
    """A new autoencoder, or the trained one with only its decoder left to train."""
    model = Autoencoder(TRAINED_WIDTHS).to(memory_format=torch.channels_last)
    if freeze_encoder:
        state = load_checkpoint(out / "autoencoder.pt")
        if state is None:
            raise FileNotFoundError(
                f"--freeze-encoder continues {out / 'autoencoder.pt'}: train it first."
            )
        average = {k.removeprefix("module."): v for k, v in state["average"].items()}
        average.pop("n_averaged")
        model.load_state_dict(average)
        model.taesd_encoder.requires_grad_(False)
    return model


def train(
    assets: Path,
    out: Path,
    minutes: float,
    freeze_encoder: bool = False,
    lr: float = 2e-3,
    seed: int = 0,
    detail: float = 8.0,
) -> None:
    """Trains for `minutes` of wall time in all; resumes where a killed run stopped.

    Args:
        freeze_encoder: trains the decoder alone: latents stay as they are, and so do the teacher
            and the students that were trained on them.
        detail: weight of `detail_loss` then.
    """
    sides = pyramid(load_images(assets), IMAGE_SIDES)
    torch.manual_seed(seed)
    model = start_model(out, freeze_encoder)
    path = out / ("decoder.pt" if freeze_encoder else "autoencoder.pt")
    average = ema_of(model, 0.998)
    optimiser = Optimisers(model, lr=lr)
    parts = {"model": model, "average": average, "optimiser": optimiser}
    step, spent = resume_training(path, parts)
    start = time.monotonic() - spent
    running, last_log, last_save = 0.0, step, time.monotonic()
    with stoppable() as stopped:
        while (elapsed := time.monotonic() - start) < 60 * minutes and not stopped():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            progress = elapsed / (60 * minutes)
            optimiser.set_lr(
                min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress)) + 0.01
            )
            side = IMAGE_SIDES[int(torch.randint(4, (), generator=generator))]
            x = random_crops(sides[side], 16, generator).to(memory_format=torch.channels_last)
            noise = NOISE * torch.randn(
                16, LATENT_CHANNELS, CROP // 8, CROP // 8, generator=generator
            )
            if freeze_encoder:
                loss = decoder_loss(model, x, noise, detail)
            else:
                loss = whole_loss(model, x, noise, resized=step % 2 == 1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            step += 1
            running += loss.item()
            if step % 100 == 0:
                mean = running / (step - last_log)
                log.info("step %d %.1f min loss %.4f", step, elapsed / 60, mean)
                running, last_log = 0.0, step
            if time.monotonic() - last_save > 180:
                save_training(path, parts, step, elapsed)
                last_save = time.monotonic()
                log.info("%s", {s: quality(average.module, sides[s][::24]) for s in (128, 256)})
    save_training(path, parts, step, time.monotonic() - start)
    export(average.module, out / "emoji_vae.safetensors")
    log.info("final %s", {s: quality(average.module, sides[s][::6]) for s in IMAGE_SIDES})


def decoder_loss(model: Autoencoder, x: Tensor, noise: Tensor, detail: float) -> Tensor:
    with torch.no_grad(), fast_autocast():
        z = model.encode(x).float()
    with fast_autocast():
        output = model.decode(z + noise).float()
    return reconstruction_loss(output, x) + detail * detail_loss(output, x)


def whole_loss(model: Autoencoder, x: Tensor, noise: Tensor, resized: bool) -> Tensor:
    """Reconstruction and zero mean, unit variance of the latents.

    resized: decodes the latent at half its size against the half-size picture too, so that resizing
    a latent means resizing the picture: what the scale-wise sampler relies on.
    """
    with fast_autocast():
        z = model.encode(x).float()
        output = model.decode(z + noise).float()
    loss = reconstruction_loss(output, x)
    if resized:
        small = F.interpolate(z, scale_factor=0.5, mode="bicubic", antialias=True)
        with fast_autocast():
            output = model.decode(small).float()
        loss = loss + 0.5 * reconstruction_loss(output, F.avg_pool2d(x, 2))
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
    return loss + 1e-2 * (mean.square() + var - var.clamp(min=1e-4).log()).mean()


def export(model: Autoencoder, path: Path) -> None:
    """Writes the host's format: widths padded, float16."""
    save_tensors(path, {k: v.half() for k, v in widen(model.state_dict()).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, help="assets folder of @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="go on with the decoder alone"
    )
    parser.add_argument("--detail", type=float, default=8.0, help="with --freeze-encoder")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(a.assets, a.out, a.minutes, a.freeze_encoder, a.lr, a.seed, a.detail)


if __name__ == "__main__":
    main()
