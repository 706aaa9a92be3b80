"""The ledger: every finished call, verdict and outcome of a run, in SQLite. A run is a pure function of it.

Writes are committed in groups by one thread and awaited, so what a caller has seen is on disk; the event loop only
does point reads. One process writes a ledger at a time. The ledgers of several drivers are joined by `merge`.
"""

import asyncio
import fcntl
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from cogpo_jax.errors import UserError
from crv.options import Options, claim_workdir, differences
from crv.pool.base import Answer

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, agent TEXT NOT NULL, problem_id TEXT NOT NULL, attempt INTEGER NOT NULL, text TEXT NOT NULL,
  finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, model TEXT NOT NULL, origin TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, verdict TEXT NOT NULL, rule TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS problems (problem_id TEXT PRIMARY KEY, digest BLOB NOT NULL, dropped TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (
  problem_id TEXT PRIMARY KEY, place BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, label TEXT NOT NULL,
  rounds INTEGER NOT NULL, pairs TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS outcomes_by_place ON outcomes (place);
"""
_INSERT_CALL = "INSERT OR IGNORE INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_VERDICT = "INSERT OR IGNORE INTO verdicts VALUES (?,?,?)"
_INSERT_OUTCOME = "INSERT OR REPLACE INTO outcomes VALUES (?,?,?,?,?,?,?,?)"
_ANSWER = Answer.__slots__  # its fields, as in `calls`
_COMMIT_SECONDS = 0.02  # how long finished work waits for company before it is committed


class Ledger:
    """An open ledger file; close it (or use it as an async context manager) to flush and let go of the lock."""

    def __init__(self, path: str | Path, read_only: bool = False):
        self.path = Path(path)
        self._lock = None if read_only else self._take_lock()
        where = f"file:{quote(str(self.path))}?mode=ro" if read_only else str(self.path)
        try:
            self.db = sqlite3.connect(where, check_same_thread=False, isolation_level=None, uri=read_only)
            if not read_only:
                self.db.execute("PRAGMA journal_mode=WAL")
                self.db.execute("PRAGMA synchronous=FULL")
                self.db.executescript(_SCHEMA)
            self._check_version(read_only)
            self._reader = sqlite3.connect(where, isolation_level=None, uri=read_only)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"workdir: {self.path}: not a readable ledger ({error}); move it away, or give another folder"
            ) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._batch: list[tuple[str, tuple[Any, ...]]] = []
        self._committed: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _take_lock(self) -> IO[str]:
        lock = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115 - held as long as the ledger
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"workdir: {self.path.parent}: another run is using it; wait for it, or give another folder"
            ) from error
        return lock

    def _check_version(self, read_only: bool) -> None:
        version = self.meta("version")
        if version is None and not read_only:
            self.set_meta("version", str(VERSION))
        elif version is not None and int(version) > VERSION:
            raise UserError(
                f"workdir: {self.path}: a ledger of version {version}; this program reads up to {VERSION}: update it"
            )

    async def __aenter__(self) -> "Ledger":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Commits what is waiting and closes the file."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self.release()

    def release(self) -> None:
        """Closes the file; for use without an event loop, where nothing can be waiting."""
        self._thread.shutdown()
        self._reader.close()
        self.db.close()
        if self._lock is not None:
            self._lock.close()

    def meta(self, name: str) -> str | None:
        """A named value of the run, or None."""
        row = self.db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, name: str, value: str) -> None:
        """Sets a named value of the run."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, value))

    def call(self, key: bytes) -> Answer | None:
        """The recorded answer to a request's key, or None where it was never finished."""
        row = self._reader.execute(f"SELECT {', '.join(_ANSWER)} FROM calls WHERE key=?", (key,)).fetchone()
        return None if row is None else Answer(*row)

    async def put_call(self, key: bytes, agent: str, problem_id: str, attempt: int, answer: Answer) -> None:
        """Records a finished call; returns once it is on disk."""
        await self._put(_INSERT_CALL, (key, agent, problem_id, attempt, *(getattr(answer, name) for name in _ANSWER)))

    def verdict(self, key: bytes) -> tuple[str, str] | None:
        """The recorded verdict and rule of a comparison, or None."""
        return self._reader.execute("SELECT verdict, rule FROM verdicts WHERE key=?", (key,)).fetchone()

    async def put_verdict(self, key: bytes, verdict: str, rule: str) -> None:
        """Records a comparison (a time-out too: the run must not depend on how fast a machine is)."""
        await self._put(_INSERT_VERDICT, (key, verdict, rule))

    def finished(self, problem_id: str) -> bool:
        """Whether the problem has its outcome."""
        return self._reader.execute("SELECT 1 FROM outcomes WHERE problem_id=?", (problem_id,)).fetchone() is not None

    async def put_outcome(
        self, problem_id: str, state: str, reason: str, label: str, rounds: int, pairs: str, body: Any
    ) -> None:
        """Records a problem's end; `pairs` names its gaps, `body` is kept as compressed JSON."""
        data = zlib.compress(json.dumps(body, ensure_ascii=False, sort_keys=True).encode(), 1)
        await self._put(_INSERT_OUTCOME, (problem_id, place_of(problem_id), state, reason, label, rounds, pairs, data))

    def dropped(self, problem_id: str) -> bool:
        """Whether the problem was dropped before any call (hygiene)."""
        row = self._reader.execute("SELECT dropped FROM problems WHERE problem_id=?", (problem_id,)).fetchone()
        return bool(row and row[0])

    def outcomes(
        self, where: str = "1", parameters: tuple[Any, ...] = (), wanted: Callable[[str], bool] = lambda _: True
    ) -> Iterator[tuple[str, Any]]:
        """(problem_id, body) of the outcomes that fulfil an SQL condition and whose id is `wanted`.

        By place: an order no run can change.
        """
        rows = self.db.execute(f"SELECT problem_id, body FROM outcomes WHERE {where} ORDER BY place", parameters)
        for problem_id, body in rows:
            if wanted(problem_id):
                yield problem_id, json.loads(zlib.decompress(body))

    def counts(self, column: str, where: str = "1") -> dict[str, int]:
        """How many outcomes have each value of a column."""
        rows = self.db.execute(
            f"SELECT {column}, COUNT(*) FROM outcomes WHERE {where} GROUP BY {column} ORDER BY {column}"
        )
        return {str(value): count for value, count in rows}

    def forget_outcomes(self) -> None:
        """Drops all outcomes, not the calls: they are worked out anew, asking only what was never asked."""
        self.db.execute("DELETE FROM outcomes")

    async def _put(self, statement: str, row: tuple[Any, ...]) -> None:
        self._batch.append((statement, row))
        if self._committed is None:
            self._committed = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(self._commit_soon(self._committed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.shield(self._committed)

    async def _commit_soon(self, committed: "asyncio.Future[None]") -> None:
        await asyncio.sleep(_COMMIT_SECONDS)
        batch, self._batch, self._committed = self._batch, [], None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, batch)
        except sqlite3.Error as error:
            committed.set_exception(
                UserError(
                    f"workdir: {self.path}: cannot be written ({error}); free some space and run the same command"
                )
            )
            committed.exception()  # seen, also where every waiter was cancelled
        except Exception as error:  # a waiter must never wait forever
            committed.set_exception(error)
            committed.exception()
        else:
            committed.set_result(None)

    def _commit(self, batch: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for statement, row in batch:
                self.db.execute(statement, row)
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # a full disk has rolled back by itself
                self.db.execute("ROLLBACK")
            raise


def place_of(problem_id: str) -> bytes:
    """Where a problem stands in the output, and which driver takes it: a hash, so no order of arrival shows."""
    return hashlib.sha256(problem_id.encode()).digest()


_TABLES = ("calls", "verdicts", "problems", "outcomes")
_MUST_AGREE = ("version", "input_sha256", "outcomes_from", "taken_in", "repaired", "skipped", "understood")
_OWN = ("partition.driver", "partition.drivers")


def merge(sources: Sequence[str | Path], workdir: str | Path, options: Options) -> dict[str, int]:
    """Joins the ledgers of `sources` into `workdir`'s, which then belongs to `options`; rows added by table.

    Raises UserError for a source that is none, or whose config (but for its partition), prompts, input or version
    differ.
    """
    workdir = Path(workdir)
    for source in sources:
        _check_config(Path(source), options)
    workdir.mkdir(parents=True, exist_ok=True)
    claim_workdir(workdir, options)
    ledger = Ledger(workdir / "ledger.sqlite")
    try:
        added = dict.fromkeys(_TABLES, 0)
        for source in sources:
            for table, count in _join(ledger, Path(source) / "ledger.sqlite").items():
                added[table] += count
        return added
    finally:
        ledger.release()


def _check_config(source: Path, options: Options) -> None:
    path = source / "config.json"
    if not path.is_file() or not (source / "ledger.sqlite").is_file():
        raise UserError(f"merge: {source}: not the workdir of a CRV run; it needs config.json and ledger.sqlite")
    theirs, mine = json.loads(path.read_text(encoding="utf-8")), options.identity()
    if differing := [name for name in differences(theirs, mine) if name not in _OWN]:
        raise UserError(f"merge: {source}: belongs to another config; differing: {', '.join(differing)}")


def _join(ledger: Ledger, source: Path) -> dict[str, int]:
    """Adds a source's rows; where both have a row, they have the same one, since keys are contents."""
    ledger.db.execute("ATTACH DATABASE ? AS source", (str(source),))
    try:
        for name in _MUST_AGREE:
            row = ledger.db.execute("SELECT value FROM source.meta WHERE name=?", (name,)).fetchone()
            if row is None:
                raise UserError(f"merge: {source}: has no {name}; let its run get past the start first")
            known = ledger.meta(name)
            if name == "version" and int(row[0]) > VERSION:
                raise UserError(f"merge: {source}: a ledger of version {row[0]}; this program reads up to {VERSION}")
            if known is not None and known != row[0]:
                raise UserError(f"merge: {source}: another {name} than the ledgers before it; all must be of one run")
            ledger.set_meta(name, row[0])
        ledger.db.execute("BEGIN")
        added = {}
        for table in _TABLES:
            added[table] = ledger.db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM source.{table}").rowcount
        ledger.db.execute("COMMIT")
        return added
    finally:
        if ledger.db.in_transaction:
            ledger.db.execute("ROLLBACK")
        ledger.db.execute("DETACH DATABASE source")
