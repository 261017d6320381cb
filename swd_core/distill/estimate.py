"""How much memory a training takes: its steps are run on tensors that have no content."""

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .conditioning import Conditioning
from .config import Settings, check_size
from .diffusers_base import DiffusersModel
from .diffusers_models import wrap
from .interface import DistillConfig
from .scalewise import Interval, intervals
from .teachers import empty_module, schedule_sigmas, shape_of, watched_block
from .trainer import Trainer

META = torch.device("meta")


@dataclass(frozen=True)
class Estimate:
    """Bytes that one process holds at most.

    weights: of the frozen base. adapters: both LoRAs, the discriminator's head and the averaged
    student. optimisers: the moments of all that is trained. working: the most of activations,
    gradients and batches that there is at any moment of a step.
    """

    weights: int
    adapters: int
    optimisers: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.optimisers + self.working


@dataclass
class Shapes:
    """Batches without content, all of one interval.

    Args:
        text: shapes of one picture's conditioning, by name.
    """

    channels: int
    text: Mapping[str, tuple[int, ...]]
    interval: Interval

    def steps(self, rng: random.Random) -> list[Interval]:
        return [self.interval]

    def draw(self, interval: Interval, count: int, rng: random.Random, part: slice) -> Any:
        def latents(size: tuple[int, int]) -> Tensor:
            return torch.empty(count, self.channels, *size, device=META)

        previous = latents(interval.previous) if interval.previous else None
        return latents(interval.size), previous, self.unconditional(count)

    def unconditional(self, count: int) -> Conditioning:
        shapes = self.text.items()
        return Conditioning(
            **{name: torch.empty(count, *shape, device=META) for name, shape in shapes}
        )


class Live(TorchDispatchMode):
    """Counts the bytes of the meta tensors made while it is active; `most` there were at once."""

    def __init__(self, existing: Sequence[Tensor]):
        super().__init__()
        self.now = self.most = 0
        self._known = {t.untyped_storage()._cdata for t in existing}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return tree_map_only(Tensor, self._count, func(*args, **(kwargs or {})))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FlashAttention(torch.autograd.Function):
    """Keeps and makes what the attention kernels do: no matrix of weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        sums = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


class OnMeta(TorchFunctionMode):
    """What meta tensors don't have: attention kernels and autocast as on a graphics card.

    dtype: of the products; norms are computed in float32. None is without autocast.
    """

    PRODUCTS = (F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    NORMS = (F.layer_norm, F.group_norm)

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = (*args, *kwargs.values())[:3]
            return FlashAttention.apply(*(t.to(self.dtype or q.dtype) for t in (q, k, v)))
        wanted = None
        if self.dtype is not None:
            wanted = self.dtype if func in self.PRODUCTS else None
            wanted = torch.float32 if func in self.NORMS else wanted
        if wanted is not None:
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(wanted) if t.is_floating_point() else t, (args, kwargs)
            )
        return func(*args, **kwargs)


def follow(model: DiffusersModel, mode: OnMeta) -> None:
    """Has `mode` active in the blocks that the backward pass computes again, too.

    A function mode is set aside while it handles a call, and `backward` is one.
    """
    hooked: set[nn.Module] = set()

    def enter(*_: Any) -> None:
        mode.__enter__()

    def leave(*_: Any) -> None:
        mode.__exit__(None, None, None)

    def run(block: nn.Module, *args: Any) -> Any:
        if block not in hooked:
            hooked.add(block)
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave, always_call=True)
        return model.run_block(block, *args)

    model.module.enable_gradient_checkpointing(run)


@dataclass
class Rehearsal(Trainer):
    """A trainer without numbers: it looks at no losses and takes no steps.

    accumulated: whether a batch finds gradients of others there.
    """

    accumulated: bool = False

    def train_step(self, factor: float = 1.0) -> None:
        self._hold(self.fake if self.objective.needs_fake else self.student)
        super().train_step(factor)

    def _hold(self, parameters: list[nn.Parameter]) -> None:
        """The gradients of the batches before, of one optimiser step."""
        if self.accumulated:
            for p in parameters:
                p.grad = torch.empty_like(p)

    _ahead = staticmethod(iter)  # the modes that count are of this thread alone

    def autocast(self) -> AbstractContextManager:
        return nullcontext()

    def _clip(self, parameters: list[nn.Parameter], losses: dict[str, Tensor]) -> None:
        pass

    def _take(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        if optimiser is self.optimiser_fake:
            self._hold(self.student)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def estimate(
    model: DiffusersModel,
    steps: Sequence[Interval],
    config: DistillConfig,
    channels: int,
    text: Mapping[str, tuple[int, ...]],
) -> Estimate:
    """What training `model`, built on the meta device, takes at the size with the most tokens.

    Args:
        channels: of the latents. text: shapes of one picture's conditioning, by name.
    """

    def tokens(interval: Interval) -> int:
        area = interval.size[0] * interval.size[1] // model.patch**2
        return max(2, config.batch_tokens // area) * (area + text["context"][0])

    batches = Shapes(channels, text, max(steps, key=tokens))
    existing = [*model.module.parameters(), *model.module.buffers()]
    short = replace(config, fake_steps=1, accumulate=1)
    trainer = Rehearsal(model, batches, short, accumulated=config.accumulate > 1)
    trained = [*trainer.student, *trainer.fake]
    adapters = bytes_of([*trained, *trainer.average])
    within = {id(p) for p in trained}
    weights = bytes_of([t for t in existing if id(t) not in within])
    mode = OnMeta(next(model.module.parameters()).dtype if config.autocast else None)
    if model.checkpointing:
        follow(model, mode)
    live = Live([*existing, *trained, *trainer.average])
    with live, mode:
        trainer.train_step()
    return Estimate(weights, adapters, 2 * bytes_of(trained), live.most)


def estimate_settings(settings: Settings) -> Estimate:
    """The same for a config, on a graphics card; only the base's config.json is read.

    Raises:
        ValueError: if that can't be read, or the family is the embedded one.
    """
    if settings.family.embedded:
        raise ValueError("The embedded student needs no estimate: it trains in 2 GB.")
    check_size(settings)
    shape, m = shape_of(settings), settings.model
    module = empty_module(settings)
    options: dict[str, Any] = {"rank": m.rank, "checkpointing": m.checkpointing}
    options["block"] = watched_block(settings, module)
    module.train()
    model = wrap(nn.Module.to(module, getattr(torch, m.dtype)), **options)
    kind = settings.family.architecture
    side = settings.data.size // kind.pixels
    sizes = settings.scale_schedule().sizes(side, side, kind.multiple)
    steps = intervals(sizes, schedule_sigmas(settings))
    text = model.conditioning(shape, settings.data.text_tokens)
    return estimate(model, steps, settings.train, kind.channels, text)


def lines(e: Estimate) -> str:
    """The parts in GiB, a line each."""
    rows = {
        "base weights": e.weights,
        "two LoRAs, head, averaged student": e.adapters,
        "the optimisers' moments": e.optimisers,
        "activations, gradients, batches": e.working,
        "in all, beside what the driver takes (about 1 GiB)": e.total,
    }
    return "\n".join(f"{size / 2**30:7.2f} GiB  {name}" for name, size in rows.items())
