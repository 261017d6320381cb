"""What the host can deliver to an input, and which errors are raw.

A widget's value lies within the schema. Of a link the host checks the type alone, so the value is
any of that type: whatever the host's own nodes, or another pack's, can make of it.
"""

import ast
import math
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
KINDS = (ValueError, RuntimeError, OSError, FileNotFoundError)


@lru_cache(maxsize=64)
def _raising_lines(path: str) -> frozenset[int]:
    parsed = ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
    found = [node for node in parsed if isinstance(node, ast.Raise)]
    return frozenset(n for node in found for n in range(node.lineno, node.end_lineno + 1))


def raw(error: Exception) -> str:
    """Where a raw error comes from; "" if the pack itself raised it, by a sentence that helps.

    So a clear one is of a usual kind, comes from a raise statement of ours, and says what is wrong
    and what to do: two sentences or clauses.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(ROOT / part) for part in ("nodes", "swd_core"))
    said = str(error)
    raised = ours and last.lineno in _raising_lines(last.filename)
    sentence = said.endswith(".") and len(said) > 40 and any(mark in said[:-1] for mark in ".:;,")
    if raised and type(error) in KINDS and sentence:
        return ""
    return f"{type(error).__name__} at {last.filename}:{last.lineno} ({last.name}): {said}"


FAR = (2**31, -(2**31), 2**63, -(2**63) - 1, 2**64, 10**400)
any_int = st.sampled_from((-1, 0, 1, 2, *FAR)) | st.integers()
any_float = (
    st.sampled_from((-1.0, -0.0, 0.0, 5e-324, 1e308, math.nan, math.inf, -math.inf)) | st.floats()
)
NUMBERS = (
    "0", "1", "0.25", "0.5", "0.75", "0.9", "2", "64", "512", "1000", "999", "-1", "nan", "inf",
    "1e-320", "1e999", "0.1.2", "x", ",", "[", "٣",
)  # fmt: skip
PICKS = ("", " ", "all", "1,3", "2-1", "0", "1-99999999999", "9" * 5000, "\0", "\ud800", "../x")
any_text = (
    st.sampled_from(PICKS)
    | st.lists(st.sampled_from(NUMBERS), max_size=6).map(" ".join)
    | st.text(max_size=30)
)


@dataclass(frozen=True)
class Latent:
    """A LATENT by what is odd about it."""

    shape: tuple[int, ...]
    fill: str = "zeros"
    dtype: torch.dtype = torch.float32
    mask: tuple[int, ...] | None = None
    index: tuple[int, ...] | None = None
    strided: bool = False
    more: tuple[str, Any] | None = None

    def make(self) -> dict[str, Any]:
        x = torch.zeros(self.shape)
        if self.fill != "zeros":
            x = torch.randn(self.shape, generator=torch.Generator().manual_seed(1))
        if self.fill in ("nan", "inf"):
            x.view(-1)[:1] = float(self.fill)
        x = x.to(self.dtype)
        if self.strided:
            x = x.mT.contiguous().mT
        latent = {"samples": x, **dict([self.more] if self.more else [])}
        if self.mask is not None:
            latent["noise_mask"] = torch.arange(math.prod(self.mask)).remainder(2.0).view(self.mask)
        if self.index is not None:
            latent["batch_index"] = list(self.index)
        return latent


ONES, SIDES = st.sampled_from((1, 1, 1, 2, 3, 0)), st.sampled_from((8, 8, 8, 12, 4, 2, 1, 3, 0))
CHANNELS = st.sampled_from((16, 16, 4, 8, 3, 1, 0))
SHAPES = (
    st.tuples(ONES, CHANNELS, SIDES, SIDES)  # pictures; also the audio of ACE-Step
    | st.tuples(ONES, CHANNELS, st.sampled_from((1, 2, 5, 0)), SIDES, SIDES)  # videos
    | st.tuples(ONES, CHANNELS, SIDES)  # audio
    | st.sampled_from(((), (8,), (8, 8), (1, 16, 1, 1, 8, 8)))
)
MASKS = (
    st.tuples(ONES, st.sampled_from((8, 64, 5, 1, 0)), st.sampled_from((8, 64, 7)))
    | st.tuples(ONES, st.sampled_from((1, 3, 16)), st.just(64), st.just(64))
    | st.sampled_from(((64, 64), (1, 1, 5, 8, 8), (1, 1, 1, 64, 64), (8,), ()))
)
MORE = (("type", "audio"), ("downscale_ratio_spacial", 16), ("downscale_ratio_temporal", 8))
FILLS = ("zeros", "zeros", "random", "random", "nan", "inf")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def latents(draw: Any) -> Latent:
    """Every shape, precision and attachment that a LATENT of the host's nodes can have."""
    shape = draw(SHAPES)
    return Latent(
        shape,
        draw(st.sampled_from(FILLS)),
        draw(st.sampled_from(DTYPES)),
        draw(st.none() | MASKS),
        draw(st.none() | st.lists(st.sampled_from((0, 1, 7, -1, 9999)), max_size=3).map(tuple)),
        len(shape) > 1 and draw(st.booleans()),
        draw(st.none() | st.sampled_from(MORE)),
    )


