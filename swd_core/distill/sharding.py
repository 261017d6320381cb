"""The base weights spread over the processes, where `accelerate launch` was asked for FSDP."""

import logging
import os
from inspect import signature

import torch
from torch import nn

from .adapters import switched_layers
from .blocks import blocks_of

log = logging.getLogger(__name__)


def wants_sharding() -> bool:
    """Whether several processes were started by `accelerate launch --use_fsdp`."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    return asked and int(os.environ.get("WORLD_SIZE", "1")) > 1


def shard(module: nn.Module, device: torch.device) -> None:
    """Leaves each process its share of every block's frozen weights, and moves all to `device`.

    A block is whole only while it runs (FSDP2). The adapters are small and stay whole everywhere,
    their gradients averaged as without sharding; so does what lies outside the blocks.

    Raises:
        ValueError: if this version of PyTorch can't do it.
    """
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    fully_shard = getattr(fsdp, "fully_shard", None)
    if fully_shard is None or "ignored_params" not in signature(fully_shard).parameters:
        raise ValueError(
            f"PyTorch {torch.__version__} can't spread a model as FSDP does here. Update PyTorch, "
            "or start without --use_fsdp."
        )
    from torch.distributed.tensor import DTensor

    count = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (count,))
    adapters = {
        p for layer in switched_layers(module).values() for p in layer.parameters()
        if p is not layer.base.weight and p is not layer.base.bias
    }  # fmt: skip
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    numbers = {True: 0, False: 0}
    for tensor in (*module.parameters(), *module.buffers()):
        spread = isinstance(tensor, DTensor)
        numbers[spread] += tensor.numel()
        if not spread:
            tensor.data = tensor.data.to(device)
    log.info(
        "%d weights spread over %d processes, %d in each", numbers[True], count, numbers[False]
    )
