"""What `make bench-growth` compares with and measures by, against formulas of its own."""

import json
import math
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from swd_core.lab.classifier import CLASSIFIER_FILE, SceneClassifier
from swd_core.lab.measures import frechet_distance
from swd_core.scenes.student import MODEL_FILE, TEXT_FILE, VAE_FILE, WEIGHTS
from swd_core.stretches import Stretch
from swd_core.tensor_files import read_tensors, save_tensors

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import growth  # noqa: E402
from growth import FULL, TRUTH, paint, time_rows, ways  # noqa: E402
from growth_figure import figure  # noqa: E402
from growth_rows import REAL, Parts, frechet_to, summed_up, text  # noqa: E402
from growth_ways import PEER, res_multistep, schedule  # noqa: E402
from published_growth import activation, enlarged, sample  # noqa: E402


@pytest.mark.parametrize(
    ("delta", "level"), [(0.01, 0.853), (0.05, 0.718), (0.1, 0.638), (0.2, 0.544)]
)
def test_the_published_levels_for_a_half_of_1024_pixels(delta, level):
    assert activation(64, delta) == pytest.approx(level, abs=1e-3)


def test_the_published_constants_know_nothing_of_the_size():
    """At 2048 pixels the half is left at .54, where the law of that size says .72 again."""
    assert activation(128, 0.05) == pytest.approx(0.545, abs=1e-3)


def test_the_published_lift_keeps_a_picture_and_makes_noise_of_one_level():
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((1, 1, 8, 8), 3.0)
    sigma = 0.6
    after = 2 * sigma / (1 + sigma)
    x = (1 - sigma) * flat + sigma * torch.randn(64, 16, 8, 8, generator=generator)
    lifted, level = enlarged(x, sigma, 16, generator)
    assert level == pytest.approx(after)
    assert lifted.mean().item() == pytest.approx((1 - after) * 3.0, abs=0.01)
    assert lifted.std().item() == pytest.approx(after, rel=0.01)


def test_the_published_run_overwrites_one_level():
    called = []

    def solve(x, stretch):
        called.append(stretch)
        return x, x

    sigmas = [1.0, 0.9, 0.8, 0.7, 0.4, 0.0]
    _, run = sample(solve, sigmas, (1, 16, 128, 128), 64, 0.05, seed=0)
    raised = 2 * 0.7 / 1.7
    assert called == list(run)
    assert run[0] == Stretch((64, 64), (1.0, 0.9, 0.8, 0.7), 0)
    assert run[1].size == (128, 128)
    assert run[1].sigmas == pytest.approx((raised, 0.4, 0.0))


@pytest.mark.parametrize("count", [24, 80])
def test_the_quick_distance_is_the_plain_one(count):
    generator = torch.Generator().manual_seed(1)
    some, real = (torch.randn(n, 40, generator=generator) for n in (count, 100))
    assert frechet_to(real)(some * 2 + 1) == pytest.approx(
        frechet_distance(some * 2 + 1, real), rel=1e-6
    )


def test_the_multistep_solver_is_of_second_order():
    """Halving its steps makes its error four times less: dx/ds = (x - cos s) / s, from 1 to .5."""

    def end(steps):
        levels = tuple(1 - i / (2 * steps) for i in range(steps + 1))
        solve = res_multistep(lambda x, sigma: torch.full_like(x, math.cos(sigma)))
        return float(solve(torch.zeros((), dtype=torch.float64), Stretch((1, 1), levels, 0))[0])

    exact = end(4096)
    errors = [abs(end(steps) - exact) for steps in (16, 32, 64)]
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5


@pytest.fixture
def small_scenes(tmp_path, monkeypatch):
    """The embedded teacher's folder, with an untrained classifier and noise for real pictures."""
    torch.manual_seed(0)
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for name in (MODEL_FILE, TEXT_FILE, VAE_FILE):
        shutil.copy(WEIGHTS / name, scenes)
    save_tensors(scenes / CLASSIFIER_FILE, SceneClassifier().state_dict())
    monkeypatch.setattr(growth, "TRUTH_STEPS", 2)
    monkeypatch.setattr(
        growth, "real_painter",
        lambda assets, side: lambda scenes, seed: torch.randint(
            256, (len(scenes), 3, side, side), dtype=torch.uint8
        ),
    )  # fmt: skip
    return scenes


def asked_for(scenes, assets, truth=True):
    """What the command line asks for: three pictures of 64 pixels."""
    return Namespace(
        scenes=scenes, assets=assets, size=64, count=3, real=7, batch=2, device="cpu", time=1,
        truth=truth,
    )  # fmt: skip


