"""Writes docs/COMPATIBILITY.md: what was run with the rest of the graph, and what came of it.

    python tests/host/compatibility.py ~/comfy/ComfyUI ~/comfy/ComfyUI-0.3.64

Runs the tests below on each host with that host's own interpreter and lists every case: its result,
and where the host itself is the truth, the largest difference from it, relative to the largest
value.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET  # noqa: N817
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "test_templates", "test_conditioning", "test_references", "test_patches",
    "test_drawing_patches", "test_inpaint", "test_latents", "test_video", "test_video_conditioning",
    "test_video_inputs", "test_kept_between_steps",
    "test_wrapped_samplers", "test_growing", "test_growing_models", "test_large", "test_faults",
    "test_live",
)  # fmt: skip
TITLES = {
    "test_templates": "The host's own template graphs, with our sampler in them (a real server)",
    "test_conditioning": "Prompts, regions, ControlNets",
    "test_references": "Reference latents",
    "test_patches": "Patches and guiders",
    "test_drawing_patches": "Patches that draw numbers",
    "test_inpaint": "Inpainting, image to image, cut SIGMAS",
    "test_latents": "Kinds of latents, sizes, weights",
    "test_video": "Videos in space and time (one test through a real server)",
    "test_video_conditioning": "What videos are made from, in space and time",
    "test_video_inputs": "What Wan's video nodes give, held to the same nodes at the small size",
    "test_kept_between_steps": "What patches keep between steps",
    "test_wrapped_samplers": "SAMPLERs around ours",
    "test_growing": "Growing runs by the host's own solvers",
    "test_growing_models": "Growing runs of models without a student",
    "test_large": "Targets from 256 to 4096 pixels",
    "test_faults": "Faults and bad input",
    "test_live": "Progress, previews, interrupt (a real server)",
}


@dataclass
class Case:
    """One feature's runs on one host."""

    results: list[str] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.results:
            return "not run"
        good = self.results.count("works")
        total = len(self.results) - self.results.count("skipped")
        if not total:
            return "not there in this host"
        text = "works" if good == total else f"**{total - good} of {total} fail**"
        text += f" ({total})" if total > 1 else ""
        return text + (f", {max(self.differences):.0e}" if self.differences else "")


def interpreter(host: Path) -> str:
    """The host's own python, beside or inside its tree."""
    suffix = host.name.removeprefix("ComfyUI")
    places = (host.parent / f"venv{suffix}", host / "venv", host / ".venv", host.parent / "venv")
    found = (str(p / "bin" / "python") for p in places if (p / "bin" / "python").is_file())
    return next(found, sys.executable)


def version(host: Path) -> str:
    text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    return re.search(r'"([\d.]+)"', text)[1]


def templates(hosts: list[Path]) -> str:
    """The folder of template graphs in the first environment that has them, for all hosts."""
    code = "import sys; sys.path.append('tests/host'); import templates as t; print(t.folder())"
    for host in hosts:
        command = [interpreter(host), "-P", "-c", code]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        if Path(found.stdout.strip()).is_dir():
            return found.stdout.strip()
    return ""


def run(
    host: Path, tests: tuple[str, ...], report: Path, graphs: str
) -> dict[tuple[str, str], Case]:
    """Runs the tests on one host: (file, feature) -> its case."""
    files = [f"tests/host/{name}.py" for name in tests]
    command = [interpreter(host), "-P", "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
    command += [f"--junitxml={report}", *files]
    env = {**os.environ, "COMFYUI_PATH": str(host), "OMP_NUM_THREADS": "1"}
    env["COMFYUI_TEMPLATES"] = graphs
    ended = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if ended not in (0, 1):  # cut short, or nothing to run: no table is better than half of one
        raise SystemExit(f"pytest ended with {ended} on {host.name}: nothing was written")
    cases: dict[tuple[str, str], Case] = defaultdict(Case)
    for node in ET.parse(report).iter("testcase"):
        file = node.get("classname", "").rpartition(".")[2]
        case = cases[file, feature(node.get("name", ""))]
        if node.find("skipped") is not None:
            case.results.append("skipped")
        else:
            broken = node.find("failure") is not None or node.find("error") is not None
            case.results.append("fails" if broken else "works")
        for entry in node.iter("property"):
            if entry.get("name") == "difference":
                case.differences.append(float(entry.get("value")))
    return cases


FAMILIES = {"sd35-medium": "SD3.5", "flux": "FLUX", "sdxl": "SDXL"}


def feature(name: str) -> str:
    """A test's name in words, with the family and the named case it ran; numbers are pooled."""
    test, _, rest = name.removeprefix("test_").partition("[")
    rest = rest.removesuffix("]")
    families = [label for key, label in FAMILIES.items() if re.search(rf"(^|-){key}($|-)", rest)]
    for key in FAMILIES:
        rest = re.sub(rf"(^|-){key}($|-)", r"\1\2", rest)
    named = [
        w
        for w in rest.split("-")
        if re.search("[A-Za-z]", w) and not re.fullmatch(r"size\d+|values\d+", w)
    ]
    text = test.replace("_", " ")
    return "; ".join([text, *([", ".join(named)] if named else []), *families])


def document(
    hosts: list[Path], tables: list[dict[tuple[str, str], Case]], tests: tuple[str, ...]
) -> str:
    versions = [version(host) for host in hosts]
    lines = [
        "# Compatibility",
        "",
        "Written by `python tests/host/compatibility.py <ComfyUI> <ComfyUI>`; do not edit by hand.",
        "",
        "Each line was run with small random models through the real host on the CPU; a number in",
        "brackets is how many runs it pools. A figure like 2e-06 is the largest difference from",
        "the host's own run at each scale, as a share of the largest value of the latent.",
        "",
        (ROOT / "docs" / "compatibility_notes.md").read_text(encoding="utf-8").strip(),
        "",
    ]
    for test in tests:
        names = list(dict.fromkeys(n for table in tables for (file, n) in table if file == test))
        lines += [
            f"## {TITLES[test]}",
            "",
            "| what | " + " | ".join(f"ComfyUI {v}" for v in versions) + " |",
        ]
        lines.append("|---" * (1 + len(versions)) + "|")
        for name in names:
            cells = [str(table.get((test, name), Case())) for table in tables]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("hosts", nargs="+", type=lambda p: Path(p).expanduser().resolve())
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "COMPATIBILITY.md")
    parser.add_argument("--tests", nargs="*", default=list(TESTS), choices=TESTS)
    options = parser.parse_args()
    graphs = templates(options.hosts)
    with tempfile.TemporaryDirectory() as folder:
        tables = [
            run(host, tuple(options.tests), Path(folder) / f"{i}.xml", graphs)
            for i, host in enumerate(options.hosts)
        ]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(document(options.hosts, tables, tuple(options.tests)), encoding="utf-8")
    failed = sum("fail" in str(case) for table in tables for case in table.values())
    raise SystemExit(f"{failed} features fail" if failed else None)


if __name__ == "__main__":
    main()
