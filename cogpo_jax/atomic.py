"""Files that are either whole or absent (write beside, fsync, rename, fsync the folder), and one writer to a folder."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
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


def check_writable(flag: str, path: str | os.PathLike[str], *, file: bool = False) -> None:
    """Raises UserError where no folder (`file`: no file) can be written at `path`: before the work that it is for."""
    given, path = os.fspath(path), Path(path).absolute()
    check_client(flag, given)
    if is_remote(given):
        return
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if there.is_symlink() and not there.exists():
        raise UserError(f"{flag}: {given}: {there} is a link to nothing")
    if there == path and there.is_dir() == file:
        raise UserError(f"{flag}: {given}: is a {'folder' if file else 'file'}: give a {'file' if file else 'folder'}")
    if there != path and not there.is_dir():
        raise UserError(f"{flag}: {given}: {there} is no folder")
    folder = there if there.is_dir() else there.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: {given}: {folder} cannot be written by this user")


def check_client(flag: str, path: str | os.PathLike[str]) -> None:
    """Raises UserError where a path is in an object store that is not known (only gs:// is), or has no client here."""
    scheme, remote, _ = os.fspath(path).partition("://")
    if remote and scheme != "gs":
        raise UserError(f"{flag}: {path}: {scheme}:// is not known: give a local path, or gs://BUCKET/...")
    if remote:
        import fsspec

        try:
            fsspec.get_filesystem_class("gs")
        except ImportError:
            raise UserError(f"{flag}: {path}: gs:// needs the package gcsfs: pip install gcsfs") from None


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


class FolderLock:
    """One writer to a folder, local or `gs://`: a context manager that refuses while another process holds it.

    On a file system the kernel holds the lock, so that of a dead process is none. An object store has no locks: there
    `.lock` is a lease that a thread renews every `BEAT` seconds, and that counts as left behind when its process is
    dead on this host, or when it has not been renewed for `STALE` seconds.
    Raises UserError that names the holder: host, process id, since when.
    """

    BEAT, STALE, SETTLE = 30.0, 180.0, 1.0

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder, self._file, self._released = folder, -1, threading.Event()
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "nonce": secrets.token_hex(8)}

    def __enter__(self) -> "FolderLock":
        if is_remote(self._folder):
            self._take_lease()
            return self
        self._made = not Path(self._folder).exists()
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        self._file = os.open(Path(self._folder) / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 4096, 0)
            os.close(self._file)
            raise self._refused(_json_or_empty(holder)) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(self._mine).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            # The file stays: to remove it would race with the next holder. A folder that got nothing else goes.
            if self._made and [file.name for file in Path(self._folder).iterdir()] == [".lock"]:
                shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._file)
        elif (found := self._lease()) and found.get("nonce") == self._mine["nonce"]:
            self._lease_path().unlink()

    def _lease_path(self) -> Any:
        from etils import epath

        return epath.Path(self._folder) / ".lock"

    def _lease(self) -> dict[str, Any]:
        path = self._lease_path()
        return _json_or_empty(path.read_bytes()) if path.exists() else {}

    def _write_lease(self) -> None:
        write_json(self._lease_path(), {**self._mine, "beat": time.time()})

    def _take_lease(self) -> None:
        if (other := self._lease()) and self._is_held(other):
            raise self._refused(other)
        self._write_lease()
        time.sleep(self.SETTLE)  # two that saw no lease both wrote: the last one keeps it
        if (other := self._lease()).get("nonce") != self._mine["nonce"]:
            raise self._refused(other)
        threading.Thread(target=self._renew, name="workdir lease", daemon=True).start()

    def _is_held(self, lease: dict[str, Any]) -> bool:
        if lease.get("host") == self._mine["host"] and not Path(f"/proc/{lease.get('pid')}").exists():
            return False
        return time.time() - float(lease.get("beat", 0)) < self.STALE

    def _renew(self) -> None:
        while not self._released.wait(self.BEAT):
            with contextlib.suppress(Exception):  # the store may be away for a moment: the next beat tries again
                self._write_lease()

    def _refused(self, holder: dict[str, Any]) -> UserError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
        return UserError(f"workdir: {self._folder}: in use by {who}: wait for it, stop it, or take another workdir")


def _json_or_empty(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
