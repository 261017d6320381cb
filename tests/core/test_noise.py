"""Noise that depends on seed, image and step alone."""

import itertools

import pytest
import torch

from swd_core.noise import MAX_SEED, SeededNoise, draw_noise, stream_seed


@pytest.mark.parametrize("shape", [(16, 20, 24), (16, 3, 20, 24), (1, 2, 2)])
def test_row_of_a_batch_is_the_image_alone(shape):
    batch = draw_noise(7, (0, 1, 5), 2, shape)
    assert batch.shape == (3, *shape) and batch.dtype == torch.float32
    for row, index in enumerate((0, 1, 5)):
        assert torch.equal(batch[row], draw_noise(7, (index,), 2, shape)[0])
    assert torch.equal(SeededNoise(7, (0, 1, 5))(2, (3, *shape)), batch)


def test_order_and_other_draws_make_no_difference():
    noise = SeededNoise(1, (3, 4))
    late = noise(2, (2, 4, 8, 8))
    torch.randn(100)
    noise(0, (2, 4, 8, 8))
    assert torch.equal(noise(2, (2, 4, 8, 8)), late)


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.randn(4)
    torch.manual_seed(0)
    draw_noise(1, (0, 1), 0, (4, 8, 8))
    assert torch.equal(torch.randn(4), expected)


def test_every_address_has_its_own_noise():
    addresses = list(itertools.product((0, 1, 2, 2**32, MAX_SEED), range(16), range(8)))
    assert len({stream_seed(*address) for address in addresses}) == len(addresses)
    rows = torch.stack(
        [draw_noise(s, (i,), k, (1, 16, 16)).flatten() for s, i, k in addresses[:300]]
    )
    likeness = torch.corrcoef(rows).fill_diagonal_(0)
    assert likeness.abs().max() < 6 / 16  # six standard deviations of a chance correlation


def test_is_standard_normal():
    x = draw_noise(0, range(16), 0, (16, 64, 64)).double()
    assert abs(float(x.mean())) < 5 / x.numel() ** 0.5
    assert abs(float(x.var()) - 1) < 5 * (2 / x.numel()) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 0.02


@pytest.mark.parametrize(
    ("seed", "index", "step"),
    [(-(2**63) - 1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, -1)],
)
def test_address_out_of_range_is_refused(seed, index, step):
    with pytest.raises(ValueError, match=r"-1|18446744073709551616|-9223372036854775809"):
        stream_seed(seed, index, step)


@pytest.mark.parametrize("seed", [-1, -2, -(2**63)])
def test_negative_seeds_are_what_torch_takes_them_for(seed):
    plain = torch.Generator().manual_seed(seed).initial_seed()
    assert plain > 0
    assert torch.equal(draw_noise(seed, (3,), 1, (4, 8, 8)), draw_noise(plain, (3,), 1, (4, 8, 8)))


def test_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="batch of 3"):
        SeededNoise(0, (0, 1))(0, (3, 4, 8, 8))
