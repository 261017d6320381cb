"""The sheets shown lately: what a page can put aside from them needs no other run."""

from collections import OrderedDict

from ..swd_core.drafts import Drafts

MOST_BYTES = 256 << 20


class Shown:
    """Drafts by the names of their sheets; the oldest go beyond MOST_BYTES, the last one stays."""

    def __init__(self) -> None:
        self.sheets: OrderedDict[str, Drafts] = OrderedDict()

    def add(self, drafts: Drafts) -> None:
        self.sheets[drafts.sheet] = drafts
        self.sheets.move_to_end(drafts.sheet)
        while len(self.sheets) > 1 and sum(d.bytes for d in self.sheets.values()) > MOST_BYTES:
            self.sheets.popitem(last=False)


LATELY = Shown()
