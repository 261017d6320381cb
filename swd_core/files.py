"""Files written whole or not at all; text, JSON and TOML of others read within bounds."""

import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MOST_TEXT = 1 << 24  # bytes
MOST_NAME = 200  # bytes; file systems take 255, and names get endings
PART = re.compile(r"\.swd-[0-9a-f]{32}\.part")
_HOUR = 3600.0
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.I)


@contextmanager
def written_whole(path: Path, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end of the body.

    A kill at any moment leaves `path` as it was or whole, at most with a part beside it that the
    next writer in the folder clears away.

    Raises:
        OSError: if it can't be written. FileExistsError: if `path` exists and may not be replaced.
    """
    clear_left_over(path.parent)
    part, file = _new_part(path.parent)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows moves no open file
            _place(part, path, overwrite)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8; see `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def clear_left_over(folder: Path) -> None:
    """Removes the parts of files that killed writers left in `folder`, and no others."""
    with os.scandir(folder) as entries:
        parts = [Path(e.path) for e in entries if PART.fullmatch(e.name)]
    for part in parts:
        with suppress(OSError), ExitStack() as stack:
            held = _lock(stack.enter_context(part.open("r+b"))) if fcntl else None
            # Where there are no locks, a part counts as left when nothing was written for long.
            if held or held is None and time.time() - part.stat().st_mtime > _HOUR:
                part.unlink()


def _new_part(folder: Path) -> tuple[Path, BinaryIO]:
    """A file that no other process has, locked for as long as it is open."""
    while True:
        part = folder / f".swd-{secrets.token_hex(16)}.part"
        file = part.open("xb")
        if _lock(file) is not False and part.exists():
            return part, file
        file.close()  # another process took it for left over before it was locked


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder for this process as long as the body runs, where the system can.

    Raises:
        BlockingIOError: if another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _lock(handle) is False:
            raise BlockingIOError(f"Another process holds {folder}.")
        yield
    finally:
        os.close(handle)


def _lock(file: BinaryIO | int) -> bool | None:
    """Locks a file until it is closed; False if another process holds it, None without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that has none
        return None
    return True


def _place(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, path)
        return
    try:
        try:
            os.link(part, path)  # replaces nothing, even if another process is as quick
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            path.open("xb").close()
            os.replace(part, path)
    except FileExistsError as error:
        raise FileExistsError(f"{path} exists by now; nothing was overwritten.") from error


def check_writable(folder: Path) -> None:
    """Raises OSError if no file can be made in `folder`, which may still have to be made itself."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"The folder {folder} can't be written to ({reason}).") from error


def check_plain(path: Path) -> None:
    """Raises FileNotFoundError if `path` isn't there, ValueError if it is no plain file."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():  # a pipe would be waited for, and a device never ends
        raise ValueError(f"{path} is a folder, a pipe or a device; give a file.")


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        FileNotFoundError: if it isn't there. OSError: if it can't be read. ValueError: if it is no
            plain file, has more than `most` bytes or is no such text; names the file.
    """
    check_plain(path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than {most / 2**20:g} MB.")
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}.") from error


def encoding_of(data: bytes) -> str:
    """UTF-8, or UTF-16 where its byte order mark says so, as Windows' editors and shells write."""
    return "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def read_json(path: Path, most: int = MOST_TEXT) -> Any:
    """What a JSON file holds.

    Raises:
        as `read_text`; ValueError, too, for what is not JSON.
    """
    return parse_json(read_text(path, most), str(path))


def parse_json(text: str, what: str) -> Any:
    """What JSON says.

    Raises:
        ValueError: names `what` if it is not JSON, or nested so deeply that it can't be meant.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}.") from error


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        as `read_text`; ValueError, too, for what is not TOML.
    """
    import tomllib

    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error
    except ValueError as error:
        said = f"{path} is not valid TOML: {error}."
        if re.search(r'"[^"\n]*\\', text):
            said += " Put paths of Windows between 'single quotes', or write them with /."
        raise ValueError(said) from error


def printable(text: str) -> str:
    """Text with escapes in place of half characters, which no log and no page can be given.

    Names of files that are no UTF-8 hold them, and JSON may.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_name(name: str, what: str, most: int = MOST_NAME) -> None:
    """Checks that a file or folder may have this name on every system.

    Args:
        what: what the user calls it. most: bytes.

    Raises:
        ValueError: names `what`, the name and what is wrong with it.
    """
    fault = ""
    size = len(name.encode("utf-8", "surrogatepass"))
    strange = re.search(r'[\x00-\x1f\x7f\ud800-\udfff<>:"|?*/\\]', name)
    if not name.strip(" ."):
        fault = "it is empty" if not name.strip() else "it is a path"
    elif size > most:
        fault = f"it has {size} bytes, and {most} are the most"
    elif strange:
        fault = f"it holds {strange[0]!r}"
    elif name[-1] in " .":
        fault = "it ends with a dot or a space, which Windows drops"
    elif _RESERVED.fullmatch(name):
        fault = "Windows keeps it for a device"
    if fault:
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise ValueError(f"{what} {shown!r} can't name a file or folder: {fault}. Choose another.")
