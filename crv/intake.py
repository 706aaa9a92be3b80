"""The first pass over the input: every row checked, repeats counted, hygiene's drops noted, a pilot's sample drawn."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from cogpo_jax.errors import UserError
from cogpo_jax.records.reader import fingerprint
from crv.hygiene import Hygiene
from crv.ledger import Ledger, place_of
from crv.options import Options
from crv.problems import Problem, read_problems, read_questions, understand

_EVERY = b"\xff" * 32


def take_in(ledger: Ledger, options: Options) -> None:
    """Reads the whole input into the ledger's list of problems: bad rows are counted, ids with two texts refused.

    Skipped where this ledger has taken in the same file already; refused where the file has changed since.
    """
    digest = fingerprint(options.input)
    known = ledger.meta("input_sha256")
    if known is not None and known != digest:
        raise UserError(
            f"input: {options.input}: changed since this workdir was begun; restore it, or give another workdir"
        )
    if ledger.meta("taken_in") is not None:
        return
    ledger.set_meta("input_sha256", digest)
    ledger.db.execute("DELETE FROM problems")
    evaluation = {Path(source).stem: read_questions(source) for source in options.hygiene.against}
    hygiene = Hygiene(options.hygiene, evaluation, ledger.path.with_name("hygiene.scratch"))
    last = _last_place(options)
    repaired, skipped = Counter[str](), Counter[str]()
    rows = count()
    problems = (problem for problem, _ in zip(_limited(options, repaired, skipped), rows, strict=False))
    ledger.db.execute("BEGIN")
    try:
        repeated = sum(_add(ledger, one, hygiene) for one in problems if place_of(one.problem_id) <= last)
    except BaseException:
        if ledger.db.in_transaction:
            ledger.db.execute("ROLLBACK")
        raise
    finally:
        hygiene.close()
    ledger.db.execute("COMMIT")
    ledger.set_meta("rows", str(next(rows)))
    ledger.set_meta("last_place", last.hex())
    ledger.set_meta("repaired", json.dumps(repaired, sort_keys=True))
    ledger.set_meta("skipped", json.dumps(skipped, sort_keys=True))
    ledger.set_meta("understood", json.dumps(understand(options).described(), sort_keys=True))
    ledger.set_meta("taken_in", str(repeated))


def rows_of_input(ledger: Ledger) -> int:
    """Rows of the input within the limit, a pilot's sample or not."""
    return int(ledger.meta("rows") or 0)


def remaining(ledger: Ledger) -> int:
    """Problems that intake let through."""
    return int(ledger.db.execute("SELECT COUNT(*) FROM problems WHERE dropped = ''").fetchone()[0])


def pending(ledger: Ledger, options: Options) -> Iterator[Problem]:
    """This driver's problems without an outcome, in input order (a repeated row may come twice)."""
    last = bytes.fromhex(ledger.meta("last_place") or "")
    for problem in _limited(options):
        place = place_of(problem.problem_id)
        mine = int.from_bytes(place[:8], "big") % options.partition.drivers == options.partition.driver
        done = ledger.finished(problem.problem_id) or ledger.dropped(problem.problem_id)
        if place <= last and mine and not done:
            yield problem


def _limited(
    options: Options, repaired: Counter[str] | None = None, skipped: Counter[str] | None = None
) -> Iterator[Problem]:
    problems = read_problems(options.input, options.hygiene.repair, repaired, options.columns, skipped)
    return islice(problems, options.limit or None)


def _last_place(options: Options) -> bytes:
    """The last place that is drawn: a sample is the problems whose ids hash lowest, wherever they stand."""
    if not options.sample:
        return _EVERY
    return heapq.nsmallest(options.sample, (place_of(problem.problem_id) for problem in _limited(options)))[-1]


def _add(ledger: Ledger, problem: Problem, hygiene: Hygiene) -> int:
    """Adds a problem to the ledger's list with its verdict; 1 where it stands there already with the same content."""
    digest = hashlib.sha256(repr(problem).encode()).digest()
    if ledger.db.execute("INSERT OR IGNORE INTO problems VALUES (?,?,'')", (problem.problem_id, digest)).rowcount:
        if reason := hygiene.reason(problem):
            ledger.db.execute("UPDATE problems SET dropped=? WHERE problem_id=?", (reason, problem.problem_id))
        return 0
    (other,) = ledger.db.execute("SELECT digest FROM problems WHERE problem_id=?", (problem.problem_id,)).fetchone()
    if other != digest:
        raise UserError(
            f"input: problem_id {problem.problem_id!r}: two rows with different content have it; ids must be unique"
        )
    return 1
