"""Finds the pack and, where there is one, a real ComfyUI; says so where there is none."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Appended, not inserted: our `nodes/` must not shadow the host's own `nodes.py`.
sys.path.append(str(ROOT))

COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
HAS_HOST = (COMFYUI / "comfy" / "samplers.py").is_file()
HOW = (
    f"no ComfyUI at {COMFYUI}: install one there (comfy-cli's default place: comfy install) or set "
    "COMFYUI_PATH, and COMFYUI_PYTHON if its environment is elsewhere"
)

collect_ignore = [] if HAS_HOST else ["host"]


def pytest_terminal_summary(terminalreporter):
    if not HAS_HOST:
        terminalreporter.write_line(f"Host tests skipped: {HOW}")
    elif importlib.util.find_spec("hypothesis") is None and any(
        getattr(report, "nodeid", "").startswith("tests/host")
        for reports in terminalreporter.stats.values()
        for report in reports
    ):
        terminalreporter.write_line("Fuzz test skipped: this environment lacks hypothesis")
