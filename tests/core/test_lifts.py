"""Lifts against a cosine transform written anew here, statistics, and the odds they keep."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swd_core.lifts import (
    LIFTS,
    lift_pixels,
    lift_spectral,
    lift_swd,
    regrid,
    size_ratio,
)
from swd_core.noise import SeededNoise
from swd_core.process import FlowMatching, VarianceExploding

PROCESSES = [FlowMatching(), FlowMatching(8.0), VarianceExploding()]
# Ratios 1.25, 4/3, 1.5, 2 and 4, odd sides, and sides that grow differently.
PAIRS = [
    ((64, 64), (80, 80)), ((48, 48), (64, 64)), ((64, 64), (96, 96)), ((48, 48), (96, 96)),
    ((16, 16), (64, 64)), ((33, 47), (57, 80)), ((31, 64), (97, 66)), ((40, 64), (40, 96)),
]  # fmt: skip


def cosines(n: int) -> np.ndarray:
    """The orthonormal DCT-II, from its definition."""
    k, i = np.mgrid[:n, :n]
    return np.where(k == 0, (1 / n) ** 0.5, (2 / n) ** 0.5) * np.cos(np.pi * k * (i + 0.5) / n)


def dct(x: Tensor) -> np.ndarray:
    return cosines(x.shape[-2]) @ x.double().numpy() @ cosines(x.shape[-1]).T


def enlarged(x: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Cosine interpolation: the waves that make up x, sampled at `size`, by their formula."""
    height, width = x.shape[-2:]
    coefficients = np.zeros((*x.shape[:-2], *size))
    coefficients[..., :height, :width] = dct(x)
    coefficients *= (size[0] * size[1] / height / width) ** 0.5
    return cosines(size[0]).T @ coefficients @ cosines(size[1])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def odds(process, sigma: float) -> float:
    """Noise over signal, read off what the process does to a one and to noise of one."""
    one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    noise, signal = process.add_noise(none, one, sigma), process.add_noise(one, none, sigma)
    return float(noise / signal)


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
def test_white_noise_stays_white(old, new, process):
    """Of pure noise a lift makes pure noise: flat over frequencies and places, variance 1."""
    count = math.ceil(1.2e6 / math.prod(new))
    sigma = 1.0 if isinstance(process, FlowMatching) else 14.6
    x, fresh = sigma * randn(count, 1, *old), randn(count, 1, *new, seed=1)
    lifted, after = lift_spectral(x, None, sigma, new, fresh, levels=process)
    white = lifted / after
    samples = white.numel()
    assert samples >= 1e6
    assert float(white.mean()) == pytest.approx(0, abs=4 / samples**0.5)
    assert float(white.square().mean()) == pytest.approx(1, abs=4 * (2 / samples) ** 0.5)
    power = (dct(white) ** 2)[:, 0]
    rows, columns = np.mgrid[: new[0], : new[1]] / np.reshape(new, (2, 1, 1))
    inside = (rows < old[0] / new[0]) & (columns < old[1] / new[1])
    for band in range(8):
        of_band = power[:, (np.maximum(rows, columns) * 8).astype(int) == band]
        assert of_band.mean() == pytest.approx(1, abs=5 * (2 / of_band.size) ** 0.5), band
    # Nor are the kept and the new frequencies correlated, or neighbouring cells.
    kept, added = power[:, inside], power[:, ~inside]
    assert kept.mean() == pytest.approx(1, abs=4 * (2 / kept.size) ** 0.5)
    assert added.mean() == pytest.approx(1, abs=4 * (2 / added.size) ** 0.5)
    for a, b in ((white[..., 1:], white[..., :-1]), (white[..., 1:, :], white[..., :-1, :])):
        assert float((a * b).mean()) == pytest.approx(0, abs=4 / samples**0.5)


