"""How strongly each layer of a LoRA counts: PEFT's alpha, ranks and their patterns."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import parse_json, read_json
from .lora_patterns import Patterns, read_patterns

CONFIG_NAME = "adapter_config.json"
HEADER_KEY = "lora_adapter_metadata"
MOST_BYTES = 1 << 22


@dataclass(frozen=True)
class LoraConfig:
    """The part of a PEFT config that scales layers; `alpha` None means alpha equals the rank."""

    alpha: float | None = None
    rank: int | None = None
    alpha_pattern: Patterns = Patterns()
    rank_pattern: Patterns = Patterns()
    rslora: bool = False

    def scale(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.value(module, self.alpha)
        root = math.sqrt(rank) if self.rslora else rank
        return (rank if alpha is None else alpha) / root

    def fits(self, ranks: Mapping[str, int]) -> bool:
        """Whether layers of these ranks, by module, can be the ones it describes."""
        return all(self.rank_pattern.value(m, self.rank) in (r, None) for m, r in ranks.items())


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError(f"{what} must be a finite number, not {str(value)[:40]!r}.")
    return value


def _patterns(config: Mapping[str, Any], key: str) -> Patterns:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{key} must be an object.")
    for pattern, value in patterns.items():
        _number(value, f"{key} of {pattern[:40]!r}")
    return read_patterns(patterns, key)


def parse_config(config: Any) -> LoraConfig:
    """Checks a PEFT config.

    Raises:
        ValueError: names the entry that can't be used.
    """
    if not isinstance(config, dict):
        raise ValueError("it must be a JSON object.")
    kind = str(config.get("peft_type") or "LORA")[:40]
    if kind.upper() != "LORA":
        raise ValueError(f"its peft_type is {kind}; only LORA can be loaded.")
    if config.get("use_dora"):
        raise ValueError("it uses DoRA, which no SwD student does.")
    rank = config.get("r")
    return LoraConfig(
        _number(config["lora_alpha"], "lora_alpha") if "lora_alpha" in config else None,
        None if rank is None else int(_number(rank, "r")),
        _patterns(config, "alpha_pattern"),
        _patterns(config, "rank_pattern"),
        bool(config.get("use_rslora")),
    )


def read_config(file: Path) -> LoraConfig | None:
    """adapter_config.json beside a PEFT file; None where there is none.

    Raises:
        ValueError: names the file and the entry that can't be used.
    """
    path = file.with_name(CONFIG_NAME)
    if not os.path.lexists(path):
        return None
    try:
        return parse_config(read_json(path, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} beside {file.name} can't be used: {error}") from error


def header_config(metadata: Mapping[str, str]) -> LoraConfig | None:
    """The PEFT config that newer diffusers write into the file's own header.

    Raises:
        ValueError: names the entry that can't be used.
    """
    if HEADER_KEY not in metadata:
        return None
    try:
        config = parse_json(metadata[HEADER_KEY], "it")
        if not isinstance(config, dict):
            raise ValueError("it must be a JSON object.")
        return parse_config({re.sub(r"^(transformer|unet)\.", "", k): v for k, v in config.items()})
    except ValueError as error:
        raise ValueError(f"The header entry {HEADER_KEY} can't be used: {error}") from error
