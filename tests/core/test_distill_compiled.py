"""Compiled blocks train as plain ones do."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from swd_core.distill import compiled  # noqa: E402
from swd_core.distill.adapters import adapter, adapter_parameters  # noqa: E402
from swd_core.distill.diffusers_base import DiffusersModel  # noqa: E402
from swd_core.distill.diffusers_models import wrap  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "distill_models", Path(__file__).with_name("distill_models.py")
)
models = sys.modules["distill_models"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


@pytest.fixture(autouse=True)
def anew():
    """No code of the tests before."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def shallow(family: str, **options: bool) -> DiffusersModel:
    """Few kinds of blocks: the time goes into compiling each."""
    module = models.small_model(family)
    if family == "zimage":
        module.layers = module.layers[-1:]
    elif family != "sdxl":
        module.transformer_blocks = module.transformer_blocks[-2 if family == "sd3" else -1 :]
    if family in ("flux", "flux2"):
        module.single_transformer_blocks = module.single_transformer_blocks[:1]
    wrapped = wrap(module, rank=4, checkpointing=True, **options)
    wrapped.module.train()
    return wrapped


def test_compiled_steps_are_the_plain_ones(monkeypatch):
    """All losses, with checkpointing: the adapter of each pass is that of its recomputation.

    torch's tracing, without its code generator: that takes minutes for so many kinds of passes.
    """
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager")
    plain, fast = (models.trainer_of(shallow("sd3", compile=c), "sd3") for c in (False, True))
    models.assert_trains_alike(plain, fast, 2, atol=1e-4)


COMPILED = [
    ("sd3", "inductor"),
    ("flux", "aot_eager"),
    ("sdxl", "aot_eager"),
    *((family, "aot_eager") for family in models.LANGUAGE),
]


@pytest.mark.parametrize(("family", "compiler"), COMPILED)
def test_the_gradients_are_the_same_at_every_size(family, compiler, monkeypatch):
    """The backward pass runs when another adapter is active."""
    if compiler == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch's code generator needs g++ here")
    monkeypatch.setattr(compiled, "COMPILER", compiler)
    generator = torch.Generator().manual_seed(3)
    text = models.RandomBatches(family).text(generator, 3)
    sigma, found = torch.tensor([0.2, 0.5, 0.9]), []
    latents = [
        torch.randn(3, models.CHANNELS.get(family, 16), *size, generator=generator)
        for size in ((8, 12), (4, 8))
    ]
    for model in (shallow(family), shallow(family, compile=True)):
        parameters = adapter_parameters(model.module, "student")
        for p in parameters:
            p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        for x in latents:
            with adapter(model.module, "student"):
                tokens = model.features(x, sigma, text)
            with adapter(model.module, "fake"):
                tokens.square().sum().backward()
        assert all(p.grad is None for p in adapter_parameters(model.module, "fake"))
        # Compiled code knows no parameter that nothing comes of: its gradient there is 0.
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    assert sum(bool(g.abs().max() > 1e-3) for g in found[0]) > 8
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def test_sizes_share_their_code_where_one_has_as_many_tokens_as_the_model_is_wide(monkeypatch):
    monkeypatch.setattr(compiled, "COMPILER", "eager")
    torch._dynamo.utils.counters.clear()
    model, generator = shallow("sd3", compile=True), torch.Generator().manual_seed(3)
    width = model.module.inner_dim
    text, found = models.RandomBatches("sd3").text(generator, 2), []
    for size in ((width // 2, 8), (4, 8), (8, 12)):  # in cells, four to a token
        with torch.no_grad():
            model.features(torch.randn(2, 16, *size), torch.tensor([0.2, 0.5]), text)
        found.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert found[0] > 0 and found == [found[0]] * 3


def test_a_machine_without_a_compiler_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"can't compile for cpu .* or set compile = false"):
        wrap(models.small_model("sd3"), rank=4, compile=True)
