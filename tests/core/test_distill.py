"""Losses and pieces of the distillation against formulas written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swd_core.distill.adapters import adapter, adapter_parameters, adapter_state, add_adapters
from swd_core.distill.average import Average
from swd_core.distill.checkpoint import load_checkpoint, save_checkpoint
from swd_core.distill.draws import Draws
from swd_core.distill.losses import (
    dmd_loss,
    gan_head_loss,
    gan_student_loss,
    mmd_linear,
    mmd_loss,
    mmd_rbf,
)
from swd_core.distill.scalewise import intervals, student_input
from swd_core.distill.world import World


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numeric_gradient(loss, x: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """Central differences, cell by cell."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        delta = torch.zeros_like(x).view(-1)
        delta[i] = step
        delta = delta.view_as(x)
        gradient.view(-1)[i] = (loss(x + delta) - loss(x - delta)).double() / (2 * step)
    return gradient


def autograd_gradient(loss, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    return gradient


def huber(difference: float, c: float = 1e-3) -> float:
    return math.sqrt(difference**2 + c**2) - c


def test_linear_mmd_by_hand():
    """Each channel by itself, then the mean over pictures and channels."""
    real = torch.tensor(
        [[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]
    )  # means (2, 3), (0, 0)
    fake = torch.tensor([[[-1.0, 3.0]], [[0.0, 5e-4]]])  # another number of tokens
    expected = (huber(3) + huber(0) + huber(0) + huber(5e-4)) / 4
    assert float(mmd_linear(real, fake)) == pytest.approx(expected, rel=1e-5)
    assert float(mmd_linear(real, real)) == 0


@pytest.mark.parametrize("width", [64, 1536])
def test_linear_mmd_of_many_channels_is_no_stronger_than_of_one(width):
    """The length of the whole difference would be the square root of the width stronger."""
    real, fake = tokens(0, 2, 5, 1).expand(-1, -1, width), tokens(1, 2, 7, 1).expand(-1, -1, width)
    assert float(mmd_linear(real, fake)) == pytest.approx(
        float(mmd_linear(real[..., :1], fake[..., :1])), rel=1e-6
    )
    gradient = autograd_gradient(lambda x: mmd_linear(real, x), fake.clone())
    for real_mean, fake_mean, row in zip(real.mean(1), fake.mean(1), gradient, strict=True):
        d = fake_mean - real_mean
        expected = d / (d.square() + 1e-6).sqrt() / (2 * width) / 7
        torch.testing.assert_close(row, expected.expand(7, -1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bandwidth", [1.0, 3.0])
def test_rbf_mmd_against_plain_loops(bandwidth):
    real, fake = tokens(0, 2, 6, 5), tokens(1, 2, 4, 5) + 0.5

    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * bandwidth**2))

    expected = 0.0
    for r, f in zip(real, fake, strict=True):
        rr = sum(k(r[i], r[j]) for i in range(6) for j in range(6) if i != j) / 30
        ff = sum(k(f[i], f[j]) for i in range(4) for j in range(4) if i != j) / 12
        rf = sum(k(a, b) for a in r for b in f) / 24
        expected += (rr + ff - 2 * rf) / 2
    assert float(mmd_rbf(real, fake, bandwidth)) == pytest.approx(expected, abs=1e-5)


def test_rbf_mmd_is_unbiased_and_sees_a_shift():
    same = [
        float(mmd_rbf(tokens(2 * i, 1, 32, 4), tokens(2 * i + 1, 1, 32, 4), 2.0))
        for i in range(200)
    ]
    assert abs(sum(same) / 200) < 4 * torch.tensor(same).std() / 200**0.5
    assert float(mmd_rbf(tokens(0, 1, 32, 4), tokens(1, 1, 32, 4) + 2, 2.0)) > 0.2


def test_mmd_over_the_batch_sees_all_tokens_as_one_picture():
    real, fake = tokens(0, 3, 4, 5), tokens(1, 3, 6, 5)
    differences = (real.mean((0, 1)) - fake.mean((0, 1))).tolist()
    expected = sum(huber(d) for d in differences) / 5
    assert float(mmd_loss(real, fake, per_batch=True)) == pytest.approx(expected, rel=1e-5)

    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / 2e4)

    r, f = real.reshape(12, 5), fake.reshape(18, 5)
    expected = sum(k(a, b) for i, a in enumerate(r) for j, b in enumerate(r) if i != j) / 132
    expected += sum(k(a, b) for i, a in enumerate(f) for j, b in enumerate(f) if i != j) / 306
    expected -= 2 * sum(k(a, b) for a in r for b in f) / 216
    found = float(mmd_loss(real, fake, "rbf", per_batch=True))
    assert found == pytest.approx(expected, abs=2e-7)


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'cubic'"):
        mmd_loss(tokens(0, 1, 2, 3), tokens(1, 1, 2, 3), "cubic")


def test_dmd_gradient_is_the_formula():
    x0, real, fake = (
        tokens(0, 2, 3, 4, 4).float(),
        tokens(1, 2, 3, 4, 4).float(),
        tokens(2, 2, 3, 4, 4).float(),
    )
    gradient = autograd_gradient(lambda x: dmd_loss(x, real, fake), x0)
    for i in range(2):
        weight = (x0[i] - real[i]).abs().mean()
        torch.testing.assert_close(
            gradient[i], (fake[i] - real[i]) / weight / x0.numel(), rtol=1e-3, atol=1e-6
        )


def test_dmd_moves_towards_the_teacher():
    x0, real, fake = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    gradient = autograd_gradient(lambda x: dmd_loss(x, real, fake), x0)
    assert (gradient < 0).all()
    assert autograd_gradient(lambda x: dmd_loss(x, real, real), x0).abs().max() == 0
    assert dmd_loss(real, real, fake).isfinite()


def test_gan_losses_by_hand():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [3.0]])

    def softplus(v: float) -> float:
        return math.log1p(math.exp(v))

    assert float(gan_student_loss(fake)) == pytest.approx((softplus(1) + softplus(-3)) / 2)
    expected = (softplus(-1) + softplus(3)) / 2 + (softplus(-2) + softplus(0)) / 2
    found = gan_head_loss(real, real=True) + gan_head_loss(fake, real=False)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: mmd_linear(tokens(1, 2, 5, 3), x),
        lambda x: mmd_rbf(tokens(1, 2, 5, 3), x, 1.5),
        lambda x: gan_student_loss(x),
        lambda x: gan_head_loss(x, real=True),
        lambda x: gan_head_loss(x, real=False),
    ],
)
def test_gradients_are_the_finite_differences(loss):
    x = tokens(0, 2, 5, 3).float().double()
    expected = numeric_gradient(loss, x, 2e-2)
    torch.testing.assert_close(autograd_gradient(loss, x), expected, rtol=0.02, atol=2e-4)


