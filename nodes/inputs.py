"""What a link may bring: of a link the host checks the type alone, and limits only in widgets.

And what an error of ours may say.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from ..swd_core.files import printable
from ..swd_core.noise import LEAST_SEED, MAX_SEED, plain_seed
from . import _host_latent
from ._host import io

TODO = "Set another here, or in the node that is linked to it."


def checked(
    *own: str, lists: Sequence[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Holds what an `execute` gets to the node's own schema: its limits and menus, form and None.

    Args:
        own: menus that the node checks itself, as they list files or take more than they show.
        lists: of a node that the host gives lists, the inputs that may have several entries; the
            others come to `execute` by themselves. By default all are lists there, too.
    """

    def around(execute: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(execute).parameters)[1:]

        @functools.wraps(execute)
        def run(cls: type[io.ComfyNode], *args: Any, **named: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **named}
            schema = cls.SCHEMA or cls.GET_SCHEMA()
            for entry in schema.inputs:
                if entry.id not in given or entry.id in own:
                    continue
                value = given[entry.id]
                if schema.is_input_list:  # an empty one is a link that gave nothing
                    value = [_checked(entry, one) for one in value or [None]]
                    one = lists is not None and entry.id not in lists
                    given[entry.id] = _only(entry.id, value, lists) if one else value
                else:
                    given[entry.id] = _checked(entry, value)
            try:
                return execute(cls, **given)
            except Exception as error:  # held up, not held back
                _make_printable(error)
                raise

        return run

    return around


def _only(name: str, values: list[Any], lists: Sequence[str]) -> Any:
    """Raises ValueError unless there is one."""
    if len(values) > 1:
        raise ValueError(
            f"{name} brings a list of {len(values)}; this node takes lists of "
            f"{' and '.join(lists)} alone. Connect one."
        )
    return values[0]


def _make_printable(error: BaseException | None) -> None:
    """Escapes half characters in an error's text: the host's log of it would end the thread that
    runs graphs."""
    while error is not None:
        error.args = tuple(printable(a) if isinstance(a, str) else a for a in error.args)
        error = error.__cause__ or error.__context__


def as_typed(check: Callable[[Any], object], value: Any) -> bool | str:
    """What `validate_inputs` answers of a widget, before anything runs.

    Args:
        check: raises ValueError if the value can't be. value: None if it is linked and so not known
            yet; `execute` looks at that.
    """
    try:
        if value is not None:
            check(value)
    except ValueError as error:
        return str(error)
    return True


def _checked(entry: Any, value: Any) -> Any:
    """The value of one input, a number as Python's own.

    Raises:
        ValueError: if the node can't take it; names the input, the value and what is allowed.
    """
    match entry.io_type:
        case "INT" | "FLOAT":
            return _number(entry, value)
        case "BOOLEAN":
            return bool(value)
        case "COMBO" if value not in entry.options:
            options = ", ".join(entry.options)
            raise ValueError(f"{entry.id} is {value!r:.40}; choose one of {options}.")
        case "STRING":
            _check_text(entry.id, value)
        case _ if value is None and not entry.optional:
            raise ValueError(
                f"Nothing comes in at {entry.id}: the node linked to it gave none, as a loader "
                "does for a part that its file doesn't hold. Connect one that has it."
            )
        case "LATENT" if value is not None:
            _host_latent.plain_samples(value)
        case "IMAGE" if value is not None:
            _check_image(entry.id, value)
        case "CONDITIONING" if value is not None:
            _check_conditioning(entry.id, value)
    return value


def _number(entry: Any, value: Any) -> float:
    whole = entry.io_type == "INT"
    if not isinstance(value, Integral if whole else Real):
        raise ValueError(f"{entry.id} is {value!r:.40}, which is no number. {TODO}")
    try:
        number = int(value) if whole else float(value)
    except OverflowError:
        number = math.inf
    if whole and entry.max == MAX_SEED and LEAST_SEED <= number < 0:
        number = plain_seed(number)
    if not entry.min <= number <= entry.max:
        kind = "a whole number from " if whole else ""
        raise ValueError(
            f"{entry.id} is {value!s:.40}; it must be {kind}{entry.min} to {entry.max}. {TODO}"
        )
    return number


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}, which is no text. {TODO}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character, {value[error.start]!r}. Type it again."
        ) from None


def _check_image(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim != 4 or value.shape[-1] < 3 or not value.numel():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} is {shape}; pictures are (batch, height, width, 3 or 4), none of them 0. "
            "Connect a node that gives pictures in colour."
        )


def _check_conditioning(name: str, value: Any) -> None:
    pairs = value if isinstance(value, (list, tuple)) else []
    if not pairs or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], dict)
        for pair in pairs
    ):
        raise ValueError(
            f"{name} holds no conditioning. Connect a CLIP Text Encode node, or what comes of one."
        )
