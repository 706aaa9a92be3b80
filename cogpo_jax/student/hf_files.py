"""A Hugging Face folder's files: JSON, and safetensors read by byte range and written as a stream (no jax).

The format is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range) and the bytes. We
parse the header ourselves so that every damage is told by name, and map the data: only pages that are used are read,
and they are the kernel's to drop.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cogpo_jax.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # safetensors' own limit


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_hint(name: Any) -> str:
    """What to do where a folder that is not there could be a name on the Hugging Face hub; else an empty string."""
    if not isinstance(name, (str, os.PathLike)) or not _HUB_ID.fullmatch(str(name)) or Path(name).parent.is_dir():
        return ""
    return f" (a name on the hub? download it first: hf download {name} --local-dir FOLDER)"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises UserError where a file is what Git leaves in the place of a large one that was not fetched."""
    with path.open("rb") as f:
        if f.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError naming the file."""
    if path.is_file():
        refuse_lfs_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object")
    return value


class TensorEntry(NamedTuple):
    """Where a tensor lies: absolute byte range [start, end) of `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def array(self) -> "np.ndarray | RemoteTensor":
        """The tensor, to be sliced: what is sliced off it is all that is read (a memory map, or byte ranges of gs://)."""
        if 0 in self.shape:
            return np.empty(self.shape, DTYPES[self.dtype])
        if "://" in str(self.path):
            return RemoteTensor(self)
        return np.memmap(self.path, DTYPES[self.dtype], mode="r", offset=self.start, shape=self.shape)


class RemoteTensor:
    """A tensor of a file that cannot be mapped; slicing it reads the byte range of the rows asked for, and no more."""

    def __init__(self, entry: TensorEntry):
        self._entry = entry

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        entry, dtype = self._entry, DTYPES[self._entry.dtype]
        index = index if isinstance(index, tuple) else (index,)
        first, stop, _ = index[0].indices(entry.shape[0])
        row_bytes = math.prod(entry.shape[1:]) * dtype.itemsize
        with entry.path.open("rb") as f:
            f.seek(entry.start + first * row_bytes)
            data = f.read((stop - first) * row_bytes)
        return np.frombuffer(data, dtype).reshape(stop - first, *entry.shape[1:])[(slice(None), *index[1:])]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, by name. Raises UserError for a file that is missing, truncated or inconsistent."""
    if path.is_file():
        refuse_lfs_pointer(path)
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length)) if 8 + length <= size and length <= _MAX_HEADER else None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, though the folder needs it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: truncated or not a safetensors file: {size} bytes, a header of {length}")
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items() if name != "__metadata__"}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != end:
            raise UserError(f"{path}: {name}: starts at byte {entry.start} where {end} was expected (damaged header)")
        end = entry.end
    if end != size:
        raise UserError(f"{path}: truncated or damaged: {size} bytes where its header says {end}")
    return entries


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = str(value["dtype"]), tuple(int(n) for n in value["shape"])
        start, end = (int(n) for n in value["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: {name}: damaged header entry") from None
    if dtype not in DTYPES:
        raise UserError(f"{path}: {name}: dtype {dtype}: must be one of {', '.join(DTYPES)}")
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{path}: {name}: {end - start} bytes for shape {shape} of {dtype} (damaged header)")
    return TensorEntry(path, dtype, shape, data_start + start, data_start + end)


def write_stream(
    file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes a safetensors file tensor by tensor; `tensors` gives exactly `shapes`' names, in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without the format
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # the data starts aligned
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    expected = iter(shapes.items())
    for name, tensor in tensors:
        if next(expected, None) != (name, tensor.shape) or tensor.dtype != dtype:
            raise ValueError(f"{name} {tensor.shape} {tensor.dtype}: not what the header says comes next")
        # seen as bytes: bfloat16 has no buffer protocol of its own; nothing is copied
        file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    if next(expected, None) is not None:
        raise ValueError("fewer tensors than the header says")
