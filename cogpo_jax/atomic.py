"""Files that are either whole or absent: write beside, fsync, rename, fsync the folder."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cogpo_jax.errors import UserError


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary file that appears under `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp gives 0600: outputs are meant to be read by others
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _fsync_folder(path.parent)


def replace_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Renames a finished (fsynced) file over `target`, and the rename itself survives a power cut."""
    os.replace(source, target)
    _fsync_folder(Path(target).parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`, local or `gs://`, whole or not at all."""
    data = data.encode("utf-8") if isinstance(data, str) else data
    if is_remote(path):
        from etils import epath

        epath.Path(path).write_bytes(data)  # an object appears when its upload is complete
        return
    with atomic_file(path) as f:
        f.write(data)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store (`gs://bucket/...`)."""
    return "://" in os.fspath(path)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The hex SHA-256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `path` that takes its name only when the block ends without an error.

    Raises UserError where `path` exists and holds anything, unless `overwrite`, which replaces the old folder whole.
    """
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not empty; give another name, or say overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for file in (f for f in temporary.rglob("*") if f.is_file()):
            with file.open("rb") as f:
                os.fsync(f.fileno())
        temporary.chmod(0o777 & ~_umask())
        _fsync_folder(temporary)
        _take_name(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _take_name(temporary: Path, path: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)
