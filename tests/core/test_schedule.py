"""Schedules: sizes, cost, errors, presets."""

import json
import math

import pytest

from swd_core.presets import parse_preset, presets, read_presets
from swd_core.schedule import ScaleSchedule

FOUR = ScaleSchedule((0.5, 0.625, 0.75, 1.0), (1.0, 0.8959, 0.7371, 0.6022))

# What paper and repository say, typed in by hand: latent sides for 1024 px, noise levels.
PUBLISHED = {
    "sd35-medium-4": ([64, 80, 96, 128], [1, 0.8959, 0.7371, 0.6022]),
    "sd35-medium-6": ([32, 48, 64, 80, 96, 128], [1, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022]),
    "sd35-medium-4-2025": ([32, 64, 96, 128], [1, 0.9454, 0.7904, 0.6022]),
    "sd35-large-4": ([64, 80, 96, 128], [1, 0.8959, 0.7371, 0.6022]),
    "sd35-large-6-2025": ([32, 48, 64, 80, 96, 128], [1, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022]),
    "flux-4": ([64, 80, 96, 128], [1, 0.8956, 0.7363, 0.6007]),
    "flux-4-paper": ([32, 64, 96, 128], [1, 0.945, 0.790, 0.602]),
    "sdxl-4": ([64, 80, 96, 128], [1000, 800, 600, 400]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_what_was_published(name):
    sides, sigmas = PUBLISHED[name]
    preset = presets()[name]
    assert preset.schedule.sizes(128, 128, preset.multiple) == [(s, s) for s in sides]
    assert list(preset.schedule.sigmas) == sigmas
    assert preset.schedule.sigma_kind == ("timestep" if name == "sdxl-4" else "flow")
    assert preset.target == 1024
    assert preset.schedule.name == name


def test_video_preset_is_what_was_published():
    preset = presets()["wan21-1.3b-4"]
    assert preset.latent_target() == (21, 60, 104), "81 pictures of 832 x 480"
    cells = [(6, 20, 34), (11, 30, 52), (16, 40, 70), (21, 60, 104)]
    assert preset.schedule.sizes(60, 104, preset.multiple, frames=21) == cells
    assert preset.schedule.sizes(60, 104, preset.multiple) == [size[1:] for size in cells]
    volumes = [t * h * w for t, h, w in cells]
    costs = preset.schedule.step_costs(60, 104, preset.multiple, frames=21)
    assert costs == [v / volumes[-1] for v in volumes]
    assert preset.schedule.cost(60, 104, preset.multiple, frames=21) == sum(costs)
    assert list(preset.schedule.sigmas) == [1, 0.896, 0.737, 0.602]


def film(*frames: float) -> ScaleSchedule:
    return ScaleSchedule((0.5, 0.75, 1), (1, 0.8, 0.6), frames=frames)


@pytest.mark.parametrize(
    ("target", "frames"),
    [(1, [1, 1, 1]), (2, [1, 2, 2]), (5, [2, 3, 5]), (21, [6, 11, 21]), (41, [11, 21, 41])],
)
def test_the_first_latent_frame_is_always_there(target, frames):
    """A causal VAE's first latent frame is one picture, each later one four."""
    sizes = film(0.25, 0.5, 1).sizes(8, 8, frames=target)
    assert sizes == [(t, side, side) for t, side in zip(frames, (4, 6, 8), strict=True)]


def test_frames_never_fall_and_end_exactly_at_the_target():
    schedule = film(0, 0.37, 1)
    for target in range(1, 200):
        times = [t for t, _, _ in schedule.sizes(8, 8, frames=target)]
        assert times == sorted(times) and times[0] == 1 and times[-1] == target
    with pytest.raises(ValueError, match="0 frames"):
        schedule.sizes(8, 8, frames=0)


@pytest.mark.parametrize("frames", [None, (), (1, 1, 1)])
def test_no_frames_are_all_frames_throughout(frames):
    schedule = ScaleSchedule((0.5, 0.75, 1), (1, 0.8, 0.6), frames=frames)
    assert schedule == film() and schedule.frames == ()
    assert schedule.sizes(8, 8, frames=5) == [(5, 4, 4), (5, 6, 6), (5, 8, 8)]
    assert "frames" not in schedule.to_dict(), "older versions read it"
    schedule.check_picture()


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ((0.5, 1), "2 frames but 3 scales"),
        ((0.5, 0.25, 1), "Step 2: frames 0.25 is below step 1's 0.5"),
        ((0.5, 0.75, 0.9), "Step 3: the last of frames is 0.9"),
        ((-0.1, 0.5, 1), "Step 1: frames -0.1 is outside"),
        ((0.5, 2, 1), "Step 2: frames 2 is outside"),
        ((0.5, math.nan, 1), "frames, step 2"),
        ("half", "frames must be a list"),
        (3, "frames must be a list"),
    ],
)
def test_bad_frames_name_the_step_and_the_rule(frames, says):
    with pytest.raises(ValueError, match=says):
        ScaleSchedule((0.5, 0.75, 1), (1, 0.8, 0.6), frames=frames)


