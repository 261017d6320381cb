"""When a picture grows: the paper's safe sizes, published figures, and delta by its definition."""

import json
import math

import pytest

from swd_core.growth import DELTAS, GrowthSchedule, Stretch
from swd_core.latent_law import PUBLISHED, LatentLaw

FLUX = PUBLISHED["FLUX.1"]
FULL = 128 * 128


def shifted(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """The host's flow schedule "simple", in short."""
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (1 - i / steps for i in range(steps)))


def difference_from_noise(power: float, sigma: float) -> float:
    """E (ideal velocity - noise)^2 of one frequency of flow matching, by its covariances.

    The ideal velocity is the linear regression of noise - x0 on x_t = (1 - sigma) x0 + sigma noise.
    """
    variance = (1 - sigma) ** 2 * power + sigma**2
    slope = (sigma - (1 - sigma) * power) / variance
    return slope**2 * variance - 2 * slope * sigma + 1


def level(odds: float) -> float:
    return odds / (1 + odds)


@pytest.mark.parametrize("law", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("delta", [0.001, 0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_delta_is_how_far_the_ideal_velocity_is_from_noise_where_a_size_is_left(law, delta, share):
    sigma = level(law.safe_odds(share, FULL, delta))
    assert difference_from_noise(law.power(share, FULL), sigma) == pytest.approx(delta)
    assert law.safe_share(sigma / (1 - sigma), FULL, delta) == pytest.approx(share)


def test_levels_of_the_published_law():
    """FLUX.1 at 1024 pixels, half size to full, by the constants and formula of the paper."""
    for delta, sigma in ((0.01, 0.853), (0.05, 0.718), (0.1, 0.638), (0.2, 0.544)):
        assert level(FLUX.safe_odds(0.5, FULL, delta)) == pytest.approx(sigma, abs=6e-4)


def test_power_grows_with_the_number_of_cells():
    """The same picture on more cells has more power in each of its frequencies."""
    for cells, factor in ((64**2, 0.25), (128**2, 1), (256**2, 4), (104 * 152, 104 * 152 / 128**2)):
        same_frequency = 0.5 * 128 / math.sqrt(cells)
        assert FLUX.power(same_frequency, cells) == pytest.approx(factor * FLUX.power(0.5, FULL))
    assert level(FLUX.safe_odds(0.5, 256**2, 0.01)) == pytest.approx(0.85, abs=0.01)


def test_where_the_students_leave_their_sizes():
    for side, sigma, delta in ((64, 0.8959, 0.005), (80, 0.7371, 0.025), (96, 0.6022, 0.057)):
        assert difference_from_noise(FLUX.power(side / 128, FULL), sigma) == pytest.approx(
            delta, abs=6e-4
        )


def test_safe_sizes_of_the_paper():
    """Of 128 cells: t=800: 32 safe, 16 not; t=600: 80 safe, 32 not; t=500: 96 safe, 48 not.

    They are those of FLUX.1's law at delta .12, within one patch step of 2 cells.
    """
    for sigma, unsafe, safe in ((0.8, 16, 32), (0.6, 32, 80), (0.5, 48, 96)):
        side = 2 * math.ceil(64 * FLUX.safe_share(sigma / (1 - sigma), FULL, 0.12))
        assert unsafe < side <= safe + 2


LAWS = [FLUX, PUBLISHED["Wan 2.1"], LatentLaw(3.0, 1.2, 24 * 24), LatentLaw(5e4, 3.5)]
TARGETS = [(128, 128, 2), (104, 152, 2), (192, 80, 2), (64, 64, 1), (30, 52, 2), (136, 136, 4)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_larger_delta_never_costs_more(law, target):
    deltas = [10 ** (-4 + i / 8) for i in range(32)]
    for sigmas in (shifted(8), shifted(25, 1.0), (1.0, 0.5)):
        for start, count in ((0.5, 2), (0.25, 4), (0.7, 3)):
            costs = [GrowthSchedule(sigmas, start, count, d, law).cost(*target) for d in deltas]
            assert costs == sorted(costs, reverse=True)
            assert costs[-1] <= len(sigmas)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("delta", DELTAS.values())
def test_every_step_runs_at_the_smallest_size_that_loses_little_enough(target, delta):
    height, width, multiple = target
    sigmas = shifted(25)
    growth = GrowthSchedule(sigmas, 0.25, 4, delta)
    sizes = growth.sizes(height, width, multiple)
    run = growth.stretches(height, width, multiple)
    assert [s.step for s in run] == [sum(s.steps for s in run[:i]) for i in range(len(run))]
    assert sum(s.steps for s in run) == 25 and run[-1].size == (height, width)
    assert [s.size for s in run] == [s for s in sizes if s in {s.size for s in run}]

    def loses(size: tuple[int, int], sigma: float) -> float:
        """By the worse of the two axes; the frequency is in cycles a square of as many cells."""
        share = min(size[0] / height, size[1] / width)
        frequency = share / 2 * math.sqrt(height * width)
        power = 203.615097 * frequency**-1.915461 * height * width / 128**2
        return difference_from_noise(power, sigma)

    for stretch in run:
        for step in range(stretch.step, stretch.step + stretch.steps):
            after = (*sigmas, 0.0)[step + 1]
            if stretch.size != (height, width):
                assert loses(stretch.size, after) <= delta * (1 + 1e-9)
            smaller = [s for s in sizes if s < stretch.size]
            assert all(loses(s, after) > delta for s in smaller)


def test_noise_over_signal_of_a_small_size_is_less_by_the_ratio_of_the_sides():
    sigmas = shifted(12)
    growth = GrowthSchedule(sigmas, 0.5, 3)
    run = growth.stretches(104, 152)
    assert len(run) == 3 and run[0].sigmas[0] == 1.0
    for stretch in run:
        ratio = (104 * 152 / math.prod(stretch.size)) ** 0.5
        for i, own in enumerate(stretch.sigmas):
            full = (*sigmas, 0.0)[stretch.step + i]
            if full < 1:
                assert own / (1 - own) == pytest.approx(full / (1 - full) / ratio)
    # The target's are the very numbers that were given.
    assert run[-1].sigmas == (*sigmas, 0.0)[run[-1].step :]


def test_levels_of_variance_exploding_models():
    sigmas = (14.6, 9.0, 5.0, 2.2, 1.2, 0.6)
    run = GrowthSchedule(sigmas, kind="exploding", top=14.6).stretches(128, 128)
    assert [s.size for s in run] == [(64, 64), (128, 128)]
    small, full = run
    # Pure noise stays what the model begins with; the rest is halved with the side.
    assert small.sigmas == (14.6, *(s / 2 for s in sigmas[1 : small.steps + 1]))
    assert full.sigmas == (*sigmas, 0.0)[full.step :]
    # sigma / (1 - sigma) of flow matching is sigma here, so both change size at the same place.
    flow = GrowthSchedule((1.0, *(s / (1 + s) for s in sigmas[1:]))).stretches(128, 128)
    assert [s.steps for s in flow] == [s.steps for s in run]


def test_a_model_s_own_noise_scale_hides_more():
    costs = [
        GrowthSchedule(shifted(25), 0.25, 4, noise_scale=scale).cost(128, 128)
        for scale in (1, 2, 8)
    ]
    assert costs[0] > costs[1] > costs[2]
    law = LatentLaw(FLUX.amplitude / 4, FLUX.exponent)
    by_law, by_scale = (
        GrowthSchedule(shifted(25), delta=1e-4, law=law).stretches(128, 128),
        GrowthSchedule(shifted(25), delta=4e-4, noise_scale=2.0).stretches(128, 128),
    )
    assert [s.size for s in by_law] == [s.size for s in by_scale]


@pytest.mark.parametrize("lift", ["swd", "pixels"])
def test_lifts_with_fresh_noise_keep_the_levels_as_they_are(lift):
    sigmas = shifted(8)
    run = GrowthSchedule(sigmas, lift=lift).stretches(128, 128)
    assert len(run) == 2
    assert (*run[0].sigmas[:-1], *run[1].sigmas) == (*sigmas, 0.0)


def test_sizes_are_whole_patches_and_merge_where_rounding_makes_them_alike():
    assert GrowthSchedule((1.0,), 0.5, 3).sizes(128, 128) == [(64, 64), (90, 90), (128, 128)]
    assert GrowthSchedule((1.0,), 0.5, 2).sizes(104, 152, 4) == [(52, 76), (104, 152)]
    assert GrowthSchedule((1.0,), 0.5, 8).sizes(8, 8, 4) == [(4, 4), (8, 8)]
    assert GrowthSchedule((1.0,), 0.95, 5).sizes(16, 16) == [(16, 16)]
    assert GrowthSchedule((1.0,), 1.0, 4).sizes(64, 48) == [(64, 48)]
    assert GrowthSchedule((1.0,), 0.3, 1).sizes(64, 48) == [(64, 48)]
    # No side below what the model and its VAE can take, nor above the target.
    assert GrowthSchedule((1.0,), 0.1, 3).sizes(64, 192, 2, least=15) == [
        (16, 20), (20, 60), (64, 192),
    ]  # fmt: skip
    assert GrowthSchedule((1.0,), 0.1, 3).sizes(8, 8, 2, least=15) == [(8, 8)]
    with pytest.raises(ValueError, match="latent width 63 is not a positive multiple of 2"):
        GrowthSchedule((1.0,)).sizes(64, 63)


def test_a_run_of_one_size_is_the_schedule_itself():
    sigmas = shifted(10)
    for growth in (GrowthSchedule(sigmas, 1.0), GrowthSchedule(sigmas, 0.5, 1)):
        assert growth.stretches(64, 48) == (Stretch((64, 48), (*sigmas, 0.0), 0),)
        assert growth.cost(64, 48) == 10


def test_almost_no_noise_hides_nothing():
    for odds in (1e-300, 1e-12, 1e-5):
        assert FLUX.safe_share(odds, FULL, 0.05) == 1
    run = GrowthSchedule((1.0, 0.9, 1e-9)).stretches(64, 64)
    assert [(s.size, s.steps) for s in run] == [((32, 32), 1), ((64, 64), 2)]


def test_one_step_runs_at_full_size():
    assert GrowthSchedule((1.0,)).stretches(64, 64) == (Stretch((64, 64), (1.0, 0.0), 0),)


def test_costs_are_cells():
    growth = GrowthSchedule(shifted(8), 0.5, 2, 0.05)
    small, full = growth.stretches(128, 128)
    assert (small.steps, full.steps) == (4, 4)  # .75 is the last level above .718
    assert growth.cost(128, 128) == 4 / 4 + 4


def test_levels_may_be_cut_or_come_from_another_scheduler():
    growth = GrowthSchedule(shifted(25), 0.25, 3)
    whole = growth.stretches(128, 128)
    steps = [(s.size, pair) for s in whole for pair in zip(s.sigmas, s.sigmas[1:], strict=False)]
    given = (*growth.sigmas, 0.0)
    for cut in (1, 9, 14, 24):
        parts = (given[: cut + 1], given[cut:])
        found = [
            (s.size, pair)
            for part in parts
            for s in growth.stretches(128, 128, sigmas=part)
            for pair in zip(s.sigmas, s.sigmas[1:], strict=False)
        ]
        assert found == steps
    from_below = growth.stretches(128, 128, sigmas=(0.5, 0.25, 0.0))
    assert [s.size for s in from_below] == [(128, 128)]


def test_a_video_keeps_its_frames():
    run = GrowthSchedule(shifted(8)).stretches(60, 104, frames=21)
    assert [s.size for s in run] == [(21, 30, 52), (21, 60, 104)]


def test_a_size_with_too_few_steps_for_a_solver_takes_from_the_one_before():
    growth = GrowthSchedule(shifted(12), 0.25, 4, 0.02)
    lengths = [s.steps for s in growth.stretches(128, 128)]
    assert min(lengths) == 1
    for shortest in (2, 3, 5, 12, 20):
        run = growth.stretches(128, 128, shortest=shortest)
        assert sum(s.steps for s in run) == 12
        assert len(run) == 1 or min(s.steps for s in run) >= shortest
        # No step at a smaller size than it is safe at.
        plain = [s.size for s in growth.stretches(128, 128) for _ in range(s.steps)]
        moved = [s.size for s in run for _ in range(s.steps)]
        assert all(a <= b for a, b in zip(plain, moved, strict=True))


def test_it_travels_as_plain_data():
    growth = GrowthSchedule(
        shifted(5), 0.4, 3, 0.02, LatentLaw(9.0, 2.1, 400, "mine", "measured"), "pixels", name="n"
    )
    assert GrowthSchedule.from_dict(json.loads(json.dumps(growth.to_dict()))) == growth
    assert GrowthSchedule.from_dict({"sigmas": [1.0, 0.5]}) == GrowthSchedule((1.0, 0.5))
    for broken in ({}, [1], {"sigmas": [1.0], "scales": [1]}):
        with pytest.raises(ValueError, match="growth schedule is an object with sigmas"):
            GrowthSchedule.from_dict(broken)
    with pytest.raises(ValueError, match="law is damaged"):
        GrowthSchedule.from_dict({"sigmas": [1.0], "law": {"amplitude": 2}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0}, "delta must be a number above 0"),
        ({"delta": 1}, "delta 1 would lose everything"),
        ({"delta": float("nan")}, "delta must be a number"),
        ({"start": 0}, "start must be a number above 0"),
        ({"start": 1.5}, "start must be a number above 0, up to 1"),
        ({"count": 0}, "count is 0; grow over 1 to 8 sizes"),
        ({"count": 2.0}, "count is 2.0"),
        ({"count": True}, "count is True"),
        ({"lift": "magic"}, "lift 'magic' is unknown"),
        ({"kind": "v"}, "kind 'v' is unknown"),
        ({"noise_scale": 0}, "noise_scale must be a number above 0"),
        ({"sigmas": ()}, "sigmas has 0 values"),
        ({"sigmas": (1.0, 0.5, 0.0)}, "Step 3: sigma 0 is not above the next, 0"),
        ({"sigmas": (0.5, 0.7)}, "Step 1: sigma 0.5 is not above the next, 0.7"),
        ({"sigmas": (14.6, 7.0)}, "above pure noise, 1: these are levels of another kind"),
    ],
)
def test_a_bad_schedule_can_t_be_built(settings, message):
    with pytest.raises(ValueError, match=message):
        GrowthSchedule(**{"sigmas": (1.0, 0.5), **settings})


@pytest.mark.parametrize("numbers", [(0, 2), (1, -1), (float("nan"), 2), (1, float("inf"))])
def test_a_law_that_does_not_fall_can_t_be_built(numbers):
    with pytest.raises(ValueError, match="must be above 0"):
        LatentLaw(*numbers)


@pytest.mark.parametrize("kind", ["flow", "exploding"])
def test_a_level_and_a_grids_own_stand_for_each_other(kind):
    """Noise over signal is twice as much on the grid of twice the side."""
    top = 1.0 if kind == "flow" else 14.6
    growth = GrowthSchedule((top, top / 2), kind=kind, top=top, solver="dpmpp_2m")
    for sigma in (0.9 * top, 0.5 * top, 0.02 * top):
        own = growth.own(sigma, 2.0)
        odds = [s / (1 - s) if kind == "flow" else s for s in (own, sigma)]
        assert odds[1] == pytest.approx(2 * odds[0])
        assert growth.full(own, 2.0) == pytest.approx(sigma)
    assert growth.own(top, 2.0) == top and growth.own(0.0, 2.0) == 0
    assert GrowthSchedule.from_dict(growth.to_dict()) == growth
