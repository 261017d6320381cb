"""The sheets shown lately: what a page can put aside from them needs no other run."""

from collections import OrderedDict
from dataclasses import replace

from torch import Tensor

from ..swd_core.drafts import Drafts
from .growth_sampler import plain_schedule

MOST_BYTES = 256 << 20


def kept(drafts: Drafts) -> Drafts:
    """The same to be kept for later: in main memory, as those of files, and without a VAE."""
    return replace(drafts.map(Tensor.cpu), schedule=plain_schedule(drafts.schedule))


class Shown:
    """Drafts by names; the oldest go beyond MOST_BYTES, the last one stays."""

    def __init__(self) -> None:
        self.sheets: OrderedDict[str, Drafts] = OrderedDict()

    def add(self, name: str, drafts: Drafts) -> None:
        self.sheets[name] = kept(drafts)
        self.sheets.move_to_end(name)
        while len(self.sheets) > 1 and sum(d.bytes for d in self.sheets.values()) > MOST_BYTES:
            self.sheets.popitem(last=False)


LATELY = Shown()  # by the names of their sheets
