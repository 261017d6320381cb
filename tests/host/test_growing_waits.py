"""What a growing run waits for: on a graphics card every number that is read stops the queue."""

from collections import Counter

import pytest
import torch
from grown import growth, sample, sampler_of
from paper import guided
from torch.utils._python_dispatch import TorchDispatchMode

SIZE = (32, 24)
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


class Reads(TorchDispatchMode):
    """Counts what would need the device's answer."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "res_multistep", "lcm"])
@pytest.mark.parametrize("family", ["sd35-medium", "flux", "sdxl"])
def test_a_step_waits_no_more_than_the_hosts_own(pack, small, models, family, solver):
    """What doubling the steps adds is what it adds to the host's sampler, over two sizes as one."""
    import comfy.samplers

    model, cond = models[family], guided(small, family)
    latent = torch.zeros(1, small.KINDS[family].channels, *SIZE)

    def reads(steps, ours):
        schedule, sigmas, *_ = growth(pack, model, latent, steps=steps, sampler_name=solver)
        multiple = small.KINDS[family].multiple
        assert len(schedule.stretches(*SIZE, multiple)) == 2
        own = sampler_of(pack, schedule)
        sampler = own if ours else comfy.samplers.sampler_object(solver)
        with Reads() as counted:
            sample(model, sampler, sigmas, cond, latent)
        return counted.seen

    ours, theirs = (reads(12, own).total() - reads(6, own).total() for own in (True, False))
    assert ours <= theirs


def test_a_number_that_is_read_is_counted():
    with Reads() as counted:
        float(torch.ones(()))
    assert counted.seen.total() == 1
