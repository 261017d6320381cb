"""What diffusers' models have in common behind the trainer's interface."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families import Architecture, existing_block
from ..lora import LoraLayer
from ..process import FlowMatching
from .adapters import active_adapter, adapter, add_adapters
from .attention import quick_attention
from .compiled import compile_blocks, is_compiled
from .conditioning import Conditioning
from .watch import Watched, watch


def checkpointed(module: nn.Module, *args: Any) -> Any:
    """Runs a block without keeping its activations.

    The backward pass computes it again when another adapter, or none, is active: the one of the
    forward pass is put back for that.
    """
    name = active_adapter(module)

    def run(*inputs: Any) -> Any:
        with adapter(module, name), quick_attention(inputs[0].device):
            return module(*inputs)

    return checkpoint(run, *args, use_reentrant=False)


@contextmanager
def replaced(module: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """Runs the body with some children of `module` exchanged."""
    before = {name: getattr(module, name) for name in parts}
    for name, part in parts.items():
        setattr(module, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


@dataclass
class DiffusersModel(Watched):
    """The subclasses say whose architecture they are, how to call the model and where to look.

    Args:
        module: the diffusers model, frozen here. It gets the adapters 'student' and 'fake'.
        rank: of both adapters.
        block: the block, counted from 0, whose tokens the losses compare; about the middle if None.
        checkpointing: compute activations again in the backward pass, to save memory.
        compile: have torch compile the blocks when they first run.
    """

    module: nn.Module
    rank: int = 64
    block: int | None = None
    checkpointing: bool = False
    compile: bool = False
    architecture: ClassVar[Architecture]
    blocks: ClassVar[str] = "transformer_blocks"  # the list of those whose tokens can be compared
    process: Any = field(init=False, default_factory=FlowMatching)
    _end: nn.Module | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.check()
        adapted = self.architecture.diffusers.adapted
        add_adapters(self.module, adapted, ("student", "fake"), self.rank)
        self.width = self._width()
        if self.compile:
            compile_blocks(self.module)
        if self.checkpointing:
            self.module.enable_gradient_checkpointing(self.run_block)

    @property
    def patch(self) -> int:
        return self.architecture.patch

    @staticmethod
    def conditioning(shape: dict[str, Any], t5_tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one picture's conditioning by name, as it is prepared.

        Args:
            shape: the config of the diffusers model. t5_tokens: where T5 reads the prompt.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError if the block that is to be looked at does not exist."""
        self.block = existing_block(len(getattr(self.module, self.blocks)), self.block)

    def level(self, t: Tensor) -> Tensor:
        """Noise level of the process for times 0..1."""
        return t

    def predict(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        output = self._run(x, sigma, text)
        return self.process.to_x0(x, output.float(), sigma.view(-1, 1, 1, 1))

    def features(self, x: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        with self._first_half(), self._kept(self.watched), watch(self.watched, self.tokens) as seen:
            self._run(x, sigma, text, to_end=False)
        return seen[0]

    def predict_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with self._kept(self._last()):
            return super().predict_with_features(x, sigma, text)

    def score_with_features(
        self, x: Tensor, sigma: Tensor, text: Conditioning
    ) -> tuple[Tensor, Tensor]:
        with self._kept(self.watched):
            return super().score_with_features(x, sigma, text)

    def layers(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, LoraLayer]:
        """The student's matrices as published: half precision, alpha equal to the rank."""
        return {
            name: LoraLayer(down.half().cpu().contiguous(), up.half().cpu().contiguous(), 1.0)
            for name, (down, up) in pairs.items()
        }

    @contextmanager
    def _kept(self, block: nn.Module | None) -> Iterator[None]:
        """Keeps the activations of the block that a graph ends with.

        The backward pass begins there: computing them again would take as much memory at once.
        """
        self._end = block
        try:
            yield
        finally:
            self._end = None

    def run_block(self, block: nn.Module, *args: Any) -> Any:
        """What diffusers calls instead of a block where it is asked for checkpointing."""
        last = block is self._end
        if is_compiled(block):
            return block(*args) if last else block.forward.checkpointed(*args)
        if last:
            with quick_attention(self._device):
                return block(*args)
        return checkpointed(block, *args)

    def _last(self) -> nn.Module | None:
        """The block that a whole pass ends with."""
        return getattr(self.module, self.blocks)[-1]

    @property
    def watched(self) -> nn.Module:
        return getattr(self.module, self.blocks)[self.block]

    def tokens(self, output: Any) -> Tensor:
        return output[1]

    def _width(self) -> int:
        return self.module.inner_dim

    def _first_half(self) -> Any:
        blocks = getattr(self.module, self.blocks)
        return replaced(self.module, **{self.blocks: blocks[: self.block + 1]})

    def _call(self, x: Tensor, sigma: Tensor, text: Conditioning, to_end: bool = True) -> Tensor:
        raise NotImplementedError

    def _run(self, *arguments: Any, to_end: bool = True) -> Tensor:
        # Checkpointed and compiled blocks see to it themselves; one mode less for every call.
        own = self.checkpointing or self.compile
        with nullcontext() if own else quick_attention(self._device):
            return self._call(*arguments, to_end=to_end)

    def _cast(self, *tensors: Tensor) -> list[Tensor]:
        dtype = next(self.module.parameters()).dtype
        return [t.to(self._device, dtype) for t in tensors]

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


class DoubleAndSingle(DiffusersModel):
    """With FLUX's two kinds of blocks: of two streams first, of one after them."""

    def _last(self) -> nn.Module | None:
        return [*self.module.transformer_blocks, *self.module.single_transformer_blocks][-1]

    def _first_half(self) -> Any:
        return replaced(
            self.module,
            transformer_blocks=self.module.transformer_blocks[: self.block + 1],
            single_transformer_blocks=nn.ModuleList(),
        )
