"""Which size and which noise level each step of a scale-wise run has."""

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .stretches import Stretch, scales_at

MAX_STEPS = 1000
SIGMA_KINDS = ("flow", "timestep")
LONGEST_NAME = 80
CELL, FRAME_CELL = 8, 4  # pixels and later frames per latent cell, in every family of presets.json


def one_line(text: str) -> str:
    """Text from a file as a short line that can be shown anywhere."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split())
    return plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 3]}..."


def is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON's integers may be too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def finite_numbers(values: Any, what: str) -> tuple[float, ...]:
    """`values` as finite floats, or one ValueError that names the first bad step."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ValueError(f"{what} must be a list of numbers, not {type(values).__name__}.")
    if not 1 <= len(values) <= MAX_STEPS:
        raise ValueError(f"{what} has {len(values)} values; a schedule has 1 to {MAX_STEPS} steps.")
    numbers = []
    for step, value in enumerate(values, 1):
        if not is_number(value):
            shown = repr(value)[:40]
            raise ValueError(f"{what}, step {step}: {shown} is not a finite number.")
        numbers.append(float(value))
    return tuple(numbers)


def parse_steps(text: str, what: str) -> tuple[float, ...]:
    """Numbers typed as a list, with commas, spaces or brackets: "0.5, 0.75 1".

    Raises:
        ValueError: names `what` and the step that is no number.
    """
    parts = [part for part in re.split(r"[\s,;\[\]()]+", text) if part]
    if len(parts) > MAX_STEPS:
        raise ValueError(f"{what} has {len(parts)} values; a schedule has 1 to {MAX_STEPS} steps.")
    numbers = []
    for step, part in enumerate(parts, 1):
        try:
            numbers.append(float(part))
        except ValueError:
            raise ValueError(f"{what}, step {step}: {part[:20]!r} is not a number.") from None
    return tuple(numbers)


def latent_sizes(
    scales: Sequence[float], height: int, width: int, multiple: int = 2
) -> list[tuple[int, int]]:
    """Latent (height, width) at each scale: scale 1 is exactly the target, others are rounded.

    Raises:
        ValueError: if the target itself is not a positive multiple.
    """
    for side, what in ((height, "height"), (width, "width")):
        if side < multiple or side % multiple:
            raise ValueError(
                f"The latent {what} {side} is not a positive multiple of {multiple}, the model's "
                f"patch. Choose an image side that is a multiple of {multiple} latent cells "
                f"({multiple * CELL} pixels where a cell is {CELL})."
            )

    def rounded(side: int, scale: float) -> int:
        return side if scale == 1 else max(multiple, int(side * scale / multiple + 0.5) * multiple)

    return [(rounded(height, scale), rounded(width, scale)) for scale in scales]


def latent_frames(shares: Sequence[float], frames: int) -> list[int]:
    """Latent frames at each share of a video's time: share 1 is exactly `frames`.

    A causal video VAE stores the first picture alone and the later ones by fours (Wan), so that
    latent frame is always there and the share is that of the others: 21 latent frames (81 pictures)
    at shares 1/4, 1/2, 3/4 and 1 are 6, 11, 16 and 21 (21, 41, 61 and 81 pictures).

    Raises:
        ValueError: if `frames` is below 1.
    """
    if frames < 1:
        raise ValueError(f"The latent has {frames} frames; a video has at least 1.")
    return [1 + int((frames - 1) * share + 0.5) for share in shares]


