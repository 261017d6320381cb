"""A run of three scales with a denoiser that costs nothing, and its drafts."""

from dataclasses import replace

import torch

from swd_core.drafts import Draft, Drafts
from swd_core.process import FlowMatching
from swd_core.sampling import sample_scalewise
from swd_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((0.5, 0.75, 1), (1.0, 0.8, 0.6), name="three")
SIZES = SCHEDULE.sizes(8, 12)


def denoise(x_t, sigma):
    """Any fixed nonlinear function of its input, image by image."""
    return torch.tanh(x_t) * (1 + sigma) - 0.1 * x_t.flip(-1)


def advance(d: Drafts, until: int) -> Drafts:
    made = []
    sample_scalewise(
        denoise, SCHEDULE.sigmas, SIZES, d.state, d.noise, process=FlowMatching(), until=until,
        like=torch.zeros(len(d.images), 4, 8, 12), on_step=lambda i, x_t, x0: made.append(x0),
    )  # fmt: skip
    return replace(d, scales=(*d.scales, *made), samples=made[-1] * 2)


def begin(count: int, seed: int = 7) -> Drafts:
    return Drafts(SCHEDULE, "test", (8, 12), tuple(Draft(seed, i) for i in range(count)))
