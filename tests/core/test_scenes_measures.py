"""The measures of scenes against formulas written anew."""

import numpy as np
import pytest
import torch

from swd_core.lab import evaluate
from swd_core.lab.classifier import (
    NAMES,
    Labels,
    SceneClassifier,
    jittered,
    lesson,
    loss_of,
    melted,
)
from swd_core.lab.evaluate import asked, measure, repeated
from swd_core.lab.measures import (
    bootstrap,
    examined,
    frechet_distance,
    mean,
    nearest,
    precision_recall,
    prompt_accuracy,
    spread,
    top_octave,
)
from swd_core.scenes.catalogue import PLACES, TIMES, Scene, held_out, scene_of


def gaussian(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + seed


def test_frechet_distance_is_that_of_the_textbook():
    """With the root of the product of covariances from its eigenvalues, in numpy."""
    a, b = gaussian(300, 6, 1), gaussian(200, 6, 2)
    c1, c2 = (np.cov(x.double().numpy(), rowvar=False) for x in (a, b))
    shift = a.double().mean(0).numpy() - b.double().mean(0).numpy()
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).real.clip(0)).sum()
    expected = shift @ shift + np.trace(c1) + np.trace(c2) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_features_that_never_vary():
    a = torch.cat([gaussian(50, 3, 1), torch.zeros(50, 2)], 1)
    assert frechet_distance(a, a + 1) == pytest.approx(5, rel=1e-5)


def test_precision_and_recall_count_by_hand():
    a, b = gaussian(60, 3, 1), gaussian(50, 3, 1)[:50] * 1.2

    def covered(points, centres):
        hits = 0
        for p in points:
            for c in centres:
                others = sorted(float((c - o).norm()) for o in centres)
                if float((p - c).norm()) <= others[5]:
                    hits += 1
                    break
        return hits / len(points)

    precision, recall = precision_recall(a, b)
    assert precision == pytest.approx(covered(a, b)) and recall == pytest.approx(covered(b, a))


def test_copies_of_one_picture_are_precise_but_reach_nothing():
    real = gaussian(100, 4, 3)
    copies = real[:1] + 1e-4 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    precision, recall = precision_recall(copies, real)
    assert precision == 1 and recall < 0.05


def test_spread_compares_the_deviation_within_prompts():
    real = [gaussian(200, 3, s) for s in range(3)]
    half = [x.mean(0) + 0.5 * (x - x.mean(0)) + 7 for x in real]
    assert spread(half, real) == pytest.approx(0.5, rel=1e-4)
    assert spread([x[:1].expand(4, -1) for x in real], real) == 0


def test_bootstrap_finds_the_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)) * 3 + 5
    found = bootstrap(lambda chosen: float(values[chosen].mean()), 400, rounds=2000)
    error = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.value == pytest.approx(error, rel=0.15)
    assert found.value - found.low == pytest.approx(error, rel=0.15)


def test_a_share_has_bounds_that_are_shares():
    right = torch.arange(40) > 0
    found = mean(right)
    assert found.value == pytest.approx(39 / 40) and 0.85 < found.low < 0.95 and found.high <= 1
    assert mean(~right).low >= 0
    assert mean(right.float() * 3 - 2).value == pytest.approx(3 * 39 / 40 - 2)


def test_bootstrap_of_a_biased_statistic_holds_its_value():
    a, b = gaussian(60, 8, 1), gaussian(300, 8, 2)
    found = bootstrap(lambda chosen: frechet_distance(a[chosen], b), 60)
    assert found.value == frechet_distance(a, b)
    assert found.low < found.value < found.high


def answer(scenes: list[Scene]) -> Labels:
    """Labels written out by hand, as a classifier without a fault would give them."""
    things = torch.tensor([[0.9 if n in s.things else 0.1 for n in NAMES] for s in scenes])
    numbers = ([len(s.things), PLACES.index(s.place), TIMES.index(s.time)] for s in scenes)
    return Labels(things, *torch.tensor(list(numbers)).T)


def test_prompt_accuracy_by_part():
    asked = [Scene(("fox",), "lake", "day"), Scene(("fox", "fox"), "snow", "night")] * 50
    shown = [Scene(("fox",), "lake", "day"), Scene(("fox",), "snow", "day")] * 50
    found = {part: i.value for part, i in prompt_accuracy(answer(shown), asked).items()}
    assert found == {"things": 1, "count": 0.5, "place": 1, "time": 0.5, "everything": 0.5}
    shown[0] = Scene(("fox", "cat"), "lake", "day")
    found = {part: i.value for part, i in prompt_accuracy(answer(shown), asked).items()}
    assert found["things"] == pytest.approx(0.99) and found["everything"] == pytest.approx(0.49)


