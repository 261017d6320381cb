"""Forward processes: what they do to mean and variance, and the way back."""

import pytest
import torch

from swd_core.noise import draw_noise
from swd_core.process import FlowMatching, VarianceExploding

FLOW = [(FlowMatching(), sigma, 1 - sigma) for sigma in (1.0, 0.8959, 0.6022, 0.1)]
EXPLODING = [(VarianceExploding(), sigma, 1.0) for sigma in (14.6146, 2.2846, 0.03)]


@pytest.mark.parametrize(("process", "sigma", "keep"), FLOW + EXPLODING)
def test_mean_and_variance_of_x_t(process, sigma, keep):
    x0 = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
    count = 20_000
    noise = draw_noise(1, range(count), 0, (1, 8, 8))
    x_t = process.add_noise(x0, noise, sigma).double()
    # Five standard errors, over 64 cells.
    assert (x_t.mean(0) - keep * x0[0]).abs().max() < 5 * sigma / count**0.5
    assert (x_t.var(0) / sigma**2 - 1).abs().max() < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize("shape", [(2, 4, 8, 6), (2, 4, 3, 8, 6)])
@pytest.mark.parametrize("sigma", [1.0, 0.6, 0.01])
def test_exact_prediction_gives_x0_back(shape, sigma):
    x0, noise = torch.randn(2, *shape, dtype=torch.float64)
    flow, exploding = FlowMatching(), VarianceExploding()
    torch.testing.assert_close(flow.to_x0(flow.add_noise(x0, noise, sigma), noise - x0, sigma), x0)
    torch.testing.assert_close(
        exploding.to_x0(exploding.add_noise(x0, noise, sigma), noise, sigma), x0
    )


@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
def test_sigma_may_be_one_per_image(process):
    x0, noise = torch.randn(2, 3, 4, 8, 8)
    sigma = torch.tensor([0.2, 0.5, 0.9])
    together = process.add_noise(x0, noise, sigma.view(-1, 1, 1, 1))
    for i in range(3):
        torch.testing.assert_close(together[i], process.add_noise(x0[i], noise[i], float(sigma[i])))


@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(process, dtype):
    x = torch.ones(1, 4, 8, 8, dtype=dtype)
    assert process.add_noise(x, x, 0.5).dtype == process.to_x0(x, x, 0.5).dtype == dtype
