"""The shown picture never stops a run: any schedule that can be built can be drawn."""

import random
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def plot(pack):
    return sys.modules["swd_pack.nodes.plot"].schedule_plot


def legal(pick: random.Random):
    """A schedule by its rules alone: scales may only grow to 1, sigmas fall and stay above 0."""
    from swd_pack.swd_core.schedule import ScaleSchedule

    steps = pick.choice([1, 1, 2, 3, 4, 6, 17, 60, 330, 1000])
    least = pick.choice([1e-6, 0.01, 0.2, 0.9])
    scales = sorted(pick.uniform(least, 1) for _ in range(steps - 1))
    kind = pick.choice(["flow", "timestep"])
    top = 1.0 if kind == "flow" else 1000.0
    levels = {top * 10 ** pick.uniform(-pick.choice([0.1, 3, 12]), 0) for _ in range(steps)}
    sigmas = sorted(levels, reverse=True)
    names = ["", "flux-4", "x" * 5000, "two\nlines", "\ud800 half", "\0", "日本語 🙂", "\t\r\n"]
    scales = [*scales, 1.0][-len(sigmas) :]
    return ScaleSchedule(tuple(scales), tuple(sigmas), kind, pick.choice(names))


@pytest.mark.parametrize("seed", range(60))
def test_any_legal_schedule_is_drawn(plot, seed):
    pick = random.Random(seed)
    schedule = legal(pick)
    multiple = pick.choice([1, 2, 4, 16])
    height, width = (multiple * pick.choice([1, 2, 16, 64, 1024]) for _ in range(2))
    frames = pick.choice([None, None, 1, 21])
    # In the model's own terms; SDXL's are of another size than its timesteps.
    factor = pick.choice([1.0, 14.6 / 1000, 80.0])
    sigmas = [factor * sigma for sigma in schedule.sigmas] + [0.0]
    image = plot(schedule, height, width, multiple, sigmas, frames)
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3
    assert image.shape[1] <= 4096, "a picture that a page can show"
    assert torch.isfinite(image).all() and 0 <= image.min() < image.max() <= 1


@pytest.mark.parametrize(
    ("steps", "cells"),
    [(4, (128, 128)), (6, (448, 448)), (4, (832, 832)), (330, (128, 128)), (1000, (4, 2048))],
)
def test_long_and_large_schedules_through_the_node(pack, small, models, steps, cells):
    """The sizes at which the extended plot of the embedded and the published students failed."""
    ladder = " ".join(f"{0.05 + 0.95 * i / (steps - 1):.9f}" for i in range(steps))
    levels = " ".join(f"{1 - 0.9 * i / steps:.9f}" for i in range(steps))
    latent = {"samples": torch.zeros(1, 16, *cells)}
    out = pack["SwDScaleSchedule"].execute(
        model=models["flux"], preset="custom", custom_sizes=ladder, custom_sigmas=levels,
        latent_image=latent, large_targets="extend",
    )  # fmt: skip
    schedule, sigmas, table, image = out.args
    assert len(sigmas) == schedule.steps + 1 and len(table.splitlines()) == schedule.steps + 3
    assert image.ndim == 4


@pytest.mark.parametrize("name", ["two\nlines", "\ud800 half", "x" * 5000, "\0", " \t "])
def test_a_students_odd_name_stops_nothing(pack, small, models, name):
    """A LoRA's header may call its schedule anything; the table and the page show it in a line."""
    from swd_pack.nodes._host_lora import ITS_SCHEDULE, OwnSchedule
    from swd_pack.swd_core.schedule import ScaleSchedule

    model = models["flux"].clone()
    odd = ScaleSchedule((0.5, 1.0), (1.0, 0.6), "flow", name)
    model.set_attachments(ITS_SCHEDULE, OwnSchedule(odd, name))
    out = pack["SwDScaleSchedule"].execute(
        model=model, preset="auto", custom_sizes="", custom_sigmas=""
    )
    assert len(out.args[2].splitlines()) == 5
    out.args[2].encode()