@dataclass(frozen=True)
class ScaleSchedule:
    """Sizes and noise levels of a scale-wise run.

    Args:
        scales: side of each step relative to the target, never falling, the last one 1.
        sigmas: noise level of each step, strictly falling, without the final 0. In 0..1 for flow
            matching; for `sigma_kind` "timestep" they are timesteps in 0..1000 (SDXL) that the
            model's own noise table turns into sigmas.
        name: the preset it comes from, if any; kept as one short line.
        frames: for videos, the share of the latent frames after the first that each step has, in
            0..1, never falling, the last one 1; empty for all frames throughout. See
            `latent_frames`.
        eta: share of the predicted noise, 0 to 1, in the noise of a step that has the size of the
            one before (arXiv 2603.06136); the rest is fresh, as all of it is at another size.

    Raises:
        ValueError: names the step (counted from 1) and the rule it breaks.

    Example:
        >>> ScaleSchedule((0.5, 0.75, 1), (1.0, 0.8, 0.6)).sizes(96, 128)
        [(48, 64), (72, 96), (96, 128)]
    """

    scales: tuple[float, ...]
    sigmas: tuple[float, ...]
    sigma_kind: str = "flow"
    name: str = ""
    frames: tuple[float, ...] = ()
    eta: float = 0.0

    def __post_init__(self) -> None:
        scales, sigmas = (
            finite_numbers(self.scales, "scales"),
            finite_numbers(self.sigmas, "sigmas"),
        )
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "name", one_line(self.name))
        if self.sigma_kind not in SIGMA_KINDS:
            raise ValueError(
                f"sigma_kind {self.sigma_kind!r} is unknown; use one of {SIGMA_KINDS}."
            )
        if len(scales) != len(sigmas):
            raise ValueError(
                f"{len(scales)} scales but {len(sigmas)} sigmas: every step needs one of each "
                "(leave out a final 0 among the sigmas)."
            )
        top = 1.0 if self.sigma_kind == "flow" else 1000.0
        held = array("f", sigmas)  # models are given them in single precision
        for step, (scale, sigma) in enumerate(zip(scales, sigmas, strict=True), 1):
            if not 0 < scale <= 1:
                raise ValueError(
                    f"Step {step}: scale {scale:g} is outside 0..1 (1 is the full size)."
                )
            if not (0 < held[step - 1] and sigma <= top):
                raise ValueError(f"Step {step}: sigma {sigma:g} is outside 0..{top:g}, 0 excluded.")
            if step > 1 and scale < scales[step - 2]:
                raise ValueError(
                    f"Step {step}: scale {scale:g} is below step {step - 1}'s "
                    f"{scales[step - 2]:g}; scales may only grow."
                )
            if step > 1 and held[step - 1] >= held[step - 2]:
                raise ValueError(
                    f"Step {step}: sigma {sigma:g} is not below step {step - 1}'s "
                    f"{sigmas[step - 2]:g}; sigmas must fall."
                )
        if scales[-1] != 1:
            raise ValueError(
                f"Step {len(scales)}: the last scale is {scales[-1]:g}; it must be 1, "
                "the full size."
            )
        if not is_number(self.eta) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta {str(self.eta)[:20]} is not a number from 0 to 1.")
        everywhere = self.frames is None or self.frames == ()
        object.__setattr__(self, "frames", () if everywhere else self._checked_frames())

    def _checked_frames(self) -> tuple[float, ...]:
        """The shares of time; none where every step has all frames."""
        frames = finite_numbers(self.frames, "frames")
        if len(frames) != self.steps:
            raise ValueError(
                f"{len(frames)} frames but {self.steps} scales: every step needs one of each "
                "(or leave out frames, for all of them throughout)."
            )
        for step, share in enumerate(frames, 1):
            if not 0 <= share <= 1:
                raise ValueError(
                    f"Step {step}: frames {share:g} is outside 0..1 (1 is the whole video)."
                )
            if step > 1 and share < frames[step - 2]:
                raise ValueError(
                    f"Step {step}: frames {share:g} is below step {step - 1}'s "
                    f"{frames[step - 2]:g}; frames may only grow."
                )
        if frames[-1] != 1:
            raise ValueError(
                f"Step {len(frames)}: the last of frames is {frames[-1]:g}; it must be 1, the "
                "whole video."
            )
        return () if frames[0] == 1 else frames

    @property
    def steps(self) -> int:
        return len(self.scales)

    @property
    def grows(self) -> bool:
        """Whether it has steps of smaller sides."""
        return self.scales[0] < 1

    @property
    def time(self) -> tuple[float, ...]:
        """The share of time of every step, 1 throughout where `frames` is empty."""
        return self.frames or (1.0,) * self.steps

    def sizes(
        self, height: int, width: int, multiple: int = 2, frames: int | None = None
    ) -> list[tuple[int, ...]]:
        """Latent size (height, width) of every step; (frames, height, width) of a video.

        Args:
            height, width: the target's latent size; the last step has exactly this.
            multiple: each smaller side is rounded to a multiple of it (the model's patch).
            frames: latent frames of the target, for a video.

        Raises:
            ValueError: if the target itself is not a positive multiple, or has no frames.
        """
        sizes = latent_sizes(self.scales, height, width, multiple)
        if frames is None:
            return sizes
        times = latent_frames(self.time, frames)
        return [(t, *size) for t, size in zip(times, sizes, strict=True)]

    def stretches(
        self,
        height: int,
        width: int,
        multiple: int = 2,
        *,
        frames: int | None = None,
        sigmas: Sequence[float] | None = None,
        table: Sequence[float] | None = None,
    ) -> tuple[Stretch, ...]:
        """The run, for `sample_growing`: a stretch for each step.

        Args:
            height, width, multiple, frames: see `sizes`.
            sigmas: other noise levels than the schedule's own, with the one that the run ends at;
                each runs at the size that the schedule has for it.
            table: the schedule's own sigmas in the terms of `sigmas`, where they are timesteps.
        """
        table = self.sigmas if table is None else table
        *levels, last = (*table, 0.0) if sigmas is None else sigmas
        sizes = latent_sizes(scales_at(levels, table, self.scales), height, width, multiple)
        if frames is not None:
            times = latent_frames(scales_at(levels, table, self.time), frames)
            sizes = [(t, *size) for t, size in zip(times, sizes, strict=True)]
        return tuple(
            Stretch(size, (sigma, after), step)
            for step, (size, sigma, after) in enumerate(
                zip(sizes, levels, [*levels[1:], last], strict=True)
            )
        )

    def step_costs(
        self, height: int, width: int, multiple: int = 2, frames: int | None = None
    ) -> list[float]:
        """Cost of each step in full-size steps, by the number of latent cells."""
        cells = [math.prod(size) for size in self.sizes(height, width, multiple, frames)]
        return [count / cells[-1] for count in cells]

    def cost(self, height: int, width: int, multiple: int = 2, frames: int | None = None) -> float:
        """Cost of the whole run in full-size steps."""
        return sum(self.step_costs(height, width, multiple, frames))

    def check_picture(self) -> None:
        """Raises ValueError if it is for videos alone."""
        if self.frames:
            raise ValueError(
                f"The schedule {self.name or 'given'} begins with fewer frames: it is for videos, "
                "and this is a picture. Choose a schedule without frames."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        data = asdict(self)
        if not self.frames:
            del data["frames"]  # what older versions read too
        if not self.eta:
            del data["eta"]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> "ScaleSchedule":
        """Reads a schedule from plain data.

        Raises:
            ValueError: names the missing or unknown entry, or the broken rule.
        """
        if not isinstance(data, dict):
            raise ValueError(
                f"A schedule is an object with scales and sigmas, not {type(data).__name__}."
            )
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"Unknown entry {unknown[0]!r}; "
                f"a schedule has {', '.join(cls.__dataclass_fields__)}."
            )
        for key in ("scales", "sigmas"):
            if key not in data:
                raise ValueError(f"The schedule has no {key!r}.")
        for key in ("sigma_kind", "name"):
            if not isinstance(data.get(key, ""), str):
                raise ValueError(f"{key!r} must be text, not {type(data[key]).__name__}.")
        return cls(**data)
