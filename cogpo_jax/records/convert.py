"""Anyone's flat preference rows -> groups: equal prompts join, equal responses are shared, duplicate pairs are joined.

Rows are kept in an SQLite file while they are joined, so memory does not grow with the input; groups come out in the
order in which their prompts first occur.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.rows import DropReason, FlatRow, ignored_columns, parse_row, read_rows
from cogpo_jax.records.schema import Group, Pair, Response
from cogpo_jax.records.shards import check_folder, write_data

Progress = Callable[[str, float], None]

_CERTIFICATE = json.dumps({"method": "imported"})

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE prompts (first INTEGER PRIMARY KEY, key TEXT UNIQUE, split TEXT, system TEXT, prompt TEXT, messages TEXT);
CREATE TABLE pairs (row INTEGER PRIMARY KEY, first INTEGER, chosen TEXT, rejected TEXT, gap TEXT, beta REAL,
                    weight REAL);
"""


@dataclass(frozen=True)
class ConvertOptions:
    """`validation_fraction` of the prompts (0..1, by hash of the prompt) are held out; `source` names the data."""

    input_split: str = "train"
    validation_fraction: float = 0.0
    shards: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"--validation_fraction: {self.validation_fraction}: must be at least 0 and below 1")
        if self.shards < 1:
            raise UserError(f"--shards: {self.shards}: must be at least 1")


def convert_pairs(
    source: str,
    output: str | os.PathLike[str],
    options: ConvertOptions | None = None,
    progress: Progress = lambda stage, done: None,
) -> dict[str, Any]:
    """Converts the rows of `source` (see `rows.read_rows`) to group shards with a manifest; returns its summary.

    `progress` is called with a stage's name and the share of it that is done. Raises UserError naming file and line
    for a bad row; nothing is written then.
    """
    options = options or ConvertOptions()
    check_folder(output)
    digest = hashlib.sha256()
    rows = read_rows(source, options.input_split, digest)
    with tempfile.TemporaryDirectory(prefix="convert-pairs-") as scratch:
        store = sqlite3.connect(Path(scratch) / "rows.sqlite")
        try:
            store.executescript(_TABLES)
            info = _fill(store, rows, options, progress)
            info |= {"converted_from": {"name": options.source or Path(source).name, "sha256": digest.hexdigest()}}
            info |= {"options": asdict(options)}
            joined: Counter[str] = Counter(
                contradictory_pairs=0, duplicate_pairs=0, duplicate_pairs_labelled_otherwise=0
            )
            total = store.execute("SELECT count(*) FROM prompts").fetchone()[0]
            written = iter(range(1, total + 1))
            groups = {
                split: _track(_groups(store, split, info["converted_from"]["name"], joined), written, total, progress)
                for (split,) in store.execute("SELECT DISTINCT split FROM prompts ORDER BY split").fetchall()
            }
            info["joined"] = joined
            manifest = write_data(output, groups=groups, shards=options.shards, info=info)
        finally:
            store.close()
    return {"output": os.fspath(output), **info, "groups": manifest["datasets"]["groups"]}


def _fill(
    store: sqlite3.Connection, rows: Iterable[Any], options: ConvertOptions, progress: Progress
) -> dict[str, Any]:
    """Stores every usable row under its prompt; returns the counts of rows read, kept, dropped and mended."""
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    read = kept = places = mended = 0
    for read, row in enumerate(rows, start=1):
        parsed = parse_row(row)
        ignored.update(ignored_columns(row.columns))
        progress("reading rows", row.done)
        if isinstance(parsed, DropReason):
            dropped[parsed.value] += 1
            continue
        _store(store, read, parsed, options.validation_fraction)
        kept += 1
        places += parsed.repaired
        mended += bool(parsed.repaired)
    if not kept:
        raise UserError(
            f"--input: no usable row ({read} read, dropped: {dict(dropped)}): need prompt, chosen, rejected"
        )
    store.execute("CREATE INDEX by_prompt ON pairs (first, row)")
    return {
        "rows": {"read": read, "kept": kept},
        "dropped": dict(sorted(dropped.items())),
        "repaired": {"rows": mended, "control_characters": places},
        "ignored_columns": dict(sorted(ignored.items())),
    }


def _store(store: sqlite3.Connection, number: int, row: FlatRow, validation_fraction: float) -> None:
    key = hashlib.sha256(json.dumps([row.system, row.prompt, row.messages]).encode()).hexdigest()
    split = "validation" if int(key[:13], 16) / 16**13 < validation_fraction else "train"
    new = (number, key, split, row.system, row.prompt, row.messages)
    store.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?, ?)", new)
    first = store.execute("SELECT first FROM prompts WHERE key = ?", (key,)).fetchone()[0]
    beta = None if row.beta != row.beta else row.beta  # SQLite has no NaN
    pair = (number, first, row.chosen, row.rejected, row.gap, beta, row.weight)
    store.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?)", pair)


def _groups(store: sqlite3.Connection, split: str, source: str, joined: Counter[str]) -> Iterator[Group]:
    query = """SELECT key, system, prompt, messages, chosen, rejected, gap, beta, weight
               FROM prompts JOIN pairs USING (first) WHERE split = ? ORDER BY first, row"""
    for (key, system, prompt, messages), found in groupby(store.execute(query, (split,)), key=lambda row: row[:4]):
        responses, pairs = _join([row[4:] for row in found], joined)
        yield Group(key[:16], system, prompt, "", responses, pairs, task="preference", messages=messages, source=source)


def _join(rows: list[tuple[Any, ...]], joined: Counter[str]) -> tuple[tuple[Response, ...], tuple[Pair, ...]]:
    """The unique responses of one prompt's rows and the unique pairs between them; the first of equal pairs stays."""
    places: dict[str, int] = {}
    pairs: dict[tuple[int, int], Pair] = {}
    for chosen, rejected, gap, beta, weight in rows:
        ends = places.setdefault(chosen, len(places)), places.setdefault(rejected, len(places))
        pair = Pair(*ends, gap, weight=weight) if beta is None else Pair(*ends, gap, beta, weight)
        if ends in pairs:
            joined["duplicate_pairs"] += 1
            joined["duplicate_pairs_labelled_otherwise"] += pairs[ends] != pair
        elif ends[::-1] in pairs:
            joined["contradictory_pairs"] += 1
        pairs.setdefault(ends, pair)
    return tuple(map(_response, places)), tuple(pairs.values())


def _response(text: str) -> Response:
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Response(name, "", "imported", "", "", "", text, kind="unknown", certificate=_CERTIFICATE)


def _track(groups: Iterable[Group], written: Iterator[int], total: int, progress: Progress) -> Iterator[Group]:
    for group in groups:
        yield group
        progress("writing groups", next(written) / total)