def test_student_sees_the_upscaled_smaller_picture():
    steps = intervals([(8, 8), (10, 12), (10, 12)], (1.0, 0.8, 0.6))
    x0, before, noise = (
        torch.randn(2, 4, 10, 12),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 10, 12),
    )
    first = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(
        student_input(steps[0], first, None, first * 0 + 2), torch.full_like(first, 2.0)
    )
    wanted = 0.2 * F.interpolate(before, size=(10, 12), mode="bicubic") + 0.8 * noise
    torch.testing.assert_close(student_input(steps[1], x0, before, noise), wanted)
    torch.testing.assert_close(student_input(steps[2], x0, x0, noise), 0.4 * x0 + 0.6 * noise)


def test_levels_are_even_between_their_bounds_or_among_their_choices():
    sigma = Draws(0).levels(4000, None, 0.2, 0.6)
    assert sigma.min() >= 0.2 and sigma.max() <= 0.6
    assert torch.histc(sigma, 8, 0.2, 0.6).min() > 400
    among = torch.tensor([0.1, 0.5, 0.9])
    chosen = Draws(0).levels(3000, among, 0.0, 1.0)
    assert [round(1000 * float(v)) for v in chosen.unique()] == [100, 500, 900]
    assert min(int((chosen == v).sum()) for v in among) > 900


def test_processes_draw_the_rows_of_the_whole_batch_and_no_others(monkeypatch):
    alone = Draws(3)
    numbers, levels = alone.rng.random(), alone.levels(6, None, 0.0, 1.0)
    whole = [alone.noise((6, 2, 4, 5)) for _ in range(2)]
    assert not torch.equal(*whole), "fresh noise for every pass"
    together = torch.stack([row for noise in whole for row in noise])
    assert len(together.flatten(1).unique(dim=0)) == 12, "and for every picture"
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda shape, **o: drawn.append(shape) or randn(shape, **o))
    for rank in range(3):
        own, rows = Draws(3, World(rank, 3)), slice(2 * rank, 2 * rank + 2)
        assert own.rng.random() == numbers
        assert torch.equal(own.levels(2, None, 0.0, 1.0), levels[rows])
        for noise in whole:
            assert torch.equal(own.noise((2, 2, 4, 5)), noise[rows])
    assert sum(math.prod(shape) for shape in drawn) == 2 * whole[0].numel()


def small_model() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 6)})


def test_adapters_are_low_rank_updates_and_leave_the_teacher():
    model, x = small_model(), torch.randn(3, 6)
    bare = model["a"](x)
    add_adapters(model, ("a",), ("student", "fake"), rank=2)
    assert torch.equal(model["a"](x), bare)
    with torch.no_grad():
        for p in adapter_parameters(model, "student"):
            p.normal_()
    ((down, up),) = adapter_state(model, "student").values()
    with adapter(model, "student"):
        torch.testing.assert_close(model["a"](x), bare + x @ (up @ down).T)
        with adapter(model, None):
            assert torch.equal(model["a"](x), bare)
        assert not torch.equal(model["a"](x), bare)
    with adapter(model, "fake"):
        assert torch.equal(model["a"](x), bare), "a new adapter does nothing"
    assert torch.equal(model["a"](x), bare)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("student" in n or "fake" in n for n in trainable) and len(trainable) == 4
    assert isinstance(model["b"], nn.Linear)


def test_new_adapters_are_drawn_alike_whatever_the_model_is_on():
    """On the CPU: two kinds of graphics cards draw other numbers from one seed."""
    after = []
    for device in ("cpu", "meta"):
        torch.manual_seed(1)
        add_adapters(small_model().to(device), ("a",), ("student",), rank=2)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_adapter_is_left_when_the_body_fails():
    model = small_model()
    add_adapters(model, ("a", "b"), ("student",), rank=2)
    with pytest.raises(KeyError), adapter(model, "student"):
        raise KeyError
    assert {m.active for m in (model["a"], model["b"])} == {None}
    with pytest.raises(ValueError, match="nowhere"):
        add_adapters(small_model(), ("nowhere",), ("student",), rank=2)


def test_average_follows_its_formula():
    model = nn.Linear(1, 1, bias=False)
    average, expected = Average(model, 0.5), None
    for step in range(12):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update_parameters(model)
        if expected is None:
            expected = float(step)
        else:
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "x.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 1, "weights": torch.ones(3)})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    state = load_checkpoint(path)
    assert state["step"] == 1 and torch.equal(state["weights"], torch.ones(3))
