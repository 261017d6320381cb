"""safetensors files: written whole, and opened only if they hold what they say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import check_plain, written_whole

MOST_HEADER = 1 << 24  # bytes
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Writes a safetensors file with `header` as its metadata; see `written_whole`."""
    with written_whole(path, overwrite) as file:
        write_tensors(file, tensors, header)


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None
) -> None:
    """Writes the safetensors format, tensor by tensor.

    The library's own `save_file` writes to a file of its own making, which a kill leaves behind,
    and `save` holds everything in memory two times more.
    """
    # Large items first, as the library does: every tensor then begins at a multiple of its item.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, object] = {"__metadata__": dict(header)} if header else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        plain = tensors[name].detach().cpu().contiguous().flatten()
        file.write(plain.view(torch.uint8).numpy())


def open_tensors(path: Path) -> safe_open:
    """A safetensors file, opened; the header's shapes agree with the bytes that are there.

    Raises:
        FileNotFoundError: if it isn't there. ValueError: if it is no plain file, damaged, or its
            header larger than MOST_HEADER; names the file.
    """
    check_plain(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER:
            raise ValueError(f"its header would have {size} bytes, {MOST_HEADER} are the most")
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path.name} is not a whole safetensors file ({error}). Copy or download it again."
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata.

    Raises:
        as `open_tensors`.
    """
    with open_tensors(path) as file:
        try:
            header = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, header
        except (SafetensorError, AttributeError, RuntimeError) as error:  # an unknown number format
            raise ValueError(f"{path.name} can't be read ({error}).") from error
