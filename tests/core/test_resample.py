"""Up- and downscaling against torch and Pillow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from swd_core.resample import METHODS, downscale, pick_frames, resize, upscale

TORCH = ("bicubic", "bilinear", "nearest-exact", "area")
SIZES = [(32, 40), (20, 24), (17, 64), (8, 7), (16, 20)]


@pytest.mark.parametrize("method", TORCH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_torch_bit_for_bit(method, size, dtype):
    x = torch.randn(2, 16, 16, 20).to(dtype)
    expected = F.interpolate(x, size=size, mode=method)
    if size == (16, 20):
        expected = x
    assert torch.equal(resize(x, size, method), expected)


def test_upscale_is_the_paper_s_bicubic():
    x = torch.randn(1, 16, 16, 16)
    assert torch.equal(upscale(x, (20, 20)), F.interpolate(x, size=(20, 20), mode="bicubic"))


@pytest.mark.parametrize("method", METHODS)
def test_video_is_its_frames(method):
    x = torch.randn(2, 4, 3, 12, 16)
    resized = resize(x, (18, 20), method)
    assert resized.shape == (2, 4, 3, 18, 20)
    for t in range(3):
        assert torch.equal(resized[:, :, t], resize(x[:, :, t], (18, 20), method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("frames", "more"), [(6, 11), (11, 16), (16, 21), (1, 4), (5, 6), (4, 1)])
def test_time_blends_adjacent_frames(method, frames, more):
    """As torch's linear interpolation with the ends aligned; space alone is what it is."""
    x = torch.randn(2, 3, frames, 6, 8)
    in_space = resize(x, (9, 10), method)
    rows = in_space.permute(0, 1, 3, 4, 2).reshape(2, -1, frames)
    blended = F.interpolate(rows, more, mode="linear", align_corners=True)
    expected = blended.view(2, 3, 9, 10, more).permute(0, 1, 4, 2, 3)
    got = upscale(x, (more, 9, 10), method)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert torch.equal(got[:, :, 0], in_space[:, :, 0]), "the first frame has its own meaning"
    if more > 1:
        assert torch.equal(got[:, :, -1], in_space[:, :, -1])
    assert torch.equal(upscale(x, (frames, 9, 10), method), in_space)


def test_twice_the_frames_are_the_old_ones_and_the_means_between():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(1, 2, 6, 4, 4).to(dtype)
        y = upscale(x, (11, 4, 4))
        assert y.dtype == dtype and torch.equal(y[:, :, ::2], x)
        torch.testing.assert_close(y[:, :, 1::2], (x[:, :, :-1] + x[:, :, 1:]) / 2)


@pytest.mark.parametrize(
    ("frames", "fewer", "which"),
    [(21, 6, [0, 4, 8, 12, 16, 20]), (9, 7, [0, 1, 3, 4, 5, 7, 8]), (4, 1, [0]), (2, 2, [0, 1])],
)
def test_fewer_frames_are_picked_ones(frames, fewer, which):
    x = torch.randn(1, 2, frames, 8, 8)
    assert torch.equal(downscale(x, (fewer, 8, 8)), x[:, :, which])
    small = downscale(x, (fewer, 4, 4))
    assert torch.equal(small, downscale(x[:, :, which], (4, 4)))
    assert torch.equal(pick_frames(x.movedim(2, 0), fewer, 0), x.movedim(2, 0)[which])


@pytest.mark.parametrize("size", [(3, 4, 4), (4,)])
def test_pictures_have_no_frames_to_resize(size):
    with pytest.raises(ValueError, match="only the latter have frames"):
        resize(torch.zeros(1, 2, 4, 4), size)


@pytest.mark.parametrize("size", [*SIZES, (5, 5), (16, 64)])
def test_lanczos_is_pillow_s(size):
    x = torch.randn(1, 2, 16, 20)
    resized = resize(x, size, "lanczos")
    for channel in range(2):
        picture = Image.fromarray(x[0, channel].numpy())
        expected = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))
        np.testing.assert_allclose(resized[0, channel].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_flat_picture_stays_flat_in_its_dtype(method):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.full((1, 3, 10, 12), 0.75, dtype=dtype)
        y = resize(x, (15, 30), method)
        assert y.dtype == dtype
        assert (y.double() - 0.75).abs().max() < 4e-3


@pytest.mark.parametrize("shape", [(2, 4, 32, 40), (2, 4, 3, 32, 40)])
def test_downscale_does_not_alias(shape):
    stripes = torch.zeros(shape)
    stripes[..., ::2] = 1
    small = downscale(stripes, (12, 15))
    assert small.shape == (*shape[:-2], 12, 15)
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.1
    flat = torch.full(shape, 0.3)
    torch.testing.assert_close(downscale(flat, (12, 15)), torch.full_like(small, 0.3))


@pytest.mark.parametrize("size", [(12, 15), (1, 1), (7, 40), (31, 39), (48, 20), (64, 80)])
def test_downscale_is_torch_s_antialiased_filter(size):
    x = torch.randn(2, 4, 32, 40)
    expected = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    torch.testing.assert_close(downscale(x, size), expected, rtol=0, atol=3e-5)
    double = F.interpolate(x.double(), size=size, mode="bilinear", antialias=True)
    torch.testing.assert_close(downscale(x.double(), size), double, rtol=0, atol=1e-12)
    for dtype, close in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        half = downscale(x.to(dtype), size)  # torch has no such filter for it on a CPU
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), expected, rtol=0, atol=close)


def test_unknown_method_and_shape_are_refused():
    with pytest.raises(ValueError, match=r"'spline'.*lanczos"):
        resize(torch.zeros(1, 1, 4, 4), (8, 8), "spline")
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        resize(torch.zeros(4, 4), (8, 8))
