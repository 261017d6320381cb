"""How tensors of the CPU get to another device; torch's device without numbers is one here."""

from dataclasses import dataclass, field

import pytest
import torch
from card_copies import CARD, Copies

from swd_core.growing import GrowthState, euler, sample_growing
from swd_core.lifts import lift_swd
from swd_core.noise import SeededNoise
from swd_core.process import FlowMatching
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.schedule import ScaleSchedule
from swd_core.transfer import sent

SCHEDULE = ScaleSchedule((0.5, 0.75, 1.0), (1.0, 0.9, 0.7))


@dataclass
class Noted:
    """A tensor that writes down where it goes."""

    device: torch.device = torch.device("cpu")
    went: list = field(default_factory=list)

    def contiguous(self):
        return self

    def pin_memory(self):
        self.went.append("pinned")
        return self

    def to(self, device, non_blocking=False):
        self.went.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("first", "then", "went"),
    [
        ("cpu", "cuda", ["pinned", ("cuda", True)]),
        ("cuda", "cuda", [("cuda", False)]),
        ("cpu", "mps", [("mps", False)]),
        ("cpu", "cpu", [("cpu", False)]),
    ],
)
def test_only_pinned_memory_is_not_waited_for(first, then, went):
    """A card's driver waits for its queue with any other; MPS reads it when it may be gone."""
    tensor = Noted(torch.device(first))
    sent(tensor, torch.device(then))
    assert tensor.went == went


@pytest.mark.parametrize("growing", [False, True])
def test_a_runs_noise_is_sent(growing):
    """Drawn on the CPU for every size, each in memory that is free again at once."""
    like, noise = torch.zeros(1, 4, 16, 16, device=CARD), SeededNoise(5, (0,))
    sizes, process = SCHEDULE.sizes(16, 16), FlowMatching()

    def denoise(x, sigma):
        return x * sigma

    with Copies() as copies:
        if growing:
            sample_growing(
                euler(denoise), SCHEDULE.stretches(16, 16), GrowthState(), noise, process=process,
                lift=lambda *a: lift_swd(*a, process=process), like=like,
            )  # fmt: skip
        else:
            sample_scalewise(
                denoise, SCHEDULE.sigmas, sizes, ScaleState(), noise, process=process, like=like
            )
    assert [copy.hurried for copy in copies.seen] == [False] * 3