def test_a_schedule_for_videos_travels_as_json_and_refuses_pictures():
    schedule = film(0.25, 0.5, 1)
    assert ScaleSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    with pytest.raises(ValueError, match="this is a picture"):
        schedule.check_picture()


def test_the_embedded_preset_is_the_schedule_it_is_trained_with():
    preset = presets()["scenes-4"]
    assert preset.schedule.sizes(32, 32) == [(16, 16), (20, 20), (24, 24), (32, 32)]
    assert preset.schedule.sigmas == FOUR.sigmas
    assert preset.target == 256


def test_sizes_are_multiples_of_the_models_patch():
    for preset in presets().values():
        # FLUX.2's cells are its tokens; SDXL shrinks its latents twice.
        assert preset.multiple == {"sdxl": 4, "flux2-klein": 1}.get(preset.family, 2)


def test_one_preset_per_family_is_chosen_by_itself():
    chosen = [p.family for p in presets().values() if p.auto]
    assert sorted(chosen) == ["flux", "scenes", "sd35-large", "sd35-medium", "sdxl", "wan"]


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("sd35-medium-4", 2.20),
        ("sd35-medium-4-2025", 1.875),
        ("sd35-medium-6", 2.41),
        ("scenes-4", 2.20),
    ],
)
def test_cost_in_full_size_steps(name, cost):
    preset = presets()[name]
    side = preset.target // 8
    assert preset.schedule.cost(side, side) == pytest.approx(cost, abs=0.01)


def test_share_done_after_each_step():
    costs = FOUR.step_costs(128, 128)
    done = [round(100 * sum(costs[:k]) / sum(costs)) for k in (1, 2, 3, 4)]
    assert done == [11, 29, 55, 100]


@pytest.mark.parametrize(
    ("target", "multiple", "sizes"),
    [
        # 64x36 times 1.25 would be 80x45, which no model with patch 2 takes.
        ((72, 128), 2, [(36, 64), (46, 80), (54, 96), (72, 128)]),
        ((96, 168), 2, [(48, 84), (60, 106), (72, 126), (96, 168)]),
        ((96, 168), 4, [(48, 84), (60, 104), (72, 128), (96, 168)]),
        ((4, 4), 4, [(4, 4)] * 4),
    ],
)
def test_sizes_of_other_ratios(target, multiple, sizes):
    got = FOUR.sizes(*target, multiple)
    assert got == sizes
    assert all(side % multiple == 0 for size in got for side in size)


def test_sizes_never_shrink_and_end_exactly_at_the_target():
    for name in ("sd35-medium-6", "sdxl-4", "wan21-1.3b-4"):
        schedule, multiple = presets()[name].schedule, presets()[name].multiple
        for height in range(multiple, 200, multiple):
            sizes = schedule.sizes(height, 128, multiple)
            assert sizes == sorted(sizes)
            assert sizes[-1] == (height, 128)
            assert min(sizes)[0] >= multiple


@pytest.mark.parametrize(
    ("target", "named"), [((63, 64), "height 63"), ((64, 0), "width 0"), ((-2, 64), "height -2")]
)
def test_target_that_is_no_multiple_is_refused(target, named):
    with pytest.raises(ValueError, match=named):
        FOUR.sizes(*target)


