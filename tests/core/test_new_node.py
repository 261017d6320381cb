"""`make node` refuses what would not become a node, and then writes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "does", "says"),
    [
        ("Sharpen", "more detail", "begins with SwD"),
        ("SwDsharpen", "more detail", "begins with SwD"),
        ("SwD", "more detail", "begins with SwD"),
        ("SwDSharpen/../x", "more detail", "begins with SwD"),
        ("SwDSharpen", "", "1 to 70 characters"),
        ("SwDSharpen", "x" * 71, "1 to 70 characters"),
        ("SwDSharpen", 'more "detail"', "quotes"),
        ("SwDSharpen", "one|two", "quotes"),
        ("SwDSampler", "more detail", "nodes/sampler.py exists already"),
        ("SwDLoraLoader", "more detail", "exists already"),
    ],
)
def test_what_is_no_node_is_refused(tmp_path, name, does, says):
    for file in ("nodes/sampler.py", "web/docs/SwDLoraLoader.md", "locales/zh/nodeDefs.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("mine")
    files = sorted(tmp_path.rglob("*"))
    command = [sys.executable, ROOT / "tools" / "new_node.py", "--root", tmp_path, name, does]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert sorted(tmp_path.rglob("*")) == files
