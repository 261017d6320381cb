"""Ladders made longer for targets beyond the trained size."""

import math

import pytest

from swd_core.extend import extend_schedule
from swd_core.presets import presets
from swd_core.schedule import ScaleSchedule

FLUX, SDXL = presets()["flux-4"].schedule, presets()["sdxl-4"].schedule


def sdxl_sigma(t: float) -> float:
    """SDXL's noise level at a whole timestep, from its published betas."""
    kept = 1.0
    for i in range(int(t) + 1):
        kept *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
    return math.sqrt((1 - kept) / kept)


@pytest.mark.parametrize(
    ("target", "sides"),
    [
        (1280, [64, 80, 96, 128, 160]),
        (1536, [64, 80, 96, 128, 192]),
        (2048, [64, 80, 96, 128, 182, 256]),
        (3072, [64, 80, 96, 128, 184, 266, 384]),
        (4096, [64, 80, 96, 128, 182, 256, 362, 512]),
    ],
)
def test_the_trained_sizes_stay_and_more_follow(target, sides):
    longer = extend_schedule(FLUX, target // 8, target // 8, trained=128)
    assert longer.sizes(target // 8, target // 8) == [(side, side) for side in sides]
    assert longer.sigmas[:4] == FLUX.sigmas
    assert longer.name == "flux-4 extended"


@pytest.mark.parametrize("size", [(512, 128), (128, 512), (160, 240), (256, 448), (512, 512)])
@pytest.mark.parametrize("schedule", [FLUX, SDXL, presets()["sd35-medium-6"].schedule])
def test_other_formats_count_by_their_area(schedule, size):
    """The last trained step has the trained number of cells, whatever the format."""
    multiple = 4 if schedule is SDXL else 2
    longer = extend_schedule(schedule, *size, trained=128)
    sizes = longer.sizes(*size, multiple)
    trained = sizes[schedule.steps - 1]
    assert trained[0] * trained[1] == pytest.approx(128 * 128, rel=0.05)
    assert sizes[-1] == size and sizes == sorted(sizes)
    growth = [b / a for a, b in zip(longer.scales, longer.scales[1:], strict=False)]
    added = growth[schedule.steps - 1 :]
    assert added and max(added) <= 1.5 + 1e-9 and min(added) >= 1.1
    assert added == pytest.approx([added[0]] * len(added)), "steps of even growth"


def test_noise_falls_with_the_square_root_of_the_size():
    """By hand: 0.6007 / 0.3993 = 1.5044; over 2^(1/4) it is 1.2650, over 2^(1/2) 1.0638."""
    assert extend_schedule(FLUX, 256, 256, 128).sigmas[4:] == pytest.approx(
        (0.5585, 0.5154), abs=1e-4
    )
    assert extend_schedule(FLUX, 512, 512, 128).sigmas[-1] == pytest.approx(0.4293, abs=1e-4)


def test_sdxls_timesteps_fall_by_the_same_rule():
    longer = extend_schedule(SDXL, 256, 256, 128)
    assert longer.sigma_kind == "timestep" and longer.sigmas[:4] == SDXL.sigmas
    for t, growth in zip(longer.sigmas[4:], (2**0.5, 2), strict=True):
        low, high = sdxl_sigma(math.floor(t)), sdxl_sigma(math.ceil(t))
        wanted = sdxl_sigma(400) / growth**0.5
        assert low <= wanted <= high, (t, low, wanted, high)


def test_the_largest_timestep_is_read_as_the_last_of_the_table():
    one = ScaleSchedule((1.0,), (1000.0,), "timestep")
    t = extend_schedule(one, 256, 256, 128).sigmas[-1]
    assert sdxl_sigma(math.floor(t)) <= sdxl_sigma(999) / 2**0.5 <= sdxl_sigma(math.ceil(t))


def test_pure_noise_is_no_level_to_go_on_from():
    with pytest.raises(ValueError, match="ends at pure noise"):
        extend_schedule(ScaleSchedule((1.0,), (1.0,)), 256, 256, 128)


@pytest.mark.parametrize("size", [(128, 128), (32, 32), (96, 168), (128, 136), (140, 140)])
def test_targets_up_to_the_trained_size_keep_the_schedule(size):
    """A tenth more in side is still the trained size: its own steps grow by more."""
    assert extend_schedule(FLUX, *size, trained=128) == FLUX


@pytest.mark.parametrize("trained", [0, -1])
def test_no_trained_size_is_refused(trained):
    with pytest.raises(ValueError, match="trained"):
        extend_schedule(FLUX, 256, 256, trained)
