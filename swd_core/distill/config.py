"""A training's settings, from a TOML file."""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..families import FAMILIES, TRAINABLE, Family
from ..files import check_name, read_json, read_toml
from ..presets import presets
from ..schedule import ScaleSchedule
from .buckets import check_schedule
from .interface import DistillConfig
from .objective import LOSSES, weighed
from .scalewise import GRID
from .sources import prompts_alone

DTYPES = ("float32", "bfloat16", "float16")
MOST = 1 << 63  # of any number: more is not one that a machine counts with
MOST_SIDE = 16384  # pixels of a finished picture
MOST_RATE = 0.1
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class ModelConfig:
    """The teacher.

    family: one of TRAINABLE. base: folder or hub id of a diffusers model; for scenes a folder of
    weights, the embedded ones if empty. block: see DiffusersModel; -1 for the family's own (see
    `Family.watched_block`). compile: some minutes at the start for faster steps; needs a C++
    compiler, on a graphics card Triton.
    """

    family: str
    base: str = ""
    dtype: str = "bfloat16"
    device: str = "auto"
    rank: int = 64
    block: int = -1
    embedded_guidance: float = 4.5
    checkpointing: bool = True
    compile: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """A preset, or scales and sigmas of one's own."""

    preset: str = ""
    scales: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class DataConfig:
    """source: folder or tar of pictures with captions, or a .txt of prompts alone. prepared: folder
    for what is encoded. size: side of the square finished picture in pixels. most_oblong: longest
    over shortest side. text_tokens: that the T5 text encoder of SD3.5 and FLUX, or the language
    model, reads of a prompt at most; the rest is cut. The family's most: `Architecture`."""

    source: str = ""
    prepared: str = ""
    size: int = 1024
    most_oblong: float = 2.0
    shard_size: int = 64
    encode_batch: int = 4
    text_tokens: int = 512


@dataclass(frozen=True)
class TeacherConfig:
    """How `sample-teacher` makes pictures for prompts (a text file, one prompt a line), `batch` of
    them at a time.

    Where a training has prompts alone and compares with pictures, the teacher makes them meanwhile:
    pool is how many there are at a time, pool_renewed how many of them each step exchanges,
    pool_steps how many Euler steps each takes.
    """

    prompts: str = ""
    steps: int = 28
    guidance: float = 4.5
    per_prompt: int = 1
    seed: int = 0
    batch: int = 4
    pool: int = 32
    pool_renewed: int = 1
    pool_steps: int = 12


@dataclass(frozen=True)
class OutputConfig:
    """run: folder of checkpoint, log and LoRA. save_every and log_every in steps.

    samples: how many of the prepared captions the student is shown for in RUN/samples and measured
    on at every save; 0 for none.
    """

    run: str = "runs/distill"
    name: str = "swd_lora"
    save_every: int = 250
    log_every: int = 10
    tensorboard: bool = True
    samples: int = 4