def test_top_octave_of_a_blurred_picture_falls():
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(pictures.float(), 3, 1, 1).byte()
    assert top_octave(pictures, pictures) == pytest.approx(1)
    assert top_octave(blurred, pictures) < 0.3


def test_nearest_finds_the_copy():
    training = gaussian(40, 5, 1)
    assert nearest(training[[7, 31]] + 1e-3, training).tolist() == [7, 31]


def test_the_classifier_reads_any_size_and_learns_its_labels():
    torch.manual_seed(0)
    model = SceneClassifier()
    blocks = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    pictures = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)
    large = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(examined(model, pictures)[1], examined(model, large)[1])
    scenes = [scene_of(0, i) for i in range(4)]
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        loss = loss_of(model(pictures.float() / 255), Labels.of(scenes))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    answers, _ = examined(model, pictures)
    assert prompt_accuracy(answers, scenes)["everything"].value == 1


def test_melted_pictures_keep_their_colours_and_lose_their_shapes():
    generator = torch.Generator().manual_seed(0)
    disc = (torch.cartesian_prod(torch.arange(128), torch.arange(128)) - 64.0).norm(dim=1) < 30
    pictures = disc.view(128, 128).float().expand(8, 3, -1, -1)
    molten = melted(pictures, generator)
    assert float(molten.mean()) == pytest.approx(float(pictures.mean()), rel=0.1)
    assert molten.min() >= -0.01 and molten.max() <= 1.01

    def outline(x):
        return (x[..., 1:] - x[..., :-1]).abs().sum((1, 2, 3))

    assert (outline(molten) > 1.5 * outline(pictures)).all()
    assert torch.equal(melted(pictures, torch.Generator().manual_seed(0)), molten)


def test_a_fifth_of_the_lessons_shows_no_thing_and_counts_none():
    scenes = [scene_of(0, i) for i in range(10)]
    truth = Labels.of(scenes)
    pictures = torch.randint(0, 256, (10, 3, 128, 128), dtype=torch.uint8)
    x, wanted = lesson(pictures, truth, torch.Generator().manual_seed(0))
    plain = jittered(pictures, torch.Generator().manual_seed(0))
    assert torch.equal(x[2:], plain[2:]) and not torch.equal(x[:2], plain[:2])
    assert not wanted.things[:2].any() and torch.equal(wanted.things[2:], truth.things[2:])
    assert torch.equal(wanted.place, truth.place) and torch.equal(wanted.time, truth.time)
    logits = tuple(torch.randn(10, n, generator=torch.Generator().manual_seed(n)).requires_grad_()
                   for n in (len(NAMES), 2, len(PLACES), len(TIMES)))  # fmt: skip
    loss_of(logits, wanted).backward()
    assert not logits[1].grad[:2].any() and logits[1].grad[2:].any(1).all()
    assert all(part.grad[:2].any() for part in (logits[0], logits[2], logits[3]))


def test_prompts_are_trained_on_or_never_were():
    trained, new = (asked(60, 3, held) for held in (False, True))
    assert not any(held_out(scene) for scene in trained) and all(held_out(scene) for scene in new)
    assert asked(60, 3, True) == new and len(set(new)) > 50


def test_a_painter_of_the_reference_itself_gets_full_marks(monkeypatch):
    monkeypatch.setattr(evaluate, "VARIED", 2)
    monkeypatch.setattr(evaluate, "EACH", 3)
    torch.manual_seed(0)
    model = SceneClassifier().eval()

    def paint(scenes, seed):
        """The scene's number in the list as brightness, the seed as texture."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(0, 60, (len(scenes), 3, 128, 128), generator=generator)
        light = torch.arange(len(scenes))[:, None, None, None] * 5
        return (noise + light).byte()

    scenes = asked(12, 0, False)
    _, real = measure(model, paint, scenes, None)
    row, _ = measure(model, paint, scenes, real)
    value, low, high = row["frechet"]
    assert value == pytest.approx(0, abs=1e-3) and low <= value <= high
    assert [row[k] for k in ("precision", "recall", "spread", "top octave")] == [1] * 4
    assert {"things", "count", "place", "time", "everything"} < set(row)
    assert repeated(scenes) == [scenes[0]] * 3 + [scenes[1]] * 3