@dataclass(frozen=True)
class Picture:
    """An IMAGE by what is odd about it."""

    shape: tuple[int, ...]
    fill: float = 0.5
    dtype: torch.dtype = torch.float32

    def make(self) -> Tensor:
        return torch.full(self.shape, self.fill).to(self.dtype)


PIXELS = st.sampled_from((64, 64, 16, 17, 1, 0))
pictures = st.builds(
    Picture,
    st.tuples(ONES, PIXELS, PIXELS, st.sampled_from((3, 3, 4, 1, 0)))
    | st.sampled_from(((64, 64, 3), (64, 64), (), (1, 1, 4096, 3), (5, 64, 64, 3))),
    st.sampled_from((0.5, 0.5, -3.0, 1e30, math.nan, math.inf)),
    st.sampled_from(DTYPES),
)

SIGMAS = (
    (), (0.0,), (1.0,), (1.0, 0.0), (1.0, 0.6, 0.0), (0.9, 0.6), (0.6, 0.9, 0.0), (0.9, 0.9, 0.0),
    (1.0, math.nan, 0.0), (math.inf, 1.0, 0.0), (1.0, -0.5), (14.6, 2.2, 0.0), (1e-30, 0.0),
)  # fmt: skip


def conditionings(plain: list) -> dict[str, list]:
    """What the host's own nodes make of a CONDITIONING, by what is odd about it."""
    [[text, more]] = plain

    def mask(*shape: int, fill: float = 1.0) -> dict[str, Any]:
        return {"mask": torch.full(shape, fill), "mask_strength": 1.0}

    def reference(*shape: int) -> dict[str, Any]:
        return {"reference_latents": [torch.ones(shape)]}

    marks = {
        "pooled None": {"pooled_output": None},
        "area": {"area": (4, 4, 0, 2)},
        "area outside": {"area": (4, 4, 100, 0)},
        "area too large": {"area": (999, 999, 1, 1)},
        "area in percent": {"area": ("percentage", 0.5, 0.5, 0.25, 0.25)},
        "area at the edge": {"area": ("percentage", 0.5, 0.5, 1.0, 0.0)},
        "area without size": {"area": ("percentage", 0.0, 0.0, 0.0, 0.0)},
        "area of a video": {"area": (1, 4, 4, 0, 0, 0)},
        "area of a video in percent": {"area": ("percentage", 1.0, 0.5, 0.5, 0.0, 0.5, 0.5)},
        "mask": mask(1, 64, 64),
        "masks of odd sizes": mask(3, 5, 7),
        "mask of nothing": mask(1, 64, 64, fill=0.0),
        "mask without size": mask(0, 8, 8),
        "mask to its bounds": {**mask(1, 64, 64), "set_area_to_bounds": True},
        "nothing to its bounds": {**mask(1, 64, 64, fill=0.0), "set_area_to_bounds": True},
        "strength NaN": {"strength": math.nan},
        "strength -1": {"strength": -1.0},
        "never": {"start_percent": 0.5, "end_percent": 0.5},
        "at the end": {"start_percent": 0.9, "end_percent": 1.0},
        "from behind": {"start_percent": 2.0, "end_percent": -1.0},
        "reference": reference(1, 16, 8, 8),
        "reference of another VAE": reference(1, 4, 3, 5),
        "reference of a video": reference(1, 16, 2, 8, 8),
        "inpainting": {
            "concat_latent_image": torch.ones(1, 16, 8, 8), "concat_mask": torch.ones(1, 1, 8, 8),
        },
        "inpainting of another size": {
            "concat_latent_image": torch.ones(1, 4, 5, 3), "concat_mask": torch.ones(1, 7, 8),
        },
        "guidance NaN": {"guidance": math.nan},
        "sizes of nothing": {"width": 0, "height": -8, "crop_w": 10**6, "target_width": 0},
    }  # fmt: skip
    return {
        "": plain,
        "twice": plain + plain,
        "three texts": [[text.repeat(3, 1, 1), more]],
        "half": [[text.half(), more]],
        "NaN": [[text * math.nan, more]],
        "no pooled": [[text, {}]],
        "no text": [[None, more]],
        "none at all": [],
        **{name: [[text, {**more, **mark}]] for name, mark in marks.items()},
    }