@pytest.mark.parametrize(("old", "new"), [((5,), (8,)), ((6,), (7,)), ((8,), (16,)), ((3,), (12,))])
def test_the_covariance_of_lifted_noise_is_exactly_the_identity(old, new):
    """Every unit of noise pushed through the lift, along one axis: no statistics."""
    (n,), (m,) = old, new
    units = torch.eye(n, dtype=torch.float64).view(n, 1, n, 1)
    of_old, _ = lift_spectral(
        units, None, 1.0, (m, 1), torch.zeros(n, 1, m, 1), levels=FlowMatching()
    )
    units = torch.eye(m, dtype=torch.float64).view(m, 1, m, 1)
    of_new, _ = lift_spectral(
        torch.zeros(m, 1, n, 1).double(), None, 1.0, (m, 1), units, levels=FlowMatching()
    )
    covariance = sum(w.flatten(1).T @ w.flatten(1) for w in (of_old, of_new))
    torch.testing.assert_close(covariance, torch.eye(m).double())


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_picture_without_finer_frequencies_comes_back_exactly(old, new):
    """Drawn from a few waves by their formula at both sizes: the lifted one is the large one."""
    ratio = size_ratio(old, new)
    assert ratio == pytest.approx((math.prod(new) / math.prod(old)) ** 0.5)

    def drawn(size: tuple[int, int]) -> Tensor:
        y, x = ((torch.arange(n).double() + 0.5) / n for n in size)
        waves = ((0, 0, 0.7), (1, 3, 1.0), (5, 0, -0.4), (7, 9, 0.3), (14, 15, 0.2))
        return sum(
            a * torch.cos(math.pi * k * y)[:, None] * torch.cos(math.pi * m * x)[None]
            for k, m, a in waves
        )[None, None].float()

    torch.testing.assert_close(ratio * regrid(drawn(old), new), drawn(new), atol=2e-5, rtol=0)
    torch.testing.assert_close(regrid(drawn(new), old) / ratio, drawn(old), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("process", PROCESSES)
def test_without_noise_a_lift_is_the_cosine_enlargement(old, new, process):
    x = randn(2, 3, *old)
    for sigma, tolerance in ((0.0, 1e-5), (1e-7, 1e-4)):
        lifted, after = lift_spectral(
            x, None, sigma, new, randn(2, 3, *new, seed=1), levels=process
        )
        assert after < 1e-6
        np.testing.assert_allclose(lifted.numpy(), enlarged(x, new), atol=tolerance)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.9])
def test_signal_over_noise_is_kept_and_the_level_is_the_one_given_back(process, sigma):
    """A picture noised on the small grid and lifted is the large one noised at the new level."""
    old, new = (33, 47), (57, 80)
    x0, eps, fresh = (randn(2, 3, *s, seed=i) for i, s in enumerate((old, old, new)))
    lifted, after = lift_spectral(
        process.add_noise(x0, eps, sigma), None, sigma, new, fresh, levels=process
    )
    ratio = (57 * 80 / 33 / 47) ** 0.5
    assert odds(process, after) == pytest.approx(ratio * odds(process, sigma))
    # Its noise in the kept frequencies is eps itself, everywhere else the fresh one.
    noise = dct(fresh)
    noise[..., :33, :47] = dct(eps)
    noise = torch.from_numpy(cosines(57).T @ noise @ cosines(80))
    expected = process.add_noise(torch.from_numpy(enlarged(x0, new)), noise, after)
    torch.testing.assert_close(lifted.double(), expected, atol=2e-5, rtol=1e-5)
    # So each frequency has the signal over noise that it had: the ratio is in the picture too.
    before, now = (1 / odds(process, s) ** 2 for s in (sigma, after))
    kept = np.square(dct(torch.from_numpy(enlarged(x0, new)))[..., :33, :47])
    np.testing.assert_allclose(now * kept, before * np.square(dct(x0)), rtol=1e-4, atol=1e-7)


