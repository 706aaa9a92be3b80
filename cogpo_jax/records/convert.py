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
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.reader import read_rows
from cogpo_jax.records.recognise import FIRST_ROWS, recognise_pairs
from cogpo_jax.records.rows import DropReason, FlatRow, SourceRow, ignored_columns, parse_row
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
    """`validation_fraction` of the prompts (0..1, by hash of the prompt) are held out; `source` names the data.

    `preset` and `columns` say what the columns are (docs/data.md); `strict`: the first bad row ends the conversion.
    """

    input_split: str = ""
    validation_fraction: float = 0.0
    shards: int = 1
    source: str = ""
    preset: str = ""
    columns: str = ""
    strict: bool = False

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
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Converts the rows of `source` (see `reader.read_rows`) to group shards with a manifest; returns its summary.

    `progress` is called with a stage's name and the share of it that is done, `tell` with what was understood of the
    columns. A bad row is dropped and counted. Raises UserError for data that hold no pairs, for a bad row where
    `options.strict`, or where most rows are bad; nothing is written then.
    """
    options = options or ConvertOptions()
    check_folder(output)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="convert-pairs-") as scratch:
        store = sqlite3.connect(Path(scratch) / "rows.sqlite")
        try:
            store.executescript(_TABLES)
            info = _fill(store, source, options, digest, progress, tell)
            name = options.source or info["understood"]["preset"]
            info |= {"converted_from": {"name": name, "rows_sha256": digest.hexdigest()}}
            info |= {"options": {k: v for k, v in asdict(options).items() if k != "input_split"}}
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
    store: sqlite3.Connection,
    source: str,
    options: ConvertOptions,
    digest: Any,
    progress: Progress,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Stores every usable row under its prompt; returns the counts of rows read, kept, dropped and mended."""
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    read = kept = places = mended = pairs = 0
    first_bad = ""

    def bad(place: str, reason: str) -> None:
        nonlocal read, first_bad
        read += 1
        first_bad = first_bad or f"{place}: {reason}"
        dropped[f"bad_row: {reason}"] += 1

    told = None if options.strict else bad
    rows = read_rows(source, options.input_split, bad=told, progress=lambda share: progress("reading rows", share))
    first = list(islice(rows, FIRST_ROWS))
    meaning = recognise_pairs([row for _, row in first], preset=options.preset, columns=options.columns)
    tell(meaning.line())
    for place, columns in chain(first, rows):
        read += 1
        ignored.update(ignored_columns(columns, meaning))
        try:
            parsed = parse_row(SourceRow(place, columns), meaning)
        except UserError as error:
            if options.strict:
                raise
            # "PLACE: FIELD: what would be right": counted by field.
            field = str(error).removeprefix(f"{place}: ").partition(":")[0]
            dropped[f"bad_row: {field}"] += 1
            first_bad = first_bad or str(error)
            continue
        if isinstance(parsed, DropReason):
            dropped[parsed.value] += 1
            continue
        for pair in parsed:
            pairs += 1
            _store(store, pairs, pair, options.validation_fraction)
            digest.update(repr(pair).encode())
        kept += 1
        places += (found := sum(pair.repaired for pair in parsed))
        mended += bool(found)
    spoilt = sum(count for reason, count in dropped.items() if reason.startswith("bad_row"))
    if spoilt > read // 2:
        raise UserError(f"{first_bad}; {spoilt} of {read} rows are bad")
    if not kept:
        raise UserError(
            f"--input: no usable row ({read} read, dropped: {dict(dropped)}): need prompt, chosen, rejected"
        )
    store.execute("CREATE INDEX by_prompt ON pairs (first, row)")
    return {
        "understood": {name: value for name, value in meaning.described().items() if name in _UNDERSTOOD},
        "rows": {"read": read, "kept": kept},
        "dropped": dict(sorted(dropped.items())),
        "repaired": {"rows": mended, "control_characters": places},
        "ignored_columns": dict(sorted(ignored.items())),
    }


_UNDERSTOOD = ("preset", "columns", "unused")


def _store(store: sqlite3.Connection, number: int, row: FlatRow, validation_fraction: float) -> None:
    key = hashlib.sha256(json.dumps([row.system, row.prompt, row.messages]).encode()).hexdigest()
    split = "validation" if int(key[:13], 16) / 16**13 < validation_fraction else "train"
    new = (number, key, split, row.system, row.prompt, row.messages)
    store.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?, ?)", new)
    first = store.execute("SELECT first FROM prompts WHERE key = ?", (key,)).fetchone()[0]
    beta = None if row.beta != row.beta else row.beta  # SQLite has no NaN
    responses = (json.dumps(response) for response in (row.chosen, row.rejected))
    pair = (number, first, *responses, row.gap, beta, row.weight)
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


def _response(stored: str) -> Response:
    thought, solution, text = json.loads(stored)
    name = hashlib.sha256((text or stored).encode()).hexdigest()[:16]
    return Response(name, "", "imported", "", thought, solution, text, kind="unknown", certificate=_CERTIFICATE)


def _track(groups: Iterable[Group], written: Iterator[int], total: int, progress: Progress) -> Iterator[Group]:
    for group in groups:
        yield group
        progress("writing groups", next(written) / total)