def test_rows_are_painted_once_and_summed_up(small_scenes, tmp_path):
    a = asked_for(small_scenes, tmp_path)
    size, count = a.size, a.count
    parts = Parts(tmp_path / "parts", size, count)
    wanted = [
        w for w in ways(["euler"], [8], size // 8, [0.1]) if w.lift in (FULL, "spectral", PEER)
    ]
    with torch.inference_mode():
        paint(a, wanted, parts)
        kept = {w.name: parts.path(w.name).read_bytes() for w in wanted}
        paint(a, wanted, parts)
    assert {w.name: parts.path(w.name).read_bytes() for w in wanted} == kept
    assert read_tensors(parts.path(TRUTH))[0]["latents"].shape == (count, 16, 8, 8)
    assert len(parts.read(REAL)[0]["features"]) == 7, "real pictures don't follow the rows' number"
    a.real = 9
    with torch.inference_mode():
        paint(a, wanted, parts)
    assert len(parts.read(REAL)[0]["features"]) == 9, "another number isn't taken from before"
    rows = summed_up(wanted, parts)
    assert rows["euler, 8 steps | full size"]["cost"] == 8
    assert rows["euler, 8 steps | full size, 4 steps"]["cost"] == 4
    assert rows["euler, 8 steps | spectral, delta 0.1"]["cost"] < 8
    grown, full, fewer = (rows[f"euler, 8 steps | {name}"] for name in (
        "spectral, delta 0.1", "full size", "full size, 5 steps",
    ))  # fmt: skip
    assert grown["frechet more"][0] == pytest.approx(
        grown["frechet"][0] - full["frechet"][0], abs=0.02
    )
    assert grown["frechet more than cut"][0] == pytest.approx(
        grown["frechet"][0] - fewer["frechet"][0], abs=0.02
    )
    assert {name for name, row in rows.items() if "than published" in row} == {
        "euler, 8 steps | spectral, delta 0.1"
    }
    delta = grown["than published"]["delta"]
    peers = {w.delta: rows[w.name] for w in wanted if w.lift == PEER}
    costly = [peer["cost"] for peer in peers.values() if peer["cost"] >= grown["cost"]]
    assert peers[delta]["cost"] == min(costly)
    assert grown["than published"]["frechet more"][0] == pytest.approx(
        grown["frechet"][0] - peers[delta]["frechet"][0], abs=0.02
    )
    assert grown["than published"]["right more"][0] == pytest.approx(
        grown["right"][0] - peers[delta]["right"][0], abs=1e-4
    )
    assert f"delta {delta:g}, 8 steps: " in text(rows, count, size)
    with torch.inference_mode():
        time_rows(a, wanted[:2], parts)
    times = json.loads((parts.folder / "times.json").read_text())
    assert list(times) == [w.name for w in wanted[:2]]
    (parts.folder / "times.json").write_text(json.dumps({wanted[0].name: 4, wanted[1].name: 1}))
    timed = summed_up(wanted, parts)
    assert timed[wanted[1].name]["time"] == 0.25, "times in turns stand for the painting's"
    assert timed[wanted[2].name]["seconds"] == rows[wanted[2].name]["seconds"]


def test_rows_of_another_teacher_are_refused(small_scenes, tmp_path):
    """Also where the real pictures are to be painted anew, as another number is asked for."""
    a = asked_for(small_scenes, tmp_path, truth=False)
    parts = Parts(tmp_path / "parts", a.size, a.count)
    full, cut, *_ = ways(["euler"], [8], a.size // 8, [0.1])
    with torch.inference_mode():
        paint(a, [full], parts)
        torch.manual_seed(1)
        save_tensors(small_scenes / CLASSIFIER_FILE, SceneClassifier().state_dict())
        for a.real in (7, 9):
            with pytest.raises(SystemExit, match="of another teacher or classifier"):
                paint(a, [full, cut], parts)
    assert not parts.has(cut.name) and len(parts.read(REAL)[0]["features"]) == 7


def test_deltas_that_grow_through_other_sizes_have_rows_of_their_own():
    """Both change size after as many steps, to other sizes."""
    rows = [w for w in ways(["euler"], [8], 32, [0.005, 0.01], sizes=4) if w.lift == "spectral"]
    runs = [[s.size[0] for s in schedule(w, 32).stretches(32, 32)] for w in rows]
    assert len(runs) == 2 and runs[0] != runs[1]


def test_rows_need_no_truth(small_scenes, tmp_path):
    """Without the run of many steps only the latents' distance from it is missing."""
    a = asked_for(small_scenes, tmp_path, truth=False)
    parts = Parts(tmp_path / "parts", a.size, a.count)
    wanted = [w for w in ways(["euler"], [8], a.size // 8, [0.1]) if w.lift in (FULL, "spectral")]
    with torch.inference_mode():
        paint(a, wanted, parts)
    assert not parts.has(TRUTH)
    rows = summed_up(wanted, parts)
    assert all("distance" not in row and "frechet" in row for row in rows.values())
    text(rows, a.count, a.size)
    figure({"64 px": {"rows": rows}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_rows_may_begin_elsewhere_and_grow_over_more_sizes():
    """All of a run begin at the size asked for, the published sampler's too, and say so."""
    plain, other = (
        [w for w in ways(["euler"], [25], 64, [0.05], *how) if w.lift in ("spectral", PEER)]
        for how in ((), (0.25, 3))
    )
    assert not {w.name for w in plain} & {w.name for w in other}
    assert [s.size[0] for s in schedule(other[0], 64).stretches(64, 64)] == [16, 32, 64]
    assert [s.size[0] for s in schedule(plain[0], 64).stretches(64, 64)] == [32, 64]
    assert [w.start for w in other if w.lift == PEER] == [0.25] * 4
    assert other[0].name == "euler, 25 steps | spectral, delta 0.05, from 0.25, 3 sizes"


def test_the_published_sampler_may_take_fewer_steps():
    """So that it is compared with ours where it costs as much."""
    rows = [w for w in ways(["euler"], [8, 5], 32, [0.05], fewer=[6, 7]) if w.lift == PEER]
    assert [(w.steps, w.cut) for w in rows if w.delta == 0.2] == [(8, 0), (8, 6), (8, 7), (5, 0)]
    assert rows[0].name == "euler, 8 steps | published, delta 0.01"
    assert {w.name for w in rows if w.cut == 6 and w.delta == 0.2} == {
        "euler, 8 steps | published, delta 0.2, 6 steps"
    }
