"""Growing runs by formulas of their own: levels by odds, grids by scipy's DCT, host solvers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import scipy.fft
import torch
from chain import call, cfg_guider
from paper import SEED
from torch import Tensor


def grid(x: Tensor, size: Sequence[int]) -> Tensor:
    """x with the DCT coefficients that both grids have, all others 0."""
    waves = torch.from_numpy(scipy.fft.dctn(x.double().cpu().numpy(), axes=(-2, -1), norm="ortho"))
    out = torch.zeros(*x.shape[:-2], *size, dtype=torch.float64)
    rows, columns = (min(a, b) for a, b in zip(x.shape[-2:], size, strict=True))
    out[..., :rows, :columns] = waves[..., :rows, :columns]
    return torch.from_numpy(scipy.fft.idctn(out.numpy(), axes=(-2, -1), norm="ortho"))


def own_level(sigma: float, ratio: float, flow: bool) -> float:
    """The level whose noise over signal is `ratio` times less; pure noise stays it."""
    if not flow:
        return sigma / ratio
    return 1.0 if sigma >= 1 else (odds := sigma / (1 - sigma) / ratio) / (1 + odds)


def host_noise(channels: int, size: Sequence[int], seed: int = SEED, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, generator=generator)


def sample(
    model: Any, sampler: Any, sigmas: Tensor, positive: list, latent: Tensor, *,
    noise: Tensor | None = None, negative: list | None = None, cfg: float = 1.0,
    mask: Tensor | None = None, callback: Any = None, seed: int = SEED,
) -> Tensor:  # fmt: skip
    """One sampling call of the host's guider; no noise is that of RandomNoise."""
    noise = (
        host_noise(latent.shape[1], latent.shape[2:], seed, len(latent)) if noise is None else noise
    )
    with torch.inference_mode():
        return cfg_guider(model, positive, negative, cfg).sample(
            noise, latent, sampler, sigmas.clone(), denoise_mask=mask, callback=callback,
            disable_pbar=True, seed=seed,
        ).cpu()  # fmt: skip


def host_chain(
    model: Any, sampler: Callable[[], Any], sigmas: list[float], cut: int,
    small: Sequence[int], target: Sequence[int], positive: Any, noise: Tensor,
    scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """The first `cut` steps at the small size, the lift, the rest at the target: two host runs.

    scale: what the model multiplies its noise by. positive: CONDITIONING, or a function that makes
    it for a size.
    """
    flow = sigmas[0] <= 1
    cond = positive if callable(positive) else lambda size: positive
    ratio = math.sqrt(math.prod(target) / math.prod(small))
    own = [sigmas[0], *(own_level(s, ratio, flow) for s in sigmas[1 : cut + 1])]
    base = model.model
    empty = torch.zeros(*noise.shape[:-2], *small)
    out = sample(
        model, sampler(), torch.tensor(own), cond(small), empty, noise=grid(noise, small).float()
    )
    x = base.process_latent_in(out).double()
    before, after = own[cut], sigmas[cut]
    x = x * (1 - before) if flow else x  # the host divides it out at a run's end
    # The picture's own frequencies are as they were, but for the amplitude; the others are noise
    # of the run's level.
    signal = ((1 - after) / (1 - before) if flow else 1.0) * ratio
    high = noise.double() - grid(grid(noise, small), target)
    x = signal * grid(x, target) + after * scale * high
    given = base.process_latent_out((x / (1 - after) if flow else x).float())
    return sample(
        model, sampler(), torch.tensor(sigmas[cut:]), cond(target), given,
        noise=torch.zeros_like(given),
    )  # fmt: skip


def growth(pack: Any, model: Any, latent: Tensor | None = None, **widgets: Any) -> tuple:
    """The outputs of SwD Growth Schedule."""
    given = {
        "sampler_name": "euler", "scheduler": "simple", "steps": 6, "start_size": 0.5, "sizes": 2,
        "tolerance": "custom", "custom_tolerance": 0.9, "lift": "auto", **widgets,
    }  # fmt: skip
    latent = None if latent is None else {"samples": latent}
    return pack["SwDGrowthSchedule"].execute(model=model, latent_image=latent, **given).args


def sampler_of(pack: Any, schedule: Any, sampler: Any = None) -> Any:
    return call(pack["SwDSampler"], schedule=schedule, upscale_method="bicubic", sampler=sampler)