@dataclass(frozen=True)
class TrainConfig(DistillConfig):
    """DistillConfig with the number of steps.

    decay: the last share of the steps over which the rate falls to 0.02 of itself; 0 for none.
    """

    steps: int = 3000
    decay: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Everything one run needs."""

    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model.family]

    def scale_schedule(self) -> ScaleSchedule:
        """The schedule that is meant.

        Raises:
            ValueError: if the preset is unknown, or the lists make no schedule.
        """
        given = self.schedule
        if given.scales or given.sigmas:
            if given.preset:
                raise ValueError("[schedule] has a preset and lists of its own; give one of them.")
            kind = self.family.architecture.sigma_kind
            return ScaleSchedule(tuple(given.scales), tuple(given.sigmas), kind)
        name = given.preset or self.family.preset
        if name not in presets():
            raise ValueError(f"[schedule] preset {name!r} is unknown; use {', '.join(presets())}.")
        schedule = presets()[name].schedule
        if schedule.sigma_kind != self.family.architecture.sigma_kind:
            raise ValueError(f"[schedule] preset {name} is for another kind of model than this.")
        schedule.check_picture()
        return schedule


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, or one ValueError that says what is wanted."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is list or origin is tuple:
        count = None if origin is list else len(args)
        if not isinstance(value, (list, tuple)) or (count and len(value) != count):
            length = f"{count} numbers" if count else "numbers"
            raise ValueError(f"{where} must be a list of {length}, not {value!r}.")
        return origin(_typed(args[0], v, where) for v in value)
    if origin is types.UnionType:
        return _typed(args[0], value, where)
    names = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
        raise ValueError(f"{where} must be {names[kind]}, not {value!r}.")
    if kind in (int, float) and not abs(value) < MOST:
        raise ValueError(f"{where} is {value}, which can't be meant; give {names[kind]}.")
    if kind is str and any(sign < " " for sign in value):
        raise ValueError(
            f"{where} is {value!r}: between double quotes a backslash begins a sign of its own. "
            "Write a path of Windows with /, or in TOML between 'single quotes'."
        )
    return kind(value)


def _section(kind: type, data: Any, name: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"[{name}] must be a section, not {data!r}.")
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            raise ValueError(f"[{name}] has no {key!r}; it knows {', '.join(known)}.")
    values = {k: _typed(hints[k], v, f"[{name}] {k}") for k, v in data.items()}
    return kind(**values)


def parse_settings(data: Mapping[str, Any]) -> Settings:
    """Checks a config's content.

    Raises:
        ValueError: names section and key, what was given and what is allowed.
    """
    hints = get_type_hints(Settings)
    for name in data:
        if name not in hints:
            raise ValueError(f"There is no section [{name}]; there are {', '.join(hints)}.")
    model = data.get("model", {})
    if isinstance(model, Mapping) and "family" not in model:
        raise ValueError(f"[model] needs a family: {', '.join(TRAINABLE)}.")
    settings = Settings(**{name: _section(hints[name], part, name) for name, part in data.items()})
    _check(settings)
    if "mmd_sigma" not in data.get("train", {}):
        train = dataclasses.replace(settings.train, mmd_sigma=settings.family.mmd_sigma)
        settings = dataclasses.replace(settings, train=train)
    return settings


def _check(s: Settings) -> None:
    def one_of(where: str, value: str, allowed: Any) -> None:
        if value not in allowed:
            raise ValueError(f"{where} is {value!r}; use one of {', '.join(allowed)}.")

    one_of("[model] family", s.model.family, TRAINABLE)
    one_of("[model] dtype", s.model.dtype, DTYPES)
    one_of("[model] device", s.model.device, DEVICES)
    check_name(s.output.name, "[output] name")
    one_of("[train] kernel", s.train.kernel, ("linear", "rbf"))
    one_of("[train] levels", s.train.levels, ("grid", "uniform"))
    least = {
        "[model] rank": (s.model.rank, 1), "[model] block": (s.model.block, -1),
        "[train] steps": (s.train.steps, 1),
        "[train] fake_steps": (s.train.fake_steps, 1),
        "[train] accumulate": (s.train.accumulate, 1), "[train] warmup": (s.train.warmup, 1),
        "[train] batch_tokens": (s.train.batch_tokens, 1), "[data] size": (s.data.size, 16),
        "[data] text_tokens": (s.data.text_tokens, 1),
        "[data] shard_size": (s.data.shard_size, 1),
        "[output] save_every": (s.output.save_every, 1),
        "[data] encode_batch": (s.data.encode_batch, 1), "[teacher] steps": (s.teacher.steps, 1),
        "[output] samples": (s.output.samples, 0),
        "[output] log_every": (s.output.log_every, 1),
        "[data] most_oblong": (s.data.most_oblong, 1),
        "[teacher] per_prompt": (s.teacher.per_prompt, 1), "[teacher] pool": (s.teacher.pool, 1),
        "[teacher] batch": (s.teacher.batch, 1),
        "[teacher] pool_renewed": (s.teacher.pool_renewed, 0),
        "[teacher] pool_steps": (s.teacher.pool_steps, 1),
        **{f"[train] {name}": (getattr(s.train, name), 0) for name in LOSSES},
        "[train] guidance": (s.train.guidance, 0), "[teacher] guidance": (s.teacher.guidance, 0),
        "[model] embedded_guidance": (s.model.embedded_guidance, 0),
        "[train] gan_head": (s.train.gan_head, 0), "[train] clip": (s.train.clip, 0),
        "[train] ema": (s.train.ema, 0), "[train] decay": (s.train.decay, 0),
        "[train] backward_simulation": (s.train.backward_simulation, 0),
    }  # fmt: skip
    for where, (value, low) in least.items():
        if value < low:
            raise ValueError(f"{where} must be {low} or more, not {value}.")
    if s.data.size > MOST_SIDE:
        raise ValueError(f"[data] size must be {MOST_SIDE} or less, not {s.data.size}.")
    for where in ("lr", "lr_fake"):
        if not 0 < (value := getattr(s.train, where)) <= MOST_RATE:
            allowed = f"above 0 and at most {MOST_RATE}"
            raise ValueError(f"[train] {where} must be {allowed}, not {value}.")
    for where in ("ema", "decay", "backward_simulation"):
        if (value := getattr(s.train, where)) > 1:
            raise ValueError(f"[train] {where} must be 0 to 1, not {value}.")
    for where, (low, high) in (("mmd", s.train.mmd_sigma), ("dmd", s.train.dmd_sigma)):
        if not 0 <= low <= high <= 1:
            raise ValueError(f"[train] {where}_sigma must rise within 0..1, not {[low, high]}.")
        on_grid = s.train.levels == "grid" and s.family.architecture.prediction == "flow"
        if on_grid and not any(low <= level <= high for level in GRID):
            raise ValueError(
                f"[train] {where}_sigma {[low, high]} holds none of the authors' 28 noise levels "
                f"({GRID[-1]:.4f} to 1). Widen it, or draw evenly with levels = 'uniform'."
            )
    if not weighed(s.train):
        raise ValueError(f"[train] {', '.join(LOSSES)} are all 0: there is nothing to learn from.")
    if s.train.gan and not s.train.gan_head:
        raise ValueError(
            "[train] gan_head is 0, so the discriminator would never learn and gan would mean "
            "nothing. Give it the paper's 1e-2, or set gan to 0 as well."
        )
    most = s.family.architecture.text_tokens
    if most and s.data.text_tokens > most:
        raise ValueError(
            f"[data] text_tokens must be 1 to {most}, which is what {s.family.title} reads of a "
            f"prompt, not {s.data.text_tokens}."
        )
    if not s.family.embedded and not s.model.base:
        raise ValueError("[model] base is missing: the folder or hub id of the diffusers model.")
    if prompts_alone(Path(s.data.source)):
        check_prompts_alone(s.train)
    s.scale_schedule()


def check_size(s: Settings) -> None:
    """Raises ValueError if the schedule's sizes can't be made of [data] size."""
    kind = s.family.architecture
    check_schedule(s.scale_schedule(), s.data.size, kind.pixels, kind.multiple)


def check_heard(s: Settings, given: Mapping[str, Any]) -> None:
    """Raises ValueError for what a config file gives and nothing would come of.

    The graph's widgets are there for every family.
    """
    family, m, theirs = s.family, s.model, "diffusers' models"
    one_length = family.embedded or not family.architecture.text_tokens
    unheard = [
        ("model", "dtype", family.embedded and m.dtype != "float32", theirs),
        ("model", "checkpointing", family.embedded and m.checkpointing, theirs),
        ("model", "compile", family.embedded and m.compile, theirs),
        ("model", "embedded_guidance", not family.architecture.guided, "models that have it"),
        ("data", "text_tokens", one_length, "models that read prompts of any length"),
    ]
    for section, name, missed, whose in unheard:
        if missed and name in given.get(section, {}):
            raise ValueError(f"[{section}] {name} is for {whose}; leave it out for {family.name}.")


def check_prompts_alone(train: DistillConfig) -> None:
    """Raises ValueError if a training without pictures is to repeat them."""
    if train.regression:
        raise ValueError(
            "[data] source is prompts alone, and [train] regression repeats the picture of a "
            "prompt, of which there is none. Set it to 0, or give a folder of pictures."
        )


def read_settings(path: Path) -> Settings:
    """Reads a .toml (or .json) config.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it can't be read, or see
            `parse_settings`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no config {path}. configs/ has one for each model.")
    data = (read_json if path.suffix.lower() == ".json" else read_toml)(path)
    try:
        if not isinstance(data, Mapping):
            raise ValueError(f"it must be an object of sections, not {type(data).__name__}.")
        settings = parse_settings(data)
        check_heard(settings, data)
        return settings
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
