"""The one way from a tensor to a picture and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from swd_core.pictures import picture_of, pixels_of


def test_every_shade_there_and_back():
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    pixels = pixels_of(Image.fromarray(shades))
    assert pixels.dtype == torch.float32 and pixels.shape == (16, 16, 3)
    for y, x in ((0, 0), (0, 1), (7, 15), (15, 15)):
        assert pixels[y, x, 0].item() == pytest.approx((16 * y + x) / 255, abs=1e-7)
    assert (np.asarray(picture_of(pixels)) == shades).all()
    pixels += 0.1  # their memory is nobody else's


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_shades_are_rounded_and_cut_off(kind):
    pixels = torch.tensor([-1.0, 0.0, 0.25, 1.0, 1.25], dtype=kind)[None, :, None].expand(1, 5, 3)
    assert picture_of(pixels).size == (5, 1), "width first"
    assert np.asarray(picture_of(pixels))[0, :, 1].tolist() == [0, 0, 64, 255, 255]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_kinds_of_pictures_are_read_as_rgb(mode):
    pixels = pixels_of(Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode))
    assert torch.equal(pixels, torch.ones(2, 3, 3))
