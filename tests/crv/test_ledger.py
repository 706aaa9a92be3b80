"""The ledger keeps what it says it kept."""

import asyncio
import sqlite3

import pytest

from cogpo_jax.errors import UserError
from crv.ledger import Ledger
from crv.pool.base import Answer, Request, Sampling

ANSWER = Answer("text", "stop", 10, 5, 3, "m", "rule", 0.5)


def request(**changes):
    values = {
        "agent": "critic",
        "inputs": {"problem": "p", "cot": "c"},
        "attempt": 0,
        "template": "t",
        "messages": (("user", "p"),),
        "model": "m",
        "sampling": Sampling(0.5, 0.9, 100),
        "schema": "",
        "regex": "",
        "seed": 1,
    }
    return Request(**{**values, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "verifier"},
        {"inputs": {"problem": "p", "cot": "d"}},
        {"inputs": {"problem": "pc", "cot": ""}},
        {"attempt": 1},
        {"template": "u"},
        {"model": "n"},
        {"sampling": Sampling(0.6, 0.9, 100)},
        {"sampling": Sampling(0.5, 0.8, 100)},
        {"sampling": Sampling(0.5, 0.9, 101)},
        {"schema": "{}"},
        {"regex": "a"},
        {"seed": 2},
    ],
)
def test_whatever_changes_an_answer_changes_the_key(change):
    assert request(**change).key() != request().key()
    assert request(problem_id="other").key() == request().key()


def test_a_recording_is_found_whatever_the_wording_and_the_model():
    assert request(template="u", model="n", seed=9).question() == request().question()
    assert request(attempt=1).question() != request().question()


def test_what_was_awaited_is_there_for_the_next_opener(tmp_path):
    async def write():
        async with Ledger(tmp_path / "l.sqlite") as ledger:
            await asyncio.gather(*(ledger.put_call(bytes([i]), "critic", "p", 0, ANSWER) for i in range(50)))
            assert ledger.call(bytes([7])) == ANSWER

    asyncio.run(write())
    ledger = Ledger(tmp_path / "l.sqlite", read_only=True)
    assert [ledger.call(bytes([i])) for i in range(51)] == [ANSWER] * 50 + [None]
    ledger.release()


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path):
    async def fill():
        async with Ledger(tmp_path / "l.sqlite") as ledger:
            await ledger.put_call(b"first", "critic", "p", 0, ANSWER)
            pages = ledger.db.execute("PRAGMA page_count").fetchone()[0]
            ledger.db.execute(f"PRAGMA max_page_count={pages + 1}")
            with pytest.raises(UserError, match=r"cannot be written \(database or disk is full\); free some space"):
                await ledger.put_call(b"second", "critic", "p", 0, Answer("x" * 1_000_000))
            return ledger.call(b"first"), ledger.call(b"second")

    assert asyncio.run(fill()) == (ANSWER, None)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "l.sqlite").write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(UserError, match="not a readable ledger"):
        Ledger(tmp_path / "l.sqlite")


def test_outcomes_come_in_an_order_of_their_own(tmp_path):
    async def write(names):
        async with Ledger(tmp_path / f"{names[0]}.sqlite") as ledger:
            for name in names:
                await ledger.put_outcome(name, "fitting", "", "medium", 0, "large", {"n": name})
            return [problem_id for problem_id, _ in ledger.outcomes()]

    names = [f"p{i}" for i in range(20)]
    assert asyncio.run(write(names)) == asyncio.run(write(names[::-1]))


def test_the_ledger_of_a_killed_writer_opens(tmp_path):
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute("PRAGMA journal_mode=WAL")
    (tmp_path / "l.sqlite-wal").write_bytes(b"\0" * 100)  # a header that was not finished
    Ledger(tmp_path / "l.sqlite").release()


@pytest.mark.parametrize("name", ["with # sign", "what?", "100%25", "a b&c=d"])
def test_a_ledger_opens_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.set_meta("name", name)
    ledger.release()
    again = Ledger(folder / "ledger.sqlite", read_only=True)
    assert again.meta("name") == name
    again.release()
    assert {file.name for file in tmp_path.iterdir()} == {name}
