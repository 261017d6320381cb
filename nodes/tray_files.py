"""The tray's folder: a file for each draft put aside; what is removed can be put back a while."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import folder_paths

from ..swd_core.draft_files import SUFFIX, load_drafts, load_images, save_drafts
from ..swd_core.drafts import Drafts, parse_picks
from .shown import Shown

FOLDER = "drafts/tray"
PART = "#"  # between a file's name and the number of a draft, where it holds several
REMOVED = Shown()  # by the names that they had

Kept = tuple[str, Drafts]  # the name and the draft, alone


def folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


def path_of(name: str) -> Path:
    return folder() / f"{name}{SUFFIX}"


def names() -> list[str]:
    """Of the files on the tray, in the order in which they came."""
    files = [path for path in folder().glob(f"*{SUFFIX}") if path.is_file()]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [path.name.removesuffix(SUFFIX) for path in files]


def parts_of(name: str, drafts: Drafts) -> list[Kept]:
    """Each draft of a file by its name: that of the file, with a number where it holds several."""
    several = len(drafts.images) > 1
    return [
        (f"{name}{PART}{k + 1}" if several else name, drafts.choose([k]))
        for k in range(len(drafts.images))
    ]


def own_name(name: str) -> str:
    """The name of a file that holds this draft alone."""
    stem, _, number = name.partition(PART)
    return f"{stem}_{int(number):03}" if number.isdecimal() else name


def read() -> tuple[list[Kept], list[str]]:
    """Each draft on the tray, and what is wrong with the files that can't be read."""
    found: list[Kept] = []
    broken: list[str] = []
    for name in names():
        try:
            found += parts_of(name, load_drafts(path_of(name)))
        except (ValueError, OSError) as error:
            broken.append(str(error))
    return found, broken


def keep(drafts: Drafts, picks: str) -> list[str]:
    """Puts picked drafts on the tray and gives their names; what is there already stays, also where
    it was kept from another sheet.

    Raises:
        ValueError: as `parse_picks`. OSError: if a file can't be written.
    """
    places = parse_picks(picks, drafts)
    found = lying(drafts, places)
    for place in places:
        if place not in found:
            found[place] = f"{drafts.sheet}_{place + 1:03}"
            write(found[place], drafts.choose([place]))
    return [found[place] for place in places]


def lying(drafts: Drafts, places: Sequence[int]) -> dict[int, str]:
    """Which of these drafts lie on the tray, from whichever sheet, each with its name there."""
    wanted = {drafts.images[place]: place for place in places}
    found: dict[int, str] = {}
    for name in names():
        # A file that can't be read holds none; the node says so.
        with suppress(ValueError, OSError):
            if not wanted.keys() & set(load_images(path_of(name))):
                continue
            for part, draft in parts_of(name, load_drafts(path_of(name))):
                place = wanted.get(draft.images[0])
                if place is not None and draft.same_as(drafts.choose([place])):
                    found[place] = part
    return found


def kept_of(sheet: str, drafts: Drafts | None) -> list[int]:
    """The numbers of a sheet's drafts that lie on the tray.

    Where the drafts are no longer known, by the names of those kept from it.
    """
    if drafts is not None:
        return [place + 1 for place in sorted(lying(drafts, range(len(drafts.images))))]
    tails = [name.removeprefix(f"{sheet}_") for name in names() if name.startswith(f"{sheet}_")]
    return sorted(int(tail) for tail in tails if tail.isdecimal())


def write(name: str, draft: Drafts) -> None:
    """Raises OSError that says what to do, if it can't be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if not path_of(name).exists():
            save_drafts(draft, path_of(name))
    except OSError as error:
        raise OSError(
            f"The draft can't be put on the tray in {folder()} ({error.strerror or error}). Make "
            "room there, or let ComfyUI write to it."
        ) from error


def remove(gone: Sequence[str]) -> None:
    """Takes drafts off the tray, for `put_back`; of other names nothing is removed.

    What else is in a file stays, in files of their own.
    """
    asked = {*gone, *map(own_name, gone)}
    for name in names():
        path = path_of(name)
        if name in asked:
            with suppress(ValueError):  # damaged
                REMOVED.add(name, load_drafts(path))
        elif any(part.startswith(name + PART) for part in asked):
            came = path.stat().st_mtime_ns
            for part, draft in parts_of(name, load_drafts(path)):
                if part in asked:
                    REMOVED.add(own_name(part), draft)
                else:
                    write(own_name(part), draft)
                    os.utime(path_of(own_name(part)), ns=(came, came))
        else:
            continue
        path.unlink(missing_ok=True)


def put_back(gone: Sequence[str]) -> list[str]:
    """Puts on the tray again what was removed lately, and gives its names."""
    known = [name for name in map(own_name, gone) if name in REMOVED.sheets]
    for name in known:
        write(name, REMOVED.sheets[name])
    return known


def by_kind(found: Sequence[Kept]) -> list[list[Kept]]:
    """What can lie on one sheet together, those with the newest draft first."""
    kinds: list[list[Kept]] = []
    for kept in reversed(found):
        together = [kind for kind in kinds if kept[1].goes_with(kind[0][1])]
        if together:
            together[0].insert(0, kept)
        else:
            kinds.append([kept])
    return kinds


def by_prompt(kept: Sequence[Kept]) -> list[Kept]:
    """In the order of their prompts, which is that in which the first of each came."""
    prompts = list(dict.fromkeys(draft.images[0].prompt for _, draft in kept))
    return sorted(kept, key=lambda pair: prompts.index(pair[1].images[0].prompt))
