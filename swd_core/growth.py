"""Growing any model: which size each noise level is sampled at.

All noise levels given and shown are those of the full size. A small grid is sampled at its own
level, at which noise over signal is less by the ratio of the sides: to the picture both mean the
same. So a spectral lift changes nothing in the run's levels, and what Euler steps make of a picture
on the small grid is what they make of these frequencies at full size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, pairwise
from typing import Any

from .latent_law import PUBLISHED, LatentLaw
from .lifts import LIFTS, size_ratio
from .process import FlowMatching, Levels, VarianceExploding
from .schedule import ScaleSchedule, finite_numbers, is_number, latent_sizes, one_line
from .stretches import Stretch

# Published deltas are compared with the small grid's own level: .05 there leaves half the side at
# the level that .013 does here.
DELTAS = {"careful": 0.01, "balanced": 0.05, "fast": 0.1}
MOST_SIZES = 8
KINDS = ("flow", "exploding")


@dataclass(frozen=True)
class GrowthSchedule:
    """Noise levels of a run at full size, and the rule for which of them need less than that.

    Args:
        sigmas: strictly falling, without the final 0. Flow sigmas in 0..1, or for `kind`
            "exploding" those of x_t = x0 + sigma noise.
        start: side of the smallest size relative to the target, above 0, up to 1.
        count: how many sizes, each larger than the one before by the same factor.
        delta: what a size may lose of the ideal velocity, in 0..1; see `LatentLaw.safe_odds`.
        law: the power spectrum of the model's latents.
        lift: one of LIFTS. solver: name of the host's sampler that makes the steps. options: its
            own ones, numbers or text by name, given as a mapping or as pairs.
        kind: one of KINDS. top: the sigma that stands for pure noise, 1 for flow matching.
        noise_scale: what the model multiplies its noise by. latents: what the host calls the kind
            of its latents, if that is known.

    Raises:
        ValueError: names the rule that is broken.

    Example:
        >>> growth = GrowthSchedule(tuple(1 - i / 10 for i in range(10)))
        >>> [(s.size, s.steps) for s in growth.stretches(128, 128)]
        [((64, 64), 2), ((128, 128), 8)]
    """

    sigmas: tuple[float, ...]
    start: float = 0.5
    count: int = 2
    delta: float = DELTAS["balanced"]
    law: LatentLaw = field(default_factory=lambda: PUBLISHED["FLUX.1"])
    lift: str = "spectral"
    solver: str = "euler"
    kind: str = "flow"
    top: float = 1.0
    noise_scale: float = 1.0
    name: str = ""
    options: tuple[tuple[str, float | str], ...] = ()
    latents: str = ""
    frames = ()  # every size of a video has all of them
    sigma_kind = "model"  # in the model's own terms

    def __post_init__(self) -> None:
        sigmas = finite_numbers(self.sigmas, "sigmas")
        object.__setattr__(self, "sigmas", sigmas)
        for what in ("name", "solver", "latents"):
            if not isinstance(getattr(self, what), str):
                raise ValueError(f"{what} must be text, not {getattr(self, what)!r}.")
            object.__setattr__(self, what, one_line(getattr(self, what)))
        for what, allowed in (("kind", KINDS), ("lift", LIFTS)):
            if getattr(self, what) not in allowed:
                raise ValueError(
                    f"{what} {getattr(self, what)!r} is unknown; use one of {allowed}."
                )
        for what, low, high in (
            ("start", 0, 1), ("delta", 0, 1), ("top", 0, math.inf), ("noise_scale", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, what)
            if not is_number(value) or not low < value <= high:
                raise ValueError(
                    f"{what} must be a number above {low}, up to {high}, not {value!r}."
                )
        if self.delta == 1:
            raise ValueError("delta 1 would lose everything; choose less, such as 0.05.")
        object.__setattr__(self, "options", _plain_options(self.options))
        if type(self.count) is not int or not 1 <= self.count <= MOST_SIZES:
            raise ValueError(f"count is {self.count!r}; grow over 1 to {MOST_SIZES} sizes.")
        for step, (sigma, after) in enumerate(pairwise((*sigmas, 0.0)), 1):
            if sigma <= after:
                raise ValueError(
                    f"Step {step}: sigma {sigma:g} is not above the next, {after:g}; sigmas must "
                    "fall and stay above 0 (leave out the final 0)."
                )
        if sigmas[0] > self.top * 1.01:
            raise ValueError(
                f"Step 1: sigma {sigmas[0]:g} is above pure noise, {self.top:g}: these are levels "
                "of another kind of model."
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def grows(self) -> bool:
        """Whether a run may have smaller sizes."""
        return self.count > 1 and self.start < 1

    def check_picture(self) -> None:
        """Any picture can be grown; see `ScaleSchedule.check_picture`."""

    @property
    def levels(self) -> Levels:
        flow = self.kind == "flow"
        return FlowMatching(self.noise_scale) if flow else VarianceExploding()

    def sizes(
        self, height: int, width: int, multiple: int = 2, least: int = 0
    ) -> list[tuple[int, int]]:
        """The sizes there are, smallest first; those that rounding makes alike are one.

        Args:
            height, width: of the target in latent cells. multiple: the model's patch.
            least: no side goes below it, in latent cells.

        Raises:
            ValueError: if the target is not a positive multiple.
        """
        last = max(self.count - 1, 1)
        scales = [self.start ** (1 - i / last) for i in range(self.count - 1)]
        floor = -(-least // multiple) * multiple
        found = [
            (min(max(rows, floor), height), min(max(columns, floor), width))
            for rows, columns in latent_sizes([*scales, 1.0], height, width, multiple)
        ]
        return list(dict.fromkeys(found))

    def stretches(
        self,
        height: int,
        width: int,
        multiple: int = 2,
        least: int = 0,
        *,
        frames: int | None = None,
        sigmas: Sequence[float] | None = None,
        shortest: int = 1,
    ) -> tuple[Stretch, ...]:
        """The run: its sizes, and the noise levels that each of them is sampled at.

        A step runs at the smallest size that still loses at most `delta` at the level where the
        step ends, and so at the target's where it ends without noise.

        Args:
            height, width, multiple, least: see `sizes`. frames: of a video; all sizes have them.
            sigmas: other levels of the full size than the schedule's own, with the one that the
                run ends at.
            shortest: fewest steps at one size, for solvers that need more than one: a size with
                fewer takes the last of the smaller one before.
        """
        given = (*self.sigmas, 0.0) if sigmas is None else tuple(sigmas)
        sizes = self.sizes(height, width, multiple, least)

        def safe(sigma: float) -> tuple[int, int]:
            share = self.law.safe_share(self.levels.odds(sigma), height * width, self.delta)
            fitting = (s for s in sizes if s[0] >= share * height and s[1] >= share * width)
            return next(fitting, sizes[-1])

        runs = [(size, len(list(run))) for size, run in groupby(map(safe, given[1:]))]
        found, step = [], 0
        for size, steps in _long_enough(runs, shortest):
            ratio = size_ratio(size, (height, width))
            levels = tuple(self.own(s, ratio) for s in given[step : step + steps + 1])
            found.append(Stretch(size if frames is None else (frames, *size), levels, step))
            step += steps
        return tuple(found)

    def own(self, sigma: float, ratio: float) -> float:
        """A noise level of the full size, on a grid whose side is `ratio` times smaller."""
        if self.lift != "spectral" or self.is_top(sigma):
            return sigma  # pure noise is pure noise on every grid
        return self.levels.gain(sigma, 1 / ratio) * sigma

    def is_top(self, sigma: float) -> bool:
        """Whether a noise level is pure noise to the model."""
        return sigma >= self.top * (1 - 1e-5)

    def full(self, own: Any, ratio: float) -> Any:
        """The noise level of the full size that a grid's own one stands for; also of a tensor."""
        if self.lift != "spectral":
            return own
        return self.levels.gain(own, ratio) * own

    def cost(self, height: int, width: int, multiple: int = 2, least: int = 0) -> float:
        """Cost of the whole run in full-size steps, by the number of latent cells."""
        run = self.stretches(height, width, multiple, least)
        return sum(part.steps * math.prod(part.size) for part in run) / (height * width)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "GrowthSchedule":
        """Reads a schedule from plain data.

        Raises:
            ValueError: names the unknown or missing entry, or the broken rule.
        """
        known = cls.__dataclass_fields__
        if not isinstance(data, dict) or "sigmas" not in data or set(data) - set(known):
            raise ValueError(f"A growth schedule is an object with sigmas, of {', '.join(known)}.")
        data = dict(data)
        try:
            data["law"] = LatentLaw(**data["law"]) if "law" in data else PUBLISHED["FLUX.1"]
        except TypeError as error:
            raise ValueError(f"The growth schedule's law is damaged: {error}") from error
        return cls(**data)


