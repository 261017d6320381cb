"""The memory that `distill --estimate` names, against what torch's allocator was asked for."""

import json
import random

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from swd_core.distill.conditioning import Conditioning  # noqa: E402
from swd_core.distill.config import parse_settings  # noqa: E402
from swd_core.distill.diffusers_models import SD3Model  # noqa: E402
from swd_core.distill.estimate import estimate, estimate_settings  # noqa: E402
from swd_core.distill.interface import DistillConfig  # noqa: E402
from swd_core.distill.scalewise import Interval, intervals  # noqa: E402
from swd_core.distill.trainer import Trainer  # noqa: E402

SHAPE = {
    "sample_size": 64, "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 4,
    "in_channels": 16, "joint_attention_dim": 48, "caption_projection_dim": 128,
    "pooled_projection_dim": 32, "pos_embed_max_size": 32, "qk_norm": "rms_norm",
    "dual_attention_layers": (0,),
}  # fmt: skip
TEXT = {"context": (12, 48), "pooled": (32,)}
STEPS = intervals([(48, 48), (64, 64)], (1.0, 0.6))  # more tokens than FEW: the host's kernels


class Batches:
    def steps(self, rng: random.Random) -> list[Interval]:
        return STEPS[-1:]

    def draw(self, interval: Interval, count: int, rng: random.Random, part: slice):
        previous = torch.randn(count, 16, *interval.previous) if interval.previous else None
        return torch.randn(count, 16, *interval.size), previous, self.unconditional(count)

    def unconditional(self, count: int):
        return Conditioning(**{name: torch.randn(count, *shape) for name, shape in TEXT.items()})


def measured(trainer: Trainer) -> int:
    """Bytes that a step takes at most beyond what was there before it."""
    trainer.train_step()  # makes the optimisers' moments
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        trainer.train_step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("checkpointing", "accumulate", "dtype"),
    [(True, 2, torch.float32), (True, 1, torch.bfloat16), (False, 1, torch.float32)],
)
def test_the_estimate_is_what_a_step_takes(checkpointing, accumulate, dtype):
    config = DistillConfig(fake_steps=1, batch_tokens=1024, accumulate=accumulate)
    options = {"rank": 16, "checkpointing": checkpointing}
    with torch.device("meta"):
        empty = torch.nn.Module.to(diffusers.SD3Transformer2DModel(**SHAPE), dtype)
    found = estimate(SD3Model(empty, **options), STEPS, config, 16, TEXT)

    real = torch.nn.Module.to(diffusers.SD3Transformer2DModel(**SHAPE), dtype)
    weights = sum(t.numel() for t in (*real.parameters(), *real.buffers())) * dtype.itemsize
    trainer = Trainer(SD3Model(real, **options), Batches(), config)
    assert found.working == pytest.approx(measured(trainer), rel=0.1)
    assert found.weights == weights
    trained = 4 * sum(p.numel() for p in (*trainer.student, *trainer.fake))
    assert found.optimisers == 2 * trained
    assert found.adapters == trained + 4 * sum(p.numel() for p in trainer.student)


def test_checkpointing_and_smaller_batches_take_less(tmp_path):
    folder = tmp_path / "transformer"
    folder.mkdir()
    config = {"_class_name": "SD3Transformer2DModel", **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))

    def working(batch_tokens: int, checkpointing: bool) -> int:
        settings = {
            "model": {
                "family": "sd35-medium", "base": str(tmp_path), "rank": 4,
                "checkpointing": checkpointing,
            },
            "data": {"size": 512},
            "train": {"batch_tokens": batch_tokens, "autocast": True},
        }  # fmt: skip
        return estimate_settings(parse_settings(settings)).working

    assert working(2048, True) < 0.7 * working(2048, False)
    assert working(2048, True) < 0.7 * working(4096, True)


def test_the_embedded_model_has_no_estimate():
    with pytest.raises(ValueError, match="embedded"):
        estimate_settings(parse_settings({"model": {"family": "scenes"}}))