LONG = [1.0] * 1001
BAD = [
    ((), (), "0 values"),
    (LONG, LONG, "1001 values"),
    ((0.5, 1), (1.0,), "2 scales but 1 sigmas"),
    ((0.5, 1), (1.0, 0.5, 0.0), "final 0"),
    ((0.75, 0.5, 1), (1.0, 0.8, 0.6), "Step 2: scale 0.5 is below step 1's 0.75"),
    ((0.5, 1), (0.6, 0.8), "Step 2: sigma 0.8 is not below step 1's 0.6"),
    ((0.5, 1), (0.8, 0.8), "Step 2: sigma 0.8"),
    ((0.5, 1), (0.8, 0.799999999999), "Step 2: sigma 0.8 is not below step 1's 0.8"),
    ((0.5, 1), (1e-300, 1e-301), "Step 1: sigma 1e-300 is outside 0..1, 0 excluded"),
    ((0.5, 1), (1.0, 0.0), "Step 2: sigma 0 is outside 0..1"),
    ((0.5, 1), (1.1, 0.5), "Step 1: sigma 1.1 is outside"),
    ((0, 1), (1.0, 0.5), "Step 1: scale 0 is outside"),
    ((0.5, 1.5), (1.0, 0.5), "Step 2: scale 1.5 is outside"),
    ((0.5, 0.75), (1.0, 0.5), "Step 2: the last scale is 0.75; it must be 1"),
    ((0.5, math.nan), (1.0, 0.5), "scales, step 2: nan"),
    ((0.5, 1), (1.0, math.nan), "sigmas, step 2: nan"),
    ((0.5, 1), (math.inf, 0.5), "sigmas, step 1: inf"),
    ((0.5, 1), (10**400, 0.5), "sigmas, step 1"),
    (("0.5", 1), (1.0, 0.5), "scales, step 1: '0.5'"),
    ((True, 1), (1.0, 0.5), "scales, step 1: True"),
    (("half", 1), (1.0, 0.5), "scales, step 1: 'half'"),
    ((None, 1), (1.0, 0.5), "scales, step 1: None"),
    (([0.5], 1), (1.0, 0.5), r"scales, step 1: \[0.5\]"),
    ("1", (1.0,), "scales must be a list of numbers, not str"),
    (1, (1.0,), "scales must be a list of numbers, not int"),
    (None, (1.0,), "scales must be a list of numbers, not NoneType"),
    ({"a": 1}, (1.0,), "scales must be a list of numbers, not dict"),
]


@pytest.mark.parametrize(("scales", "sigmas", "message"), BAD)
def test_bad_schedule_names_step_and_rule(scales, sigmas, message):
    with pytest.raises(ValueError, match=message):
        ScaleSchedule(scales, sigmas)
    with pytest.raises(ValueError, match=message):
        parse_preset(
            "x", {"scales": scales, "sigmas": sigmas, "family": "f", "provenance": "", "title": ""}
        )


def test_unknown_sigma_kind_is_refused():
    with pytest.raises(ValueError, match="'karras'"):
        ScaleSchedule((1,), (1.0,), "karras")


def test_plain_data_and_back():
    assert ScaleSchedule.from_dict(json.loads(json.dumps(FOUR.to_dict()))) == FOUR
    assert ScaleSchedule.from_dict({"scales": [1], "sigmas": [1]}) == ScaleSchedule((1.0,), (1.0,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "an object with scales and sigmas, not list"),
        ("x", "not str"),
        ({"scales": [1]}, "no 'sigmas'"),
        ({"sigmas": [1]}, "no 'scales'"),
        ({"scales": [1], "sigmas": [1], "steps": 4}, "'steps'"),
        ({"scales": [1], "sigmas": [1], "name": 4}, "'name' must be text, not int"),
        ({"scales": [1], "sigmas": [1], "sigma_kind": []}, "'sigma_kind' must be text, not list"),
        ({"scales": "1", "sigmas": [1]}, "scales must be a list"),
    ],
)
def test_bad_plain_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        ScaleSchedule.from_dict(data)


ENTRY = {"scales": [1], "sigmas": [1], "family": "f", "provenance": "p", "title": "t"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "1024"}, "target"),
        ({"multiple": 0}, "multiple"),
        ({"multiple": 2.5}, "multiple"),
        ({"auto": 1}, "auto"),
        ({"title": 3}, "title"),
        ({"frames": 3}, "frames"),
        ({"frames": [1, 1]}, "frames"),
        ({"video": [81, 480]}, "video"),
        ({"video": [81, 480, 832.5]}, "video"),
        ({"colour": "red"}, "colour"),
        ({"scales": [0.5]}, "Step 1"),
    ],
)
def test_bad_preset_entry_names_entry_and_reason(change, message):
    with pytest.raises(ValueError, match=f"Preset 'mine': .*{message}"):
        parse_preset("mine", {**ENTRY, **change})


def test_what_older_files_say_of_the_model_is_passed_over():
    older = {"prediction": "epsilon", "guidance": 4.5, "size_conditioning": True}
    assert parse_preset("mine", {**ENTRY, **older}) == parse_preset("mine", ENTRY)


def test_preset_without_title_is_refused():
    with pytest.raises(ValueError, match="Preset 'mine': .*title"):
        parse_preset("mine", {k: v for k, v in ENTRY.items() if k != "title"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mine": 3}', '{"mine": {}}', "\xff"])
def test_bad_presets_file_is_named(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    found, (problem,) = read_presets(path)
    assert found == {} and "mine.json" in problem


def test_missing_presets_file_is_named(tmp_path):
    found, (problem,) = read_presets(tmp_path / "gone.json")
    assert found == {} and "gone.json" in problem


def test_a_broken_preset_does_not_take_the_others_with_it(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"good": ENTRY, "bad": {**ENTRY, "sigmas": [2]}}))
    found, (problem,) = read_presets(path)
    assert list(found) == ["good"]
    assert "'bad'" in problem and "Step 1: sigma 2" in problem
