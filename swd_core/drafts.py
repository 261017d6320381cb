"""Drafts: runs stopped after a scale, to be chosen from and gone on with."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .growth import AnySchedule
from .noise import MAX_SEED, draw_noise, plain_seed, stream_seed
from .sampling import ScaleState

MAX_DRAFTS = 256
_SAME = 0.01  # of a latent's length: a card's rounding in half precision stays below


@dataclass(frozen=True)
class Draft:
    """Where one image's noise comes from.

    seed, index: of the run and of the image in it. detail: 0, or another seed that the steps after
    the draft draw from. prompt: which of several prompts it is of, by its text; "" where there is
    one alone. known: whether that text alone makes what the draft was made with.
    """

    seed: int
    index: int
    detail: int = 0
    prompt: str = field(default="", repr=False)  # the sheet's name goes by the rest
    known: bool = field(default=True, repr=False, compare=False)

    @property
    def label(self) -> str:
        """Such as: seed 7 image 3 detail 5, with the image counted from 1."""
        return f"seed {self.seed} image {self.index + 1}" + (
            f" detail {self.detail}" if self.detail else ""
        )


@dataclass(frozen=True)
class DraftNoise:
    """`noise(step, shape)` for images of several seeds: what the loops draw from."""

    images: tuple[Draft, ...]

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        rows = (draw_noise(d.detail or d.seed, (d.index,), step, shape[1:]) for d in self.images)
        return torch.cat(list(rows))

    def seeds(self, step: int) -> list[int]:
        """Each image's own generator seed; see `SeededNoise.seeds`."""
        return [stream_seed(d.detail or d.seed, d.index, step) for d in self.images]


