"""Several drivers' ledgers become one: what a single driver would have written."""

import json
from collections.abc import Sequence
from pathlib import Path

from cogpo_jax.errors import UserError
from crv.ledger import VERSION, Ledger
from crv.options import Options, claim_workdir

_TABLES = ("calls", "verdicts", "problems", "outcomes")
_MUST_AGREE = ("version", "input_sha256", "outcomes_from", "taken_in", "repaired")
_OWN = ("driver", "drivers")


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
    differing = sorted(n for n in theirs.keys() | mine.keys() if n not in _OWN and theirs.get(n) != mine.get(n))
    if differing:
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