AnySchedule = ScaleSchedule | GrowthSchedule


def is_plain(value: Any) -> bool:
    """Whether a solver's option can be written down: a number, text, or yes and no."""
    return isinstance(value, (str, bool)) or is_number(value)


def _plain_options(given: Any) -> tuple[tuple[str, float | str], ...]:
    """A solver's options as pairs.

    Raises:
        ValueError: if they are no names with numbers or text.
    """
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    try:
        found = tuple((name, value) for name, value in pairs)
    except (TypeError, ValueError):
        found = (("", None),)
    for name, value in found:
        if not (isinstance(name, str) and name.isidentifier() and is_plain(value)):
            raise ValueError(
                "The sampler's options must be names with numbers or text, not "
                f"{one_line(repr(given))[:200]}."
            )
    return found


def _long_enough(
    runs: list[tuple[tuple[int, int], int]], shortest: int
) -> list[tuple[tuple[int, int], int]]:
    """Sizes with their numbers of steps, none of fewer than `shortest` where there are so many."""
    kept: list[tuple[tuple[int, int], int]] = []
    for size, steps in reversed(runs):
        if kept:
            larger, already = kept[0]
            taken = min(max(shortest - already, 0), steps)
            kept[0], steps = (larger, already + taken), steps - taken
        if steps:
            kept.insert(0, (size, steps))
    if len(kept) > 1 and kept[0][1] < shortest:
        (_, few), (larger, steps), *others = kept
        kept = [(larger, few + steps), *others]
    return kept
