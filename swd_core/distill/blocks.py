"""Where a model's transformer blocks are."""

from torch import nn

LISTS = (
    *("transformer_blocks", "single_transformer_blocks", "joint_blocks"),
    *("layers", "noise_refiner", "context_refiner"),
)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks, which hold nearly all weights of any of the models."""
    return [
        block
        for name, blocks in module.named_modules()
        if isinstance(blocks, nn.ModuleList) and name.rpartition(".")[2] in LISTS
        for block in blocks
    ]
