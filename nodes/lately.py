"""What was drafted and finished lately, so that no picture is waited for twice."""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..swd_core.drafts import Drafts, join
from . import _host
from .drafting import Sampling
from .growth_sampler import plain_schedule
from .shown import kept

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
    """What makes a conditioning the same as another: equal tensors and the same other objects."""
    if isinstance(value, dict):
        return tuple((key, trace(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(trace, value))
    if isinstance(value, Tensor) and not value.is_nested:
        plain = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return str(value.dtype), value.shape, hashlib.blake2b(plain.numpy()).digest()
    return value if isinstance(value, (str, int, float, type(None))) else number_of(value)


def run_of(sampling: Sampling, drafts: Drafts, until: int) -> tuple[Hashable, ...]:
    """What all images of a run have in common, but for the prompt; the model's number first."""
    plan = replace(
        drafts, images=(), scales=(), samples=None, x_t=None, latent=None, mask=None,
        schedule=plain_schedule(drafts.schedule),
    )  # fmt: skip
    vae = getattr(drafts.schedule, "vae", None) or sampling.vae
    start = (trace(drafts.latent), trace(drafts.mask))
    return (*map(trace, (sampling.model, sampling.cfg, vae)), until, plan, *start)


class Lately:
    """Images by what made them; the oldest go beyond MOST_BYTES, those of models that are gone too.

    Models are known by numbers, so that the host frees them as usual.
    """

    def __init__(self) -> None:
        self.rows: OrderedDict[tuple, Drafts] = OrderedDict()

    def draft(self, sampling: Sampling, drafts: Drafts, until: int, batch: int) -> Drafts:
        """As `sampling.run` from the first step on, but for batches that were run before.

        Whole ones: an image has other last bits in another batch, and a sheet's name goes by them.
        """
        run = run_of(sampling, drafts, until)
        texts = {prompt: trace(text) for prompt, text in sampling.texts.items()}

        def key(part: Drafts) -> tuple:
            return (*run, texts[part.images[0].prompt], part.images)

        return sampling.run(
            drafts,
            until,
            batch,
            each=lambda part: self._remember(key(part), part),
            known=lambda part: self._recall(key(part), drafts),
        )

    def finish(self, sampling: Sampling, drafts: Drafts, until: int, batch: int) -> Drafts:
        """As `sampling.run`, but only for images that aren't there yet, of which each is kept when
        it is done: an interrupt doesn't lose it."""
        run = run_of(sampling, drafts, until)
        images = [drafts.choose([i]) for i in range(len(drafts.images))]
        keys = [
            (*run, trace(sampling.texts[one.images[0].prompt]), trace(one.held), one.images)
            for one in images
        ]
        found = {key: row for key in keys if (row := self._recall(key, drafts)) is not None}
        missing = [i for i, key in enumerate(keys) if key not in found]
        waiting = iter([keys[i] for i in missing])

        def keep(part: Drafts) -> None:
            for i in range(len(part.images)):
                row, key = part.choose([i]), next(waiting)
                found[key] = replace(row, scales=row.scales[drafts.step :])
                self._remember(key, found[key])

        if missing:
            sampling.run(drafts.choose(missing), until, batch, keep)
        else:
            sampling.check(drafts)
        return join(
            [
                replace(found[key], scales=(*one.scales, *found[key].scales))
                for key, one in zip(keys, images, strict=True)
            ]
        )

    def _recall(self, key: tuple, drafts: Drafts) -> Drafts | None:
        """What is known of some of `drafts`, as a run of them gives it."""
        row = self.rows.get(key)
        if row is None:
            return None
        self.rows.move_to_end(key)
        here = row.map(_host.to_output_device)
        return replace(here, schedule=drafts.schedule, latent=drafts.latent, mask=drafts.mask)

    def _remember(self, key: tuple, row: Drafts) -> None:
        living = set(_alive.values())
        for gone in [known for known in self.rows if known[0] not in living]:
            del self.rows[gone]
        self.rows[key] = kept(replace(row, latent=None, mask=None))
        self.rows.move_to_end(key)
        size = sum(row.bytes for row in self.rows.values())
        while size > MOST_BYTES:
            _, oldest = self.rows.popitem(last=False)
            size -= oldest.bytes


LATELY = Lately()
