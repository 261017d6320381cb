"""FSDP: a base whose weights are spread over the processes is the same teacher and student."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

pytest.importorskip("diffusers")

from swd_core.distill.adapters import adapter, adapter_parameters  # noqa: E402
from swd_core.distill.diffusers_models import wrap  # noqa: E402
from swd_core.distill.sharding import shard, wants_sharding  # noqa: E402
from swd_core.distill.trainer import Trainer  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "distill_models", Path(__file__).with_name("distill_models.py")
)
models = sys.modules["distill_models"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    """A group of one process: all of FSDP's machinery without a second one."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def trainer_of(family: str, sharded: bool) -> Trainer:
    wrapped = wrap(models.small_model(family), rank=4, checkpointing=True)
    if sharded:
        shard(wrapped.module, torch.device("cpu"))
    wrapped.module.train()
    return models.trainer_of(wrapped, family)


@pytest.mark.parametrize("family", ["sd3", "flux", "sdxl", *models.LANGUAGE])
def test_sharded_steps_are_the_whole_models(family):
    """All losses, with checkpointing: every order of forward and backward passes there is."""
    models.assert_trains_alike(trainer_of(family, False), trainer_of(family, True), 3, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux", "sdxl", *models.LANGUAGE])
def test_the_base_is_spread_and_the_adapters_are_whole(family):
    module = trainer_of(family, True).model.module
    spread = {n for n, p in module.named_parameters() if isinstance(p, DTensor)}
    for name in ("student", "fake"):
        assert not any(isinstance(p, DTensor) for p in adapter_parameters(module, name))
    weights = {n: p.numel() for n, p in module.named_parameters() if not p.requires_grad}
    lists = ("transformer_blocks.", "layers.", "refiner.")
    blocks = {n for n in weights if any(name in n for name in lists)}
    assert spread == blocks and blocks
    with adapter(module, "student"):
        assert all(p.requires_grad for p in adapter_parameters(module, "student"))


def test_a_pytorch_that_can_not_is_named(monkeypatch):
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, *, mesh: module)
    with pytest.raises(ValueError, match="Update PyTorch, or start without --use_fsdp"):
        shard(models.small_model("sd3"), torch.device("cpu"))


def test_it_is_asked_for_by_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not wants_sharding(), "one process has nothing to share with"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert wants_sharding()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert not wants_sharding()
