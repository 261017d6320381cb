"""The scale-wise loop against diffusers, itself cut in two, and the paper's formulas."""

import pytest
import torch
from torch import Tensor

from swd_core.noise import SeededNoise
from swd_core.presets import presets
from swd_core.process import FlowMatching, VarianceExploding
from swd_core.resample import resize
from swd_core.sampling import ScaleState, sample_scalewise
from swd_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((0.5, 0.625, 0.75, 1.0), (1.0, 0.8959, 0.7371, 0.6022))


def toy(x_t: Tensor, sigma: float) -> Tensor:
    """A denoiser whose answer depends on every cell and on sigma."""
    return torch.tanh(1.7 * x_t.roll(1, -1) - 0.3 * x_t) / (0.5 + sigma)


STAYING = ScaleSchedule((0.5, 0.5, 0.75, 0.75, 0.75, 1), (1.0, 0.95, 0.9, 0.8, 0.7, 0.6), eta=0.6)


def run(noise, like, *, state=None, until=None, process=None, on_step=None, schedule=SCHEDULE):
    sizes = schedule.sizes(*like.shape[-2:])
    return sample_scalewise(
        toy, schedule.sigmas, sizes, state or ScaleState(), noise,
        process=process or FlowMatching(), like=like, until=until, on_step=on_step,
        eta=schedule.eta,
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["sd35-medium-4", "sd35-medium-6"])
@pytest.mark.parametrize("height", [32, 48])
def test_agrees_with_diffusers_on_an_sd3_transformer(monkeypatch, preset, height):
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_lcm")
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=32, num_layers=2, attention_head_dim=32, num_attention_heads=2,
            qk_norm="rms_norm", joint_attention_dim=24, caption_projection_dim=64,
            pooled_projection_dim=40, pos_embed_max_size=24,
        ).eval()  # fmt: skip
    text, pooled = torch.randn(2, 5, 24), torch.randn(2, 40)
    schedule = presets()[preset].schedule
    sizes = schedule.sizes(height, 32)
    noise = SeededNoise(11, (0, 1))

    @torch.inference_mode()
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model(
            x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t.expand(2)
        ).sample

    # The scheduler draws its noise after a step, for the next one; after the last it is weighted 0.
    drawn = iter([*range(1, schedule.steps), 0])
    monkeypatch.setattr(scheduling, "randn_tensor", lambda shape, **_: noise(next(drawn), shape))
    # Its factors are relative to the first size, and it has none for the first step.
    factors = [w / sizes[0][1] for _, w in sizes[1:]]
    scheduler = scheduling.FlowMatchLCMScheduler(shift=1.0, scale_factors=factors)
    scheduler.set_timesteps(sigmas=list(schedule.sigmas))
    x = noise(0, (2, 16, *sizes[0]))
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x).prev_sample

    def denoise(x_t: Tensor, sigma: float) -> Tensor:
        return FlowMatching().to_x0(x_t, velocity(x_t, torch.tensor(1000 * sigma)), sigma)

    ours = sample_scalewise(
        denoise, schedule.sigmas, sizes, ScaleState(), noise,
        process=FlowMatching(), like=torch.zeros(2, 16, height, 32),
    )  # fmt: skip
    assert x.abs().max() > 0.1
    torch.testing.assert_close(ours.x0, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 32, 24), (2, 4, 3, 32, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
def test_cut_at_any_step_and_continued_gives_the_same_bits(shape, dtype, process):
    noise, like = SeededNoise(5, (0, 1)), torch.zeros(shape, dtype=dtype)
    straight = run(noise, like, process=process)
    assert straight.step == 4 and straight.x0.shape == shape and straight.x0.dtype == dtype
    for cut in range(5):
        half = run(noise, like, until=cut, process=process)
        assert half.step == cut
        # A state that is saved and read again has lost nothing.
        state = ScaleState(None if half.x0 is None else half.x0.clone(), half.step)
        assert torch.equal(run(noise, like, state=state, process=process).x0, straight.x0)
    state = ScaleState()
    for until in (1, 2, 3, 4):
        state = run(noise, like, state=state, until=until, process=process)
    assert torch.equal(state.x0, straight.x0)


def test_a_finished_run_stays_as_it_is():
    noise, like = SeededNoise(5, (0,)), torch.zeros(1, 4, 16, 16)
    done = run(noise, like)
    again = run(noise, like, state=done, until=2)
    assert again.step == 4 and torch.equal(again.x0, done.x0)


def test_image_of_a_batch_is_the_image_alone():
    batch = run(SeededNoise(9, (0, 1, 2, 7)), torch.zeros(4, 4, 16, 16)).x0
    for row, index in enumerate((0, 1, 2, 7)):
        alone = run(SeededNoise(9, (index,)), torch.zeros(1, 4, 16, 16)).x0
        assert torch.equal(batch[row : row + 1], alone)


@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
def test_every_step_is_upscale_x0_then_noise(process):
    """Algorithm 1 of the paper, written out with torch alone."""
    noise, steps = SeededNoise(3, (0,)), []
    run(noise, torch.zeros(1, 4, 32, 32), process=process, on_step=lambda *step: steps.append(step))
    assert [i for i, _, _ in steps] == [0, 1, 2, 3]
    sizes = SCHEDULE.sizes(32, 32)
    for i, x_t, x0 in steps:
        sigma, eps = SCHEDULE.sigmas[i], noise(i, (1, 4, *sizes[i]))
        if i == 0:
            clean = torch.zeros_like(eps)
        else:
            clean = torch.nn.functional.interpolate(steps[i - 1][2], size=sizes[i], mode="bicubic")
        keep = 1 - sigma if isinstance(process, FlowMatching) else 1
        torch.testing.assert_close(x_t, keep * clean + sigma * eps)
        assert torch.equal(x0, toy(x_t, sigma))
        assert x_t.shape[-2:] == sizes[i]


@pytest.mark.parametrize("process", [FlowMatching(), VarianceExploding()])
def test_where_the_size_stays_the_predicted_noise_is_mixed_in(process):
    """arXiv 2603.06136: eps = eta eps_hat + sqrt(1 - eta^2) n; where the size changes eps = n."""
    noise, steps = SeededNoise(3, (0,)), []
    run(
        noise, torch.zeros(1, 4, 32, 32), process=process, schedule=STAYING,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    for (i, x_t, x0), (_, after, _) in zip(steps, steps[1:], strict=False):
        sigma, new = STAYING.sigmas[i], STAYING.sigmas[i + 1]
        keep, kept = (1 - sigma, 1 - new) if isinstance(process, FlowMatching) else (1, 1)
        eps, clean = noise(i + 1, after.shape), x0
        if x0.shape == after.shape:
            eps = 0.6 * (x_t - keep * x0) / sigma + 0.8 * eps
        else:
            clean = torch.nn.functional.interpolate(x0, after.shape[-2:], mode="bicubic")
        torch.testing.assert_close(after, kept * clean + new * eps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("until", range(1, 6))
def test_cut_where_the_size_stays_and_continued_gives_the_same_bits(until):
    noise, like = SeededNoise(5, (0, 3)), torch.zeros(2, 4, 32, 32)
    whole = run(noise, like, schedule=STAYING)
    part = run(noise, like, schedule=STAYING, until=until)
    done = run(noise, like, schedule=STAYING, state=part)
    assert torch.equal(done.x0, whole.x0)


def test_video_grows_in_space_and_time_and_can_be_stopped():
    schedule = ScaleSchedule((0.5, 0.75, 1), (1.0, 0.8, 0.6), frames=(0.25, 0.5, 1))
    sizes, noise, steps = schedule.sizes(8, 12, frames=9), SeededNoise(3, (0, 4)), []
    assert sizes == [(3, 4, 6), (5, 6, 10), (9, 8, 12)]

    def go(state: ScaleState, until: int, on_step=None) -> ScaleState:
        return sample_scalewise(
            toy, schedule.sigmas, sizes, state, noise, process=FlowMatching(), until=until,
            like=torch.zeros(2, 4, 9, 8, 12), on_step=on_step,
        )  # fmt: skip

    straight = go(ScaleState(), 3, lambda *step: steps.append(step))
    for i, x_t, x0 in steps:
        eps, sigma = noise(i, (2, 4, *sizes[i])), schedule.sigmas[i]
        clean = torch.zeros_like(eps)
        if i:
            before, (t, *size) = steps[i - 1][2], sizes[i]
            frames = torch.stack(
                [torch.nn.functional.interpolate(f, size, mode="bicubic") for f in before.unbind(2)]
            )  # (T, B, C, H, W)
            rows = frames.flatten(1).T[None]  # exactly twice as many, but for the ends
            rows = torch.nn.functional.interpolate(rows, t, mode="linear", align_corners=True)
            clean = rows[0].T.view(t, *frames.shape[1:]).movedim(0, 2)
        torch.testing.assert_close(x_t, (1 - sigma) * clean + sigma * eps)
        assert torch.equal(x0, toy(x_t, sigma)) and tuple(x0.shape[2:]) == sizes[i]
    for cut in (1, 2):
        assert torch.equal(go(go(ScaleState(), cut), 3).x0, straight.x0)


def test_upscaling_is_the_caller_s_choice():
    noise, like = SeededNoise(3, (0,)), torch.zeros(1, 4, 16, 16)
    seen = []

    def upscale(x: Tensor, size: tuple[int, int]) -> Tensor:
        seen.append((tuple(x.shape[-2:]), size))
        return resize(x, size, "nearest-exact")

    sizes = SCHEDULE.sizes(16, 16)
    sample_scalewise(
        toy, SCHEDULE.sigmas, sizes, ScaleState(), noise,
        process=FlowMatching(), like=like, upscale=upscale,
    )  # fmt: skip
    assert seen == list(zip(sizes, sizes[1:], strict=False))
