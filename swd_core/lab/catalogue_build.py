"""Builds catalogue.json: which Fluent emoji the student knows, with their CLDR names and keywords.

Run once by hand when the set changes: python -m swd_core.lab.catalogue_build ASSETS EMOJIBASE_EN
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from ..emoji import catalogue as known
from ..files import read_json, write_text
from .emoji_pictures import load_image

# Left out: people and hands (skin tones, near-identical), flags, and signs that are mostly text.
SUBGROUPS = """
face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell
face-hat face-glasses face-concerned face-negative face-costume cat-face monkey-face heart
animal-mammal animal-bird animal-amphibian animal-reptile animal-marine animal-bug plant-flower
plant-other food-fruit food-vegetable food-prepared food-asian food-sweet drink dishware place-map
place-geographic place-building place-other transport-ground transport-water transport-air hotel
time sky-weather event award-medal sport game arts-crafts clothing sound music musical-instrument
light-video writing lock tool
""".split()
LEFT_OUT = re.compile(
    r"clock$|thirty|banknote|speech|bubble|flag|mailbox|tray|envelope with|incoming|suit$|yen|"
    r"sign$|^no |under|moon(?! cake)|globe showing A|speaker |magnifying glass tilted right|"
    r"hundred|ZZZ|anger symbol|oncoming|dotted line|hinges|Japanese|love hotel|department|"
    r"convenience|bank$|kaaba|synagogue|mosque|hindu|statue|tower|person|eye in|light rail|"
    r"tram car|railway car|station$|trolleybus|minibus|map of|cityscape|bridge at|sunrise|index|"
    r"card|bust|wheelchair|children|briefs|bikini|foggy|night|stars|motorway|railway|foreground|"
    r"videocassette|film|chopsticks|construction|elevator|brick|seat|tanabata|pine decoration|"
    r"dolls|streamer|ceremony|red envelope|stadium|mammoth|dodo|oncoming|small airplane|"
    r"departure|arrival|pick$|hook|clamp|ice cream bar|spoon$|softball",
    re.IGNORECASE,
)
TOO_CLOSE = 0.13  # RMS difference at 32 px below which two emoji count as the same picture


def build(assets: Path, emojibase: Path) -> list[dict]:
    entries = read_json(emojibase / "data.json")
    messages = read_json(emojibase / "messages.json")
    subgroups = {g["order"]: g["key"] for g in messages["subgroups"]}
    files = {p.stem.replace("-fe0f", ""): p.stem for p in assets.glob("*.webp")}
    chosen, thumbs = [], []
    for entry in entries:
        if subgroups.get(entry.get("subgroup")) not in SUBGROUPS or LEFT_OUT.search(entry["label"]):
            continue
        stem = files.get(entry["hexcode"].lower().replace("-fe0f", ""))
        if stem is None:
            continue
        thumb = np.asarray(load_image(assets / f"{stem}.webp").resize((32, 32)), np.float32) / 255
        if any(np.sqrt(((thumb - t) ** 2).mean()) < TOO_CLOSE for t in thumbs):
            continue
        thumbs.append(thumb)
        chosen.append(
            {
                "code": stem,
                "emoji": entry["emoji"],
                "name": entry["label"].lower().replace("’", "'"),
                "keywords": [t.lower().replace("’", "'") for t in entry.get("tags", [])],
            }
        )
    return chosen


if __name__ == "__main__":
    catalogue = build(Path(sys.argv[1]), Path(sys.argv[2]))
    lines = ",\n".join(json.dumps(e, ensure_ascii=False) for e in catalogue)
    write_text(Path(known.__file__).with_name("catalogue.json"), f"[\n{lines}\n]\n")
    sys.stdout.write(f"{len(catalogue)} emoji\n")
