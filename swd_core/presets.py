"""Named schedules: those that come with the pack, and those of a user's own file."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .families import FAMILIES
from .files import read_json
from .schedule import CELL, FRAME_CELL, ScaleSchedule, finite_numbers

UNREAD = ("prediction", "guidance", "size_conditioning")  # in older files; the model knows them


@dataclass(frozen=True)
class Preset:
    """A named schedule with its source and what it expects of the model.

    family: which models it is for. provenance: the paper's section or the repository's table.
    target: the image side in pixels the sizes were trained at. video: for a video instead its
    (pictures, height, width). multiple: of the latent's sides, the family's if a file doesn't say.
    auto: what the schedule node takes for a model of this family.
    """

    schedule: ScaleSchedule
    family: str
    provenance: str
    title: str
    target: int = 1024
    multiple: int = 2
    auto: bool = False
    video: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key in ("family", "provenance", "title"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key!r} must be text, not {type(getattr(self, key)).__name__}.")
        for key in ("target", "multiple"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key!r} must be a whole number above 0, not {value!r}.")
        if not isinstance(self.auto, bool):
            raise ValueError(f"'auto' must be true or false, not {self.auto!r}.")
        if self.video != ():
            numbers = finite_numbers(self.video, "video")
            if len(numbers) != 3 or any(n < 1 or n != int(n) for n in numbers):
                raise ValueError(
                    f"'video' must be whole numbers above 0 for pictures, height and width, not "
                    f"{list(numbers)}."
                )
            object.__setattr__(self, "video", tuple(map(int, numbers)))

    def latent_target(self, pixels: int = CELL) -> tuple[int | None, int, int]:
        """Latent frames (None for pictures), height and width of the target.

        Args:
            pixels: along a side of a latent cell.
        """
        if not self.video:
            return None, self.target // pixels, self.target // pixels
        pictures, height, width = self.video
        return (pictures - 1) // FRAME_CELL + 1, height // pixels, width // pixels


def parse_preset(name: str, entry: Any) -> Preset:
    """Checks one entry of a presets file.

    Raises:
        ValueError: names the entry and the reason.
    """
    try:
        if not isinstance(entry, dict):
            raise ValueError(f"it must be an object, not {type(entry).__name__}")
        data = {key: value for key, value in entry.items() if key not in UNREAD}
        family = FAMILIES.get(data.get("family"))
        data.setdefault("multiple", family.architecture.multiple if family else 2)
        schedule = ScaleSchedule(
            data.pop("scales", ()),
            data.pop("sigmas", ()),
            data.pop("sigma_kind", "flow"),
            name,
            data.pop("frames", ()),
        )
        return Preset(schedule=schedule, **data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Preset {name!r}: {error}") from error


def read_presets(path: Path) -> tuple[dict[str, Preset], list[str]]:
    """Reads a presets file: the good presets by name, and a message for every broken one.

    The messages name file, entry and reason; an unreadable file is one message and no presets.
    """
    try:
        entries = read_json(path)
    except (OSError, ValueError) as error:
        return {}, [f"{path.name} can't be read as JSON: {error}"]
    if not isinstance(entries, dict):
        return {}, [
            f"{path.name} must be one object of presets by name, not {type(entries).__name__}."
        ]
    found, problems = {}, []
    for name, entry in entries.items():
        try:
            found[name] = parse_preset(name, entry)
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return found, problems


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """The presets that come with the pack (presets.json)."""
    found, problems = read_presets(Path(__file__).with_name("presets.json"))
    if problems:
        raise ValueError(problems[0])
    return found
