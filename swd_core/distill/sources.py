"""Where pictures with captions come from: a folder, or webdataset tars."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from PIL import Image

from ..files import encoding_of, read_text

MOST_PROMPTS = 1 << 28  # bytes
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION, TAR = ".txt", ".tar"


@dataclass(frozen=True)
class Sample:
    """One picture with its caption; `tar` None means plain files. A prompt alone has no picture."""

    name: str
    picture: Path | tarfile.TarInfo | None
    caption: str
    tar: Path | None = None

    @property
    def size(self) -> int:
        """Of the picture's file in bytes."""
        if self.tar is None:
            return Path(self.picture).stat().st_size
        return self.picture.size

    def read(self) -> bytes:
        if self.tar is None:
            return Path(self.picture).read_bytes()
        with self.tar.open("rb") as file:
            file.seek(self.picture.offset_data)
            return file.read(self.picture.size)

    def look(self) -> tuple[int, int, str]:
        """Width and height in pixels, upright as the EXIF says, and what changes with the content.

        Raises:
            OSError: if it is no picture.
        """
        data = self.read()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
        if turned:
            width, height = height, width
        return width, height, hashlib.sha256(data).hexdigest()[:24]


def read_prompts(path: Path, where: str = "[teacher] prompts") -> list[str]:
    """One prompt a line; empty lines don't count.

    Args:
        where: the file is named in a config, for an error.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it holds no prompts, or is no
            text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no prompts file {str(path)!r}. Name one, a prompt a line, in {where}."
        )
    # Not splitlines: what else it takes for an end of a line may stand within a prompt.
    lines = re.split(r"\r\n|\n|\r", read_text(path, MOST_PROMPTS))
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one a line.")
    return prompts


def prompts_alone(source: Path) -> bool:
    """Whether a training's source is a file of prompts, without pictures."""
    return source.suffix.lower() == CAPTION


def find_prompts(source: Path) -> list[Sample]:
    """The prompts of such a file, in their order. Raises as `read_prompts`."""
    prompts = read_prompts(source, "[data] source")
    return [Sample(f"{i:06}", None, line) for i, line in enumerate(prompts)]


def find_samples(source: Path) -> list[Sample]:
    """All pictures with their captions, sorted by name.

    Args:
        source: a folder with pictures and .txt captions of the same name (subfolders too), a
            webdataset .tar, or a folder of such tars.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it holds no pictures, or captions are
            missing or no text; names the first of them.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"There is nothing at {source}. Give a folder of pictures with .txt captions, or a "
            "webdataset .tar."
        )
    tars = [source] if source.is_file() else _tars(source)
    if source.is_file() and source.suffix.lower() != TAR:
        raise ValueError(f"{source} is neither a folder nor an uncompressed .tar.")
    found = [s for tar in tars for s in _in_tar(tar)] if tars else list(_in_folder(source))
    if not found:
        raise ValueError(f"{source} holds no pictures ({', '.join(PICTURES)}).")
    bare = [s.name for s in found if s.caption is None]
    if bare:
        more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
        raise ValueError(
            f"{len(bare)} of {len(found)} pictures have no caption: {', '.join(bare[:5])}{more}. "
            "Put a .txt file of the same name beside each picture; an empty one is an empty "
            "prompt. Where sample-teacher was stopped, start it again: it ends what it began."
        )
    return sorted(found, key=lambda s: s.name)


def has_pictures(folder: Path) -> bool:
    """Whether `find_samples` finds any in a folder, with captions or without."""
    return bool(_tars(folder)) or any(_is_picture(path) for path in folder.rglob("*"))


def _tars(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == TAR and not _is_note(p))


def _is_picture(path: PurePath) -> bool:
    return path.suffix.lower() in PICTURES and not _is_note(path)


def _is_note(path: PurePath) -> bool:
    """macOS keeps what it knows of a.jpg in ._a.jpg wherever a disk has no other place for it."""
    return path.name.startswith("._")


def _in_folder(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.rglob("*")):
        if _is_picture(path) and path.is_file():
            caption = path.with_suffix(CAPTION)
            text = _text(caption.read_bytes(), str(caption)) if caption.is_file() else None
            yield Sample(path.relative_to(folder).as_posix(), path, text)


def _in_tar(path: Path) -> Iterator[Sample]:
    """webdataset: the files of one sample share their name up to the first dot of the base name."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar.getmembers() if m.isfile()]
            pictures = [m for m in members if _is_picture(PurePosixPath(m.name))]
            wanted = {_stem(m.name) for m in pictures}  # what else is written there is no caption
            captions = {
                _stem(m.name): _text(tar.extractfile(m).read(), f"{path.name}/{m.name}")
                for m in members
                if m.name.lower().endswith(CAPTION) and _stem(m.name) in wanted
            }
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a whole uncompressed tar ({error}).") from error
    for member in pictures:
        name = f"{path.name}/{member.name}"
        yield Sample(name, member, captions.get(_stem(member.name)), path)


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.name.split(".")[0])


def _text(data: bytes, name: str) -> str:
    """A caption in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        return data.decode(encoding_of(data)).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error}. Save it in UTF-8.") from error
