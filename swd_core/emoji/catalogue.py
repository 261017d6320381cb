"""The emoji that the embedded student knows, with their CLDR names and keywords."""

from functools import lru_cache
from pathlib import Path

from ..files import read_json


@lru_cache(maxsize=1)
def catalogue() -> tuple[dict, ...]:
    """Dicts with `code`, `emoji`, `name` and `keywords`; `swd_core.lab.catalogue_build` made it."""
    return tuple(read_json(Path(__file__).with_name("catalogue.json")))
