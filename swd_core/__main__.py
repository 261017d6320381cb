"""`python -m swd_core`."""

import sys

from .commands import main

try:
    sys.exit(main())
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] == "swd_core":
        raise
    sys.exit(
        f"error: this Python has no {missing.name!r}. `make demo` makes an environment that has "
        "what generating needs (source .venv/bin/activate); the README says what training needs."
    )
