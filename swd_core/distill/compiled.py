"""Transformer blocks compiled by torch, their gradient's recomputation included.

Fused kernels instead of one for every little operation: most of a small block's time is the latter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from .attention import written_out
from .blocks import blocks_of

# Kinds of calls to one function: adapter, gradient or not, first or last block, kinds of blocks.
VERSIONS = 128
COMPILER = "inductor"


@dataclass(eq=False)
class CompiledForward:
    """The `forward` of one block by compiled functions: without gradient, and with it.

    checkpointing: whether the backward pass computes the activations again; see `checkpointed`.
    """

    block: nn.Module
    plain: Callable
    kept: Callable
    recomputed: Callable
    checkpointing: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graded = self.recomputed if self.checkpointing else self.kept
        run = graded if torch.is_grad_enabled() else self.plain
        return run(self.block, *args, **kwargs)

    def checkpointed(self, *args: Any) -> Any:
        """Runs the block without keeping its activations."""
        self.checkpointing = True
        try:
            return self.block(*args)
        finally:
            self.checkpointing = False


def is_compiled(module: nn.Module) -> bool:
    return isinstance(module.forward, CompiledForward)


def compile_blocks(module: nn.Module) -> None:
    """Has torch compile the blocks of `module`, each kind once, when they first run.

    Any sizes and batches share the compiled code; each adapter has its own.

    Raises:
        ValueError: if torch can't compile here.
    """
    check_compiler(next(module.parameters()).device)
    # Beyond the limit torch would refuse: falling back to plain calls would compute the gradient
    # with whichever adapter is active then.
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    # Else a number of tokens that is also the model's width at first would be taken for the width,
    # and the code for one size alone.
    torch.fx.experimental._config.use_duck_shape = False
    for block in blocks_of(module):
        block.forward = CompiledForward(block, *_functions(type(block).forward))


@lru_cache
def _functions(forward: Callable) -> tuple[Callable, Callable, Callable]:
    """The functions for all blocks of one class."""

    def plain(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(block, *args, **kwargs)

    def kept(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(block, *args, **kwargs)

    def recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)

    def compiled(function: Callable, graded: bool) -> Callable:
        backend = partial(_backend, graded=graded)
        return torch.compile(function, backend=backend, dynamic=True, fullgraph=True)

    return compiled(plain, False), compiled(kept, True), compiled(recomputed, True)


def _backend(graph: fx.GraphModule, inputs: list[Any], *, graded: bool) -> Callable:
    """torch's own compiler, after an exchange of the attention that a processor is slow at."""
    if graded and all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor)):
        for part in graph.modules():  # the checkpointed call is a graph within the graph
            if isinstance(part, fx.GraphModule):
                for node in part.graph.nodes:
                    if node.target is F.scaled_dot_product_attention:
                        node.target = written_out
                part.recompile()
    return torch._dynamo.lookup_backend(COMPILER)(graph, inputs)


def check_compiler(device: torch.device) -> None:
    """Compiles a line.

    Raises:
        ValueError: if that fails; a processor needs a C++ compiler, a graphics card Triton.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # torch has a dozen kinds for it
        needed = "a C++ compiler" if device.type == "cpu" else "Triton"
        raise ValueError(
            f"[model] compile is true, but torch can't compile for {device.type} here "
            f"({str(error).strip().splitlines()[0]}). Install {needed}, or set compile = false."
        ) from error
