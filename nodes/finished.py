"""What was finished lately, so that picking one more draft doesn't repeat the others."""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from ..swd_core.drafts import Drafts, join
from .drafting import Sampling

MOST_BYTES = 256 << 20

_numbers = count()
_alive: dict[int, int] = {}  # the number of each object by its id, while it lives


def number_of(value: Any) -> Hashable:
    """A number that stands for an object as long as it lives and then for none; nothing is held."""
    if id(value) not in _alive:
        try:
            weakref.finalize(value, _alive.pop, id(value), None).atexit = False
        except TypeError:
            return object()  # can't be watched, so it is another one each time
        _alive[id(value)] = next(_numbers)
    return _alive[id(value)]


def trace(value: Any) -> Hashable:
    """What makes a conditioning the same as another: the same objects in the same places."""
    if isinstance(value, dict):
        return tuple((key, trace(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(trace, value))
    return value if isinstance(value, (str, int, float, type(None))) else number_of(value)


class Finished:
    """Images by their drafts, the draft and what finished them; the oldest go beyond MOST_BYTES.

    A graph's objects are known by numbers, so that the host frees models and conditioning as usual.
    """

    def __init__(self) -> None:
        # Of one image each; of its clean latents only those of the steps that ran.
        self.rows: OrderedDict[tuple, Drafts] = OrderedDict()

    def run(
        self, sampling: Sampling, source: Drafts, drafts: Drafts, until: int, batch: int
    ) -> Drafts:
        """As `sampling.run`, but only for what isn't there yet.

        Args:
            source: what the LATENT carries. drafts: those picked of it.
        """
        run = (number_of(source), until, *map(trace, (sampling.model, sampling.cfg, sampling.vae)))
        digests = (
            hashlib.blake2b(x0.contiguous().view(torch.uint8).numpy()).digest()
            for x0 in drafts.scales[-1].cpu()
        )
        keys = [
            (*run, trace(sampling.texts[draft.prompt]), digest, draft)
            for digest, draft in zip(digests, drafts.images, strict=True)
        ]
        found = {key: self.rows[key] for key in keys if key in self.rows}
        missing = [i for i, key in enumerate(keys) if key not in found]
        waiting = iter([keys[i] for i in missing])

        def keep(part: Drafts) -> None:
            for i in range(len(part.images)):
                row = part.choose([i])
                found[next(waiting)] = replace(row, scales=row.scales[drafts.step :])

        if missing:
            sampling.run(drafts.choose(missing), until, batch, keep)
        else:
            sampling.check(drafts)
        self._remember(found)
        before = (drafts.choose([i]).scales for i in range(len(keys)))
        return join(
            [
                replace(found[key], scales=(*scales, *found[key].scales))
                for key, scales in zip(keys, before, strict=True)
            ]
        )

    def _remember(self, found: dict[tuple, Drafts]) -> None:
        living = set(_alive.values())
        for key in [key for key in self.rows if key in found or key[0] not in living]:
            del self.rows[key]
        self.rows.update(found)
        size = sum(row.bytes for row in self.rows.values())
        while size > MOST_BYTES:
            _, row = self.rows.popitem(last=False)
            size -= row.bytes


LATELY = Finished()
