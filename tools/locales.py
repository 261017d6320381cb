"""Writes the files that the host serves, locales/<language>/nodeDefs.json: make locales

A node's translations stand in one file, locales/<node id>.json, by language. English is the node's
own schema: the host's page falls back to it.
"""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_locales(folder: Path) -> None:
    """Gathers the nodes' files of `folder` by language, into the folders of the languages."""
    languages: dict[str, dict[str, dict]] = {}
    for file in sorted(folder.glob("*.json")):
        for language, texts in json.loads(file.read_text(encoding="utf-8")).items():
            languages.setdefault(language, {})[file.stem] = texts
    for language, nodes in languages.items():
        (folder / language).mkdir(exist_ok=True)
        text = json.dumps(nodes, ensure_ascii=False, indent=2)
        (folder / language / "nodeDefs.json").write_text(f"{text}\n", "utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the pack's folder (this one's)")
    write_locales(parser.parse_args().root / "locales")
