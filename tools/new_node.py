"""Begins a node: its file, its help page, its translations to fill in, its row in the README.

make node NAME=SwDSharpen DOES="more detail without another size"
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 70  # of DOES, which is the description's line of code

NODE = '''\
"""{name}: {does}."""

from torch import Tensor

from ._host import CATEGORY, io, supported
from .inputs import checked


class {name}(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="{name}",
            display_name="{title}",
            category=CATEGORY,
            description="{does}",
            inputs=[io.Image.Input("images", tooltip="")],
            outputs=[io.Image.Output("result", display_name="result", tooltip="")],
            **supported(io.Schema, search_aliases=["SwD"]),
        )

    @classmethod
    @checked()
    def execute(cls, images: Tensor) -> io.NodeOutput:
        return io.NodeOutput(images)


NODES = [{name}]
'''

PAGE = """\
# {title}

{does}

## Inputs

- `images` (IMAGE):

## Outputs

- `result` (IMAGE):
"""


def new_node(root: Path, name: str, does: str) -> list[Path]:
    """Writes what a node begins with; its texts are English in every language, to be replaced.

    Raises:
        ValueError: if it can't be named so, or what it does is no short line of plain text.
    """
    if not re.fullmatch(r"SwD([A-Z][a-z0-9]+)+", name):
        raise ValueError(f"NAME={name!r} is no node id; it begins with SwD: SwDLatentUpscale.")
    if not 0 < len(does) <= LONGEST or re.search(r'["\\|\n]', does):
        raise ValueError(
            f"DOES={does!r} must be 1 to {LONGEST} characters without quotes, \\ or |: it says "
            "what the node does."
        )
    words = re.findall(r"[A-Z][a-z0-9]+", name.removeprefix("SwD"))
    title = " ".join(["SwD", *words])
    texts = {
        "display_name": title,
        "description": does,
        "inputs": {"images": {"name": "images", "tooltip": ""}},
        "outputs": {"0": {"name": "result", "tooltip": ""}},
    }
    languages = sorted(folder.name for folder in (root / "locales").glob("*/"))
    translations = json.dumps(dict.fromkeys(languages, texts), ensure_ascii=False, indent=2)
    values = {"name": name, "title": title, "does": does}
    files = {
        root / "nodes" / f"{'_'.join(words).lower()}.py": NODE.format(**values),
        root / "web" / "docs" / f"{name}.md": PAGE.format(**values),
        root / "locales" / f"{name}.json": f"{translations}\n",
    }
    for file in files:
        if file.exists():
            raise ValueError(f"{file.relative_to(root)} exists already; choose another NAME.")
    for file, text in files.items():
        file.write_text(text, "utf-8", newline="\n")
    readme = root / "README.md"
    before, table, rest = re.split(
        r"(\| node \| does \|\n(?:\|.*\n)*)", readme.read_text(encoding="utf-8")
    )
    row = f"| [{title}](web/docs/{name}.md) | {does} |\n"
    readme.write_text(before + table + row + rest, "utf-8", newline="\n")
    return [*files, readme]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("does")
    parser.add_argument("--root", type=Path, default=ROOT, help="the pack's folder (this one's)")
    a = parser.parse_args()
    try:
        written = new_node(a.root, a.name, a.does)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(*(file.relative_to(a.root) for file in written), sep="\n")
    print(
        "Next: its tables in tests/host/test_interface.py, the help page, the translations, and "
        "make locales."
    )
