"""Where a training keeps itself: a name is one training, of the same data and the same settings."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import PART, check_writable, held
from ..lora_files import WEIGHTS_NAME
from ..tensor_files import open_tensors
from .checkpoint import load_checkpoint
from .config import Settings
from .sources import prompts_alone

log = logging.getLogger(__name__)
MARK = "swd_training"
FREE = ("steps", "autocast")  # how far, and on what device
ALIKE = 0.03  # of the largest value: encoding the same twice is not exact everywhere


@dataclass(frozen=True)
class Home:
    """The places of one training.

    checkpoint: a file. lora: the folder of what comes out. identity: see `identity`. mark: what
    checkpoint and LoRA carry, so that each is known for this training's own.
    """

    checkpoint: Path
    lora: Path
    identity: dict[str, Any]
    mark: str

    @property
    def record(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"identity": self.identity, "mark": self.mark}


@contextmanager
def alone(folder: Path, refusal: str, *, holds: bool = True) -> Iterator[None]:
    """Makes a training's folder and holds it while the body runs; if it stays empty, it goes again.

    Args:
        holds: False in processes that another one writes for.

    Raises:
        ValueError: `refusal`, if another process holds it.
    """
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            if holds:
                try:
                    stack.enter_context(held(folder))
                except BlockingIOError as error:
                    raise ValueError(refusal) from error
            yield
    finally:
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def identity(settings: Settings, content: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in every part of one training.

    Args:
        content: of the data and the teacher: text or numbers that tell them from others, tensors
            where others may be nearly the same.
    """
    m, schedule = settings.model, settings.scale_schedule()
    told = {k: v for k, v in asdict(settings.train).items() if k not in FREE}
    told |= {"family": m.family, "base": m.base, "rank": m.rank, "block": m.block}
    if settings.family.architecture.guided:
        told["embedded_guidance"] = m.embedded_guidance
    if prompts_alone(Path(settings.data.source)):
        names = ("guidance", "pool", "pool_renewed", "pool_steps")
        told |= {f"teacher's {name}": getattr(settings.teacher, name) for name in names}
    told |= {"scales": schedule.scales, "sigmas": schedule.sigmas}
    # A checkpoint keeps tuples as they are; a TOML list became one.
    told = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
    return {"settings": told, "content": dict(content)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is not the same in two trainings: of their settings, and of their content."""
    # A setting that one of them doesn't know is of another version of the pack.
    known = before["settings"].keys() & now["settings"].keys()
    pairs = {k: (before["settings"][k], now["settings"][k]) for k in sorted(known)}
    settings = [f"{k} was {a}, is {b}" for k, (a, b) in pairs.items() if a != b]
    a, b = before["content"], now["content"]
    names = sorted(a.keys() | b.keys())
    return settings, [f"other {name}" for name in names if not _same(a.get(name), b.get(name))]


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    return a.shape == b.shape and bool((a - b).abs().max() <= ALIKE * b.abs().max())


def claim(
    checkpoint: Path,
    lora: Path,
    now: dict[str, Any],
    *,
    instead: str,
    changed: bool = False,
) -> Home:
    """The home of a training at these places, if nothing else is there.

    Args:
        now: see `identity`. instead: what else the user can do, for the messages. changed: go on
            with other settings than those of the checkpoint.

    Raises:
        ValueError: if there is another training or anything else; says what differs. OSError: if
            nothing can be written there.
    """
    state, mark = load_checkpoint(checkpoint, mmap=True), secrets.token_hex(16)
    if state is not None:
        try:
            mark = str(state["training"]["mark"])
            settings, content = differences(state["training"]["identity"], now)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The checkpoint {checkpoint} doesn't say what it was trained on. {instead}"
            ) from error
        if changed and settings:
            log.info("since the checkpoint, %s", "; ".join(settings))
            settings = []
        if settings or content:
            raise ValueError(
                f"{checkpoint} is of another training: {'; '.join([*content, *settings])}. "
                f"{instead}"
            )
    home = Home(checkpoint, lora, now, mark)
    check_own(home, instead)
    for folder in (checkpoint.parent, lora):
        check_writable(folder)
    return home


def check_own(home: Home, instead: str = "Move it away.") -> None:
    """Raises ValueError if the LoRA's folder holds anything but this training's own."""
    folder = home.lora
    if not os.path.lexists(folder):
        return
    if folder.is_dir():
        names = [p.name for p in folder.iterdir() if not PART.fullmatch(p.name)]
        if not names or _mark_of(folder / WEIGHTS_NAME) == home.mark:
            return
    raise ValueError(
        f"{folder} is there already, and not of this training: nothing of it is overwritten. "
        f"{instead}"
    )


def _mark_of(weights: Path) -> str | None:
    try:
        with open_tensors(weights) as file:
            return (file.metadata() or {}).get(MARK)
    except (OSError, ValueError):
        return None
