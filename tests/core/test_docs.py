"""The written face: links lead somewhere, commands exist, figures are what the commands print."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from swd_core.commands import build_parser
from swd_core.lab.ablation import VARIANTS, table
from swd_core.presets import presets

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def visible(text: str) -> str:
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    targets = ["".join(found) for found in LINK.findall(visible(path.read_text(encoding="utf-8")))]
    local = [t for t in targets if not t.startswith(("http", "mailto"))]
    assert [t for t in local if not (path.parent / t).exists()] == []


def test_the_readmes_contents_lead_to_its_headings():
    text = page("README.md")
    headings = {re.sub(r"[^\w ]", "", h).strip().lower().replace(" ", "-") for h in
                re.findall(r"^#+ (.*)$", text, re.M)}  # fmt: skip
    anchors = re.findall(r"\]\(#([^)]+)\)", text)
    assert anchors and [a for a in anchors if a not in headings] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_commands_are_ones_the_command_line_takes(path):
    text = visible(path.read_text(encoding="utf-8"))
    for command in re.findall(r"(?:`|^)python -m swd_core ([^`\n]+)", text, re.M):
        words = shlex.split(command, comments=True)
        words += ["--help"] * (len(words) == 1)
        with pytest.raises(SystemExit) if "--help" in words else nullcontext() as stopped:
            build_parser().parse_args(words)
        assert stopped is None or stopped.value.code == 0, command


def test_every_make_target_exists():
    database = subprocess.run(["make", "-pq"], cwd=ROOT, capture_output=True, text=True).stdout
    known = set(re.findall(r"^([a-z][a-z-]*):", database, re.M))
    assert "demo" in known and "no-such-target" not in known
    for path in PAGES:
        named = re.findall(r"(?:^|`|\s)make ([a-z][a-z-]+)", visible(path.read_text("utf-8")), re.M)
        commands = {n for n in named if f"`make {n}" in path.read_text("utf-8")
                    or re.search(rf"^make {n}", path.read_text("utf-8"), re.M)}  # fmt: skip
        assert commands <= known, path


def test_the_readmes_costs_are_the_schedules():
    text = page("README.md")
    four, six = (presets()[f"sd35-medium-{n}"].schedule for n in (4, 6))
    assert f"{four.cost(128, 128):.2f} full-size steps instead of 4" in text
    assert f"{six.cost(128, 128):.2f} full-size steps instead of 6" in text
    done, shares = 0.0, []
    for cost in four.step_costs(128, 128)[:3]:
        done += cost
        shares.append(f"{done / four.cost(128, 128):.0%}".replace("%", " %"))
    assert ", ".join(shares) in text


def test_the_readme_names_the_presets_that_there_are():
    """Graphs hold their names, so what is in its section on models once must not go away."""
    models = page("README.md").partition("## Models")[2].partition("## Quick start")[0]
    assert [name for name in presets() if f"`{name}`" not in models] == []
    last = [row.rpartition(" | ")[2] for row in re.findall(r"^\|.*\|$", models, re.M)[2:]]
    named = {name for cell in last for name in re.findall(r"`([^`]+)`", cell)} - {"auto"}
    assert named and named <= presets().keys()


def test_the_readme_names_every_node_page_and_workflow():
    text = page("README.md")
    pages = [p.name for p in (ROOT / "web" / "docs").glob("*.md")]
    graphs = [p.stem for p in (ROOT / "workflows").glob("swd_*.json")]
    assert [name for name in pages if f"web/docs/{name}" not in text] == []
    assert [name for name in graphs if f"`{name}`" not in text] == []


def test_the_served_translations_are_the_nodes(tmp_path):
    """locales/<language>/nodeDefs.json is what `make locales` writes of locales/<node id>.json."""
    (tmp_path / "locales").mkdir()
    for file in (ROOT / "locales").glob("*.json"):
        shutil.copy(file, tmp_path / "locales")
    command = [sys.executable, ROOT / "tools" / "locales.py", "--root", tmp_path]
    subprocess.run(command, check=True)
    for root in (tmp_path, ROOT):
        assert len(list(root.glob("locales/*/*"))) == 5
    for file in ROOT.glob("locales/*/*"):
        made = tmp_path / file.relative_to(ROOT)
        assert file.read_bytes() == made.read_bytes(), f"{file} is written by `make locales`"


ABLATIONS = ("ablation", "ablation_small", "ablation_seeds", "ablation_earlier")


@pytest.mark.parametrize("runs", ABLATIONS)
def test_the_ablations_tables_are_those_of_their_runs(runs):
    rows = json.loads((ROOT / "docs" / f"{runs}.json").read_text(encoding="utf-8"))
    assert table(rows) in page("docs/ABLATION.md")
    assert {row["variant"] for row in rows} <= {v.name for v in VARIANTS}


def test_the_readme_promises_of_drafts_what_was_measured():
    rows = json.loads((ROOT / "docs" / "faithfulness.json").read_text(encoding="utf-8"))
    measured = [f"{100 * row['everything'][0]:.0f} %" for row in rows.values()]
    said = r"\d+ %(?= of the embedded student's finished| after the (?:second|third))"
    assert re.findall(said, page("README.md")) == measured