def test_a_lift_over_two_sizes_is_one_over_both():
    """With one field of noise; the level depends on where it leads, not on the way."""
    x, field, process = randn(1, 2, 24, 20), randn(1, 2, 48, 56, seed=1), FlowMatching()
    at_once, sigma = lift_spectral(x, None, 0.6, (48, 56), field, levels=process)
    half, between = lift_spectral(x, None, 0.6, (34, 31), regrid(field, (34, 31)), levels=process)
    step, after = lift_spectral(half, None, between, (48, 56), field, levels=process)
    assert after == pytest.approx(sigma)
    torch.testing.assert_close(step, at_once, atol=1e-5, rtol=1e-5)


def test_a_full_size_picture_shrunk_has_the_amplitude_of_a_small_one():
    picture = randn(1, 4, 24, 40).mul(0.1).add(1.5)
    for size in ((12, 20), (17, 33)):
        small = regrid(picture, size)
        assert float(small.mean()) / size_ratio(size, (24, 40)) == pytest.approx(1.5, abs=0.02)
        mean = F.interpolate(picture, size, mode="area").mean()
        assert float(small.mean() / mean) == pytest.approx(size_ratio(size, (24, 40)), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_of_a_video_are_lifted_like_pictures(dtype):
    x, fresh = randn(2, 3, 4, 10, 12).to(dtype), randn(2, 3, 4, 15, 16, seed=1).to(dtype)
    video, sigma = lift_spectral(x, None, 0.7, (4, 15, 16), fresh, levels=FlowMatching())
    assert video.dtype == dtype and video.shape == fresh.shape
    for t in range(4):
        frame, again = lift_spectral(
            x[:, :, t], None, 0.7, (15, 16), fresh[:, :, t], levels=FlowMatching()
        )
        assert again == sigma
        torch.testing.assert_close(video[:, :, t], frame)


@pytest.mark.parametrize("lift", LIFTS)
def test_an_image_of_a_batch_is_the_image_alone(lift):
    noise, x = SeededNoise(3, (0, 1, 7)), randn(3, 4, 16, 12)

    def lifted(x: Tensor, noise: SeededNoise) -> Tensor:
        fresh = noise(2, (len(x), 4, 24, 18))
        if lift == "spectral":
            return lift_spectral(x, x, 0.6, (24, 18), fresh, levels=FlowMatching())[0]
        if lift == "swd":
            return lift_swd(x, x, 0.6, (24, 18), fresh, process=FlowMatching())[0]
        return lift_pixels(
            x, x, 0.6, (24, 18), fresh, process=FlowMatching(), decode=decode, encode=encode
        )[0]

    batch = lifted(x, noise)
    for row, index in enumerate((0, 1, 7)):
        assert torch.equal(batch[row], lifted(x[row : row + 1], SeededNoise(3, (index,)))[0])


def test_the_student_s_lift_is_bicubic_and_fresh_noise():
    x0, fresh = randn(2, 4, 16, 12), randn(2, 4, 24, 18, seed=1)
    for process in (FlowMatching(), VarianceExploding()):
        lifted, sigma = lift_swd(None, x0, 0.6, (24, 18), fresh, process=process)
        clean = F.interpolate(x0, (24, 18), mode="bicubic")
        keep = 0.4 if isinstance(process, FlowMatching) else 1
        torch.testing.assert_close(lifted, keep * clean + 0.6 * fresh)
        assert sigma == 0.6


def decode(x0: Tensor) -> Tensor:
    """A stand-in for a VAE: 8 pixels a cell, three colours of four channels."""
    return F.interpolate(x0[:, :3], scale_factor=8, mode="bicubic")


def encode(picture: Tensor) -> Tensor:
    small = F.interpolate(picture, scale_factor=1 / 8, mode="area")
    return torch.cat([small, small.mean(1, keepdim=True)], 1)


def through_pixels(x0: Tensor, size: tuple[int, int], **settings) -> Tensor:
    zero = torch.zeros(*x0.shape[:-2], *size)
    return lift_pixels(
        None, x0, 0.0, size, zero, process=FlowMatching(), decode=decode, encode=encode, **settings
    )[0]


@pytest.mark.parametrize("size", [(24, 18), (20, 15), (32, 24)])
def test_pixels_take_the_most_different_places_of_each_picture(size):
    x0 = randn(3, 4, 16, 12) * torch.tensor([0.1, 1, 3]).view(3, 1, 1, 1)
    sharp = through_pixels(x0, size, share=0)
    torch.testing.assert_close(sharp, F.interpolate(x0, size, mode="nearest-exact"))
    likely = through_pixels(x0, size, share=1, weights=(1, 1))
    pictures = F.interpolate(decode(x0), (8 * size[0], 8 * size[1]), mode="bicubic")
    assert (likely - encode(pictures)).abs().mean() < 0.1 * (likely - sharp).abs().mean()
    mixed = through_pixels(x0, size, share=0.3, weights=(0.5, 0.9))
    for before, picture, after in zip(sharp, likely, mixed, strict=True):
        score = (picture - before).abs().mean(0)
        weight = ((after - before) / (picture - before)).mean(0)
        chosen = weight > 0.01
        assert abs(int(chosen.sum()) - 0.3 * chosen.numel()) <= 1
        assert score[chosen].min() >= score[~chosen].max()
        least, most = score[chosen].min(), score[chosen].max()
        straight = 0.5 + 0.4 * (score[chosen] - least) / (most - least)
        torch.testing.assert_close(weight[chosen], straight, atol=1e-3, rtol=0)


def test_pixels_leave_what_the_mask_keeps():
    x0, size = randn(2, 4, 16, 12), (32, 24)
    mask = torch.zeros(1, 1, *size)
    mask[..., :, 12:] = 1
    sharp, likely = (
        through_pixels(x0, size, share=0),
        through_pixels(x0, size, share=1, weights=(1, 1)),
    )
    masked = through_pixels(x0, size, share=0.25, weights=(1, 1), mask=mask)
    assert torch.equal(masked[..., :12], sharp[..., :12])
    changed = ~torch.isclose(masked, sharp).all(1)
    assert [int(c.sum()) for c in changed] == [32 * 12 // 4] * 2  # a quarter of the open half
    score = (likely - sharp).abs().mean(1)[..., 12:]
    for row in range(2):
        assert score[row][changed[row, :, 12:]].min() >= score[row][~changed[row, :, 12:]].max()
    nowhere = through_pixels(x0, size, share=1, mask=torch.zeros(1, 1, *size))
    assert torch.equal(nowhere, sharp)


def test_pixels_are_noised_afresh_at_the_same_level():
    x0, fresh = randn(2, 4, 8, 8), randn(2, 4, 16, 16, seed=1)
    lifted, sigma = lift_pixels(
        None, x0, 0.5, (16, 16), fresh, process=FlowMatching(), decode=decode, encode=encode
    )
    clean = through_pixels(x0, (16, 16))
    assert sigma == 0.5
    torch.testing.assert_close(lifted, 0.5 * clean + 0.5 * fresh)


def test_what_can_t_be_lifted_is_refused():
    x, levels = randn(1, 4, 16, 16), FlowMatching()
    with pytest.raises(ValueError, match=r"\(16, 16\) can't be lifted to the smaller \(24, 12\)"):
        lift_spectral(x, None, 0.5, (24, 12), randn(1, 4, 24, 12), levels=levels)
    video = randn(1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match="keeps the frames: the video has 3, the next size 5"):
        lift_spectral(video, None, 0.5, (5, 24, 24), randn(1, 4, 5, 24, 24), levels=levels)
    with pytest.raises(ValueError, match=r"\(4, 16, 16\)"):
        regrid(x[0], (24, 24))
    with pytest.raises(ValueError, match="share 1.5"):
        through_pixels(x, (32, 32), share=1.5)
    with pytest.raises(ValueError, match="weights 0.9 to 0.1"):
        through_pixels(x, (32, 32), weights=(0.9, 0.1))
    with pytest.raises(ValueError, match="256x256 pixels.*connect the VAE of this model"):
        lift_pixels(
            None, x, 0.5, (32, 32), randn(1, 4, 32, 32), process=levels, decode=decode,
            encode=lambda picture: encode(picture)[:, :3],
        )  # fmt: skip
