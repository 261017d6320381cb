"""Training in several processes, as `accelerate launch` starts them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class World:
    """This process's place among all; one process alone by default.

    Every process draws what it draws for the whole batch and takes its part (see `Draws`), so that
    n processes train as one with a batch n times as large.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This process's rows of a batch of `total`, a multiple of the number of processes."""
        count = total // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def has(self, number: int) -> bool:
        """Whether the piece of work with this number is this process's, however many are done."""
        return number % self.size == self.rank

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the processes."""
        if self.size == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.float().flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The means of numbers over the processes; all must give the same names."""
        if self.size == 1 or not values:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))

    def any(self, value: bool) -> bool:
        """Whether `value` is true in any process."""
        return self.mean({"any": float(value)})["any"] > 0

    @property
    def device(self) -> torch.device:
        nccl = self.size > 1 and torch.distributed.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, in their order; each must give as many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


def sharing_world() -> World:
    """This process's place among those that `accelerate launch` started, without joining them.

    For work that is shared by its numbers: no process waits for the words of another, however long
    one takes.
    """
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def join_world(device: str) -> World:
    """Joins the processes that `accelerate launch` started, if it did.

    Args:
        device: "cpu", "cuda" or "auto".

    Raises:
        ValueError: if accelerate is missing although several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ValueError(
            "Several processes were started, but accelerate is not installed: pip install "
            "accelerate, and start with `accelerate launch`."
        ) from error
    state = PartialState(cpu=device == "cpu")
    return World(state.process_index, state.num_processes)