@dataclass(frozen=True)
class Drafts:
    """Images after `step` steps of a schedule, with all that going on needs.

    Args:
        model: name of the model family they were made with.
        size: latent (height, width) of the finished images.
        images: where each image's noise comes from.
        scales: the clean latent (N, C, h, w) of every step so far, in the model's own units; of a
            growing run of every stretch.
        samples: the last of them as a VAE decodes it; None before the first step.
        method: how x0 is enlarged between steps.
        latent, mask: a picture to start from (1, C, H, W) as the VAE made it and what of it may
            change, both of full size, or None.
        prompt: what it shows, where that is known.
        x_t: of a growing run, what its solver held at the end, of the last size so far; of a
            student whose schedule has an eta, the noise that was predicted there.
        stretches: of the whole growing run; 0 for a student, whose every step is one.
    """

    schedule: AnySchedule
    model: str
    size: tuple[int, int]
    images: tuple[Draft, ...]
    scales: tuple[Tensor, ...] = ()
    samples: Tensor | None = None
    method: str = "bicubic"
    latent: Tensor | None = None
    mask: Tensor | None = None
    prompt: str = ""
    x_t: Tensor | None = None
    stretches: int = 0

    @property
    def last(self) -> int:
        """How many steps, or stretches, a whole run has."""
        return self.stretches or self.schedule.steps

    @property
    def step(self) -> int:
        return len(self.scales)

    @property
    def state(self) -> ScaleState:
        """What `sample_scalewise` goes on from."""
        return ScaleState(self.scales[-1], self.step, self.x_t) if self.scales else ScaleState()

    @property
    def held(self) -> tuple[Tensor | None, Tensor | None]:
        """What `sample_growing` goes on from: x_t and x0, mostly the same for a student."""
        x0 = self.scales[-1] if self.scales else None
        return (x0 if self.x_t is None else self.x_t), x0

    @property
    def noise(self) -> DraftNoise:
        return DraftNoise(self.images)

    @property
    def sheet(self) -> str:
        """What tells this sheet from all others: eight digits of its latents and their noise."""
        digest = hashlib.blake2b(repr(self.images).encode(), digest_size=4)
        for x0 in self.scales[-1:]:
            digest.update(x0.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Of the latents that they hold of their own; the picture they began with is shared."""
        held = [t for t in (*self.scales, self.samples, self.x_t) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def goes_with(self, other: "Drafts") -> bool:
        """Whether both can lie on one sheet: of the same model and run, and as far along it."""
        parts = [
            replace(d, images=(), scales=(), samples=None, x_t=None, latent=None, mask=None)
            for d in (self, other)
        ]
        shapes = [[x0.shape[1:] for x0 in d.scales] for d in (self, other)]
        return (
            parts[0] == parts[1]
            and shapes[0] == shapes[1]
            and _equal(self.latent, other.latent)
            and _equal(self.mask, other.mask)
        )

    def same_as(self, other: "Drafts") -> bool:
        """Whether both would finish as the same pictures: of the same noise and as good as the same
        latents, whose last bits differ where they were made in another batch."""
        return (
            self.images == other.images
            and self.goes_with(other)
            and all(
                float(torch.dist(x0.float(), there.float())) <= _SAME * float(x0.float().norm())
                for x0, there in zip(self.scales, other.scales, strict=True)
            )
        )

    def labels(self) -> list[str]:
        """A line for each image: its seed, and its place in that seed's run unless that is the
        number it has here. Of several prompts, whose rows have the same places, all say it."""
        several = len({d.prompt for d in self.images}) > 1
        return [
            f"seed {d.seed}" if d.index == i and not d.detail and not several else d.label
            for i, d in enumerate(self.images)
        ]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Drafts":
        """The same with every tensor passed through a function."""
        names = ("samples", "x_t", "latent", "mask")
        named = {name: getattr(self, name) for name in names}
        changed = {name: change(value) for name, value in named.items() if value is not None}
        return replace(self, scales=tuple(map(change, self.scales)), **changed)

    def choose(self, positions: Sequence[int]) -> "Drafts":
        """The images at these positions, counted from 0, in this order."""
        rows = torch.tensor(list(positions), dtype=torch.long)
        return replace(
            self,
            images=tuple(self.images[i] for i in positions),
            scales=tuple(x0[rows.to(x0.device)] for x0 in self.scales),
            samples=None if self.samples is None else self.samples[rows.to(self.samples.device)],
            x_t=None if self.x_t is None else self.x_t[rows.to(self.x_t.device)],
        )

    def vary(self, detail_seed: int, count: int) -> "Drafts":
        """Each image `count` times: variation k goes on with the noise of `detail_seed` + k.

        0 is an image's own noise, so that the first variation of detail seed 0 is the image itself.
        """
        varied = self.choose([i for i in range(len(self.images)) for _ in range(count)])
        seeds = [(plain_seed(detail_seed) + k) & MAX_SEED for k in range(count)] * len(self.images)
        images = [
            replace(d, detail=seed or d.detail)
            for d, seed in zip(varied.images, seeds, strict=True)
        ]
        return replace(varied, images=tuple(images))

    def batches(self, size: int) -> Iterator["Drafts"]:
        """Parts of at most `size` images."""
        for first in range(0, len(self.images), size):
            yield self.choose(range(first, min(first + size, len(self.images))))

    def check_model(self, model: str) -> None:
        """Raises ValueError if they were made with another family of models."""
        if model != self.model:
            raise ValueError(
                f"These drafts were made with a model of the family {self.model}; the loaded "
                f"model is {model or 'of no known family'}. Load the model they were made with."
            )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one == other).all())


def check_count(count: int, what: str = "count") -> None:
    """Raises ValueError unless 1..MAX_DRAFTS images are asked for."""
    if not 1 <= count <= MAX_DRAFTS:
        raise ValueError(f"{what} is {count}; ask for 1 to {MAX_DRAFTS} drafts at a time.")


def check_stop(stop_after: int, drafts: Drafts) -> None:
    """Raises ValueError unless `stop_after` is a step to come, before the last."""
    steps = drafts.last
    if steps == 1 and drafts.stretches:
        raise ValueError(
            "This growth schedule has only the finished size for this picture: nothing to draft. "
            "Choose more steps, a larger tolerance or more sizes in SwD Growth Schedule."
        )
    if not drafts.step < stop_after < steps:
        unit, done = ("size" if drafts.stretches else "step"), drafts.step
        if done + 1 >= steps:
            raise ValueError(
                f"stop_after is {stop_after}, but after {unit} {done} of {steps} only the last "
                f"{unit} is left: nothing to draft."
            )
        which = f"{done + 1}" + (f" to {steps - 1}" if done + 2 < steps else "")
        begun = f" They have {done} already; 0 finishes them." if done else ""
        raise ValueError(
            f"stop_after is {stop_after}; drafts of this schedule of {steps} {unit}s stop after "
            f"{unit} {which}.{begun}"
        )


def join(parts: Sequence[Drafts]) -> Drafts:
    """Batches of one run, together again."""
    first = parts[0]
    samples = None if first.samples is None else torch.cat([p.samples for p in parts])
    x_t = None if first.x_t is None else torch.cat([p.x_t for p in parts])
    scales = tuple(torch.cat(x0s) for x0s in zip(*(p.scales for p in parts), strict=True))
    images = tuple(d for p in parts for d in p.images)
    return replace(first, images=images, scales=scales, samples=samples, x_t=x_t)


class AnotherSheet(ValueError):
    """Picks that were clicked on another sheet than the one they are read for."""


def parse_picks(text: str, drafts: Drafts) -> tuple[int, ...]:
    """Positions, counted from 0, of "3", "1,4-6" or "all"; "" is none of them.

    A draft named twice counts once, where it was named first. "3 @1f0c22ab" is of that sheet only:
    so a click is written down, which means a picture, not a number. "3 @1f0c22ab; 5 @77aa00cc" is
    of two sheets, and the part of this one counts.

    Raises:
        ValueError: names the part that is no number, backwards or not among the drafts.
        AnotherSheet: if all was chosen on other sheets.
    """
    count = len(drafts.images)
    *clicked, typed = re.split(r"@\s*([^\s,;@]*)[\s,;]*", text.lower())
    of_sheets = dict(zip(clicked[1::2], clicked[::2], strict=True))
    if any(map(str.strip, of_sheets.values())) and drafts.sheet not in of_sheets:
        numbers, sheet = clicked[0].strip(), clicked[1]
        raise AnotherSheet(
            f"pick: {numbers[:30]} was chosen on another sheet (@{sheet[:8]}) than this one "
            f"(@{drafts.sheet}): its seed, prompt or model has changed since. Click the drafts you "
            "like on the sheet shown now, or set back what was changed."
        )
    if clicked and typed:
        raise ValueError(f"pick: {typed[:30]!r} stands behind a sheet's name; put it before the @.")
    numbers = of_sheets.get(drafts.sheet, "") if clicked else typed
    plain = re.sub(r"\s*[-–—]\s*", "-", numbers.strip())
    if plain == "all":
        return tuple(range(count))
    found: dict[int, None] = {}
    for part in filter(None, re.split(r"[\s,;]+", plain)):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if match is None:
            raise ValueError(
                f"pick: {part[:30]!r} is no draft's number. Type numbers and ranges such as "
                "1,4-6, or all."
            )
        # More digits than any sheet has numbers would only cost time to read.
        first, last = (int(n[:9]) if n else None for n in match.groups())
        last = first if last is None else last
        for number in (first, last):
            if not 1 <= number <= count:
                there = f"drafts 1 to {count}" if count > 1 else "only draft 1"
                raise ValueError(f"pick: there is no draft {part[:30]}; the sheet has {there}.")
        if last < first:
            raise ValueError(f"pick: the range {part} runs backwards; type {last}-{first}.")
        found |= dict.fromkeys(range(first - 1, last))
    return tuple(found)
