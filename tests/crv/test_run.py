"""Whole runs on the shipped problems: resumable, killable, and the same bytes whatever happened."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records import read_groups, read_sft, splits
from crv.driver import run
from crv.ledger import merge
from crv.options import ColumnsOptions, PartitionOptions
from crv.pool.base import PoolError
from crv.problems import read_problems
from crv.review import why
from crv.summary import findings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
from scripted import ScriptedPool, label  # noqa: E402
from slow_run import SlowPool, options  # noqa: E402


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run of 40 problems."""
    os.chdir(ROOT)
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, run(options(), workdir)


def digests(workdir):
    files = [*Path(workdir).glob("*/*"), Path(workdir) / "manifest.json"]
    return {str(f.relative_to(workdir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_summary_adds_up_and_the_records_hold_it(undisturbed):
    workdir, summary = undisturbed
    problems = dict(summary["problems"])
    assert problems.pop("total") == sum(problems.values()) == 40
    assert sum(summary["drops"].values()) == problems["dropped"]
    groups = [g for split in ("train", "validation") for g in read_groups(workdir, split)]
    for gap, count in summary["pairs"].items():
        assert sum(pair.gap == gap for group in groups for pair in group.pairs) == count
    assert splits(workdir)["groups"]["validation"] == 8
    trained = {sft.problem_id for sft in read_sft(workdir, "train")} | {
        g.problem_id for g in read_groups(workdir, "train")
    }
    held_out = {g.problem_id for g in read_groups(workdir, "validation")}
    assert not trained & held_out


def test_every_response_carries_its_proof(undisturbed):
    for group in read_groups(undisturbed[0], "train"):
        for response in group.responses:
            proof = json.loads(response.certificate)
            assert proof["verdict"] == ("incorrect" if response.kind == "incorrect" else "correct")
            if response.origin == "rewrite" and response.kind == "suitable":
                assert proof["blind"] == [1, 1], "a rewrite is solved again without the answer"


def test_a_second_start_asks_nothing_and_writes_the_same_bytes(undisturbed):
    workdir, summary = undisturbed
    before = digests(workdir)
    again = run(options(), workdir, ScriptedPool())
    assert again["asked_now"] == 0
    assert {**again, "asked_now": 0} == {**summary, "asked_now": 0}
    assert digests(workdir) == before


def test_order_and_number_in_flight_do_not_show(undisturbed, tmp_path):
    for i, at_a_time in enumerate((2, 17)):
        pool = SlowPool(options().pool.recordings, 0.01, tmp_path / "log")
        run(replace(options(), problems_in_flight=at_a_time), tmp_path / str(i), pool)
        assert digests(tmp_path / str(i)) == digests(undisturbed[0])


def test_killed_at_any_moment_it_goes_on_without_asking_twice(undisturbed, tmp_path):
    log, workdir = tmp_path / "log", tmp_path / "run"
    command = [sys.executable, str(HERE / "slow_run.py"), str(workdir), "0.4", str(log)]
    finished: set[str] = set()
    for calls in (5, 40, 90):
        asked_before = len(log.read_text().split()) if log.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(log.read_text().split() if log.exists() else []) < asked_before + calls:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked_now = set(log.read_text().split()[asked_before:])
        assert not asked_now & finished, "a finished call was asked again"
        with sqlite3.connect(workdir / "ledger.sqlite") as db:
            finished = {key.hex() for (key,) in db.execute("SELECT key FROM calls")}
    asked_before = len(log.read_text().split())
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    assert not set(log.read_text().split()[asked_before:]) & finished
    assert digests(workdir) == digests(undisturbed[0])


def test_a_request_without_a_recording_stops_the_run_and_is_named(tmp_path):
    recordings = map(json.loads, Path("examples/gsm8k_cots/recordings.jsonl").read_text().splitlines())
    lines = (json.dumps(row) + "\n" for row in recordings if row["agent"] != "verifier")
    (tmp_path / "some.jsonl").write_text("".join(lines))
    changed = replace(options(), pool=replace(options().pool, recordings=str(tmp_path / "some.jsonl")))
    with pytest.raises(UserError, match=r"no recording of verifier for problem gsm8k_train/\d+"):
        run(changed, tmp_path / "run")


def test_a_workdir_of_another_config_is_refused_by_the_names_of_the_fields(undisturbed):
    other = replace(options(), max_rounds=2, student="a giant")
    with pytest.raises(UserError, match=r"max_rounds \(3 there, 2 now\), student"):
        run(other, undisturbed[0])


def test_where_the_pool_is_may_change(undisturbed):
    moved = replace(options(), pool=replace(options().pool, url="http://elsewhere:1"), problems_in_flight=3)
    assert run(moved, undisturbed[0])["asked_now"] == 0


def test_a_changed_prompt_asks_only_what_depends_on_it(undisturbed, tmp_path):
    for file in (ROOT / "crv" / "prompts" / "default").iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    workdir = tmp_path / "run"
    run(replace(options(), prompts=str(tmp_path)), workdir)
    critic = tmp_path / "critic.txt"
    critic.write_text(critic.read_text() + "\nBe strict.")
    log = tmp_path / "log"
    again = run(replace(options(), prompts=str(tmp_path)), workdir, SlowPool(options().pool.recordings, 0, log))
    critiques = undisturbed[1]["calls"]["critic"]["calls"]
    assert again["asked_now"] == critiques
    assert again["pairs"] == undisturbed[1]["pairs"]


def test_two_runs_cannot_share_a_workdir(tmp_path):
    from crv.ledger import Ledger

    held = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match="another run is using it"):
        Ledger(tmp_path / "ledger.sqlite")
    held.db.close()


def test_a_ledger_of_a_newer_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("INSERT INTO meta VALUES ('version', '99')")
    with pytest.raises(UserError, match="version 99"):
        run(options(), tmp_path)


def test_drivers_that_share_the_problems_write_the_bytes_of_one(undisturbed, tmp_path):
    parts = [tmp_path / str(i) for i in range(3)]
    summaries = [run(replace(options(), partition=PartitionOptions(i, 3)), part) for i, part in enumerate(parts)]
    assert sum(summary["problems"]["total"] for summary in summaries) == 40
    assert all(summary["problems"]["total"] > 4 for summary in summaries)
    assert merge(parts, tmp_path / "all", options())["outcomes"] == 40
    assert run(options(), tmp_path / "all", ScriptedPool())["asked_now"] == 0
    assert digests(tmp_path / "all") == digests(undisturbed[0])


def test_ledgers_of_different_runs_do_not_merge(undisturbed, tmp_path):
    with pytest.raises(UserError, match="belongs to another config; differing: max_rounds"):
        merge([undisturbed[0]], tmp_path / "all", replace(options(), max_rounds=2))
    with pytest.raises(UserError, match="not the workdir of a CRV run"):
        merge([tmp_path], tmp_path / "all", options())


def test_why_tells_a_problems_whole_story(undisturbed):
    group = next(read_groups(undisturbed[0], "train"))
    story = why(undisturbed[0], group.problem_id)
    for words in (
        "critique: label",
        "[suitable]",
        "[incorrect]",
        "certificate:",
        "critic attempt 0: stop",
        group.answer,
    ):
        assert words in story
    with pytest.raises(UserError, match="no such problem"):
        why(undisturbed[0], "nobody")


def problem_file(tmp_path, *rows):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return replace(options(), input=str(path))


GOOD = {
    "problem_id": "a",
    "problem": "What is 6 times 7?",
    "answer": "42",
    "cot": "6 times 7 makes 42. The answer is 42",
}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty: no rows in it"),
        (["{oops"], r"problems.jsonl:1: not JSON"),
        ([GOOD, {"answer": "1"}], r"problems.jsonl:2: problem missing"),
        ([GOOD, {"problem": "x", "answer": " "}], r"problems.jsonl:2: answer missing"),
        ([GOOD, [1]], r"problems.jsonl:2: list: each row must be one JSON object"),
        ([GOOD, {**GOOD, "problem": "other"}], "'a': two rows with different content"),
    ],
)
def test_bad_problem_files_are_refused_before_any_call(tmp_path, rows, message):
    strict = replace(problem_file(tmp_path, *rows), columns=ColumnsOptions(strict=True))
    with pytest.raises(UserError, match=message):
        run(strict, tmp_path / "run", ScriptedPool())


def test_a_bad_row_is_dropped_and_counted(tmp_path):
    pool = ScriptedPool(critic=[label("medium")], corrupter=["6 times 7 makes 41, I think. The answer is 41"])
    bad = [{"answer": "1"}, {"problem": "x", "answer": float("nan")}, [1], "{oops"]
    summary = run(problem_file(tmp_path, GOOD, *bad), tmp_path / "run", pool)
    assert summary["problems"]["total"] == 1
    assert summary["skipped_rows"] == {"problem_missing": 1, "answer_missing": 1, "not_an_object": 1, "not_json": 1}
    assert summary["understood"]["preset"] == "crv"


def test_a_question_is_asked_with_its_choices(tmp_path):
    row = {"question": "6 * 7?", "options": ["41", "42"], "answer": "42"}
    (problem,) = read_problems(problem_file(tmp_path, row).input)
    assert (problem.problem, problem.answer) == ("6 * 7?\n\nA. 41\nB. 42", "B")


def test_repeated_rows_are_counted_and_run_once(tmp_path):
    pool = ScriptedPool(critic=[label("medium")], corrupter=["6 times 7 makes 41, I think. The answer is 41"])
    summary = run(problem_file(tmp_path, GOOD, GOOD), tmp_path / "run", pool)
    assert (summary["problems"]["total"], summary["repeated_rows"]) == (1, 1)


def test_a_changed_problem_file_is_refused(tmp_path):
    pool = ScriptedPool(critic=[label("medium")], corrupter=["6 times 7 makes 41, I think. The answer is 41"])
    run(problem_file(tmp_path, GOOD), tmp_path / "run", pool)
    with pytest.raises(UserError, match="changed since this workdir was begun"):
        run(problem_file(tmp_path, {**GOOD, "problem_id": "b"}), tmp_path / "run", pool)


def test_a_pool_that_gives_up_keeps_what_is_finished(tmp_path):
    changed = problem_file(tmp_path, GOOD)
    with pytest.raises(UserError, match="no answer number 0 of corrupter"):
        run(changed, tmp_path / "run", ScriptedPool(critic=[label("medium")]))
    pool = ScriptedPool(corrupter=["6 times 7 makes 41, I think. The answer is 41"])
    assert run(changed, tmp_path / "run", pool)["asked_now"] == 1


def test_pool_errors_are_errors_of_the_pool():
    assert not issubclass(PoolError, UserError)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.nonsense=1"], "nonsense"),
        (["--config.input=missing.jsonl"], "input: missing.jsonl: no such file"),
        (["--config.max_rounds=0"], "max_rounds: 0: must be"),
        (["--config.pool.kind=magic"], "pool.kind: 'magic'"),
        (["--config.pool.recordings=nowhere.jsonl"], "pool.recordings: nowhere.jsonl"),
        (["--config.verifier.needed=4"], "verifier.needed: 4"),
        (["--config.prompts=nowhere"], "prompts: nowhere"),
        (["--config.columns.preset=gsm8k"], "columns.preset: gsm8k does not fit: missing question; columns found"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(tmp_path, flags, message):
    command = [sys.executable, "launch/crv.py", "--config=configs/crv_recorded.py", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ledger.sqlite").exists()


def test_the_command_prints_one_json_object_and_says_what_the_columns_are(tmp_path):
    names = {"problem_id": "n", "problem": "q", "answer": "key", "cot": "why"}
    lines = Path("examples/gsm8k_cots/problems.jsonl").read_text().splitlines()[:2]
    rows = [{names[name]: text for name, text in json.loads(line).items() if name in names} for line in lines]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row | {"key": f"#### {row['key']}"}) + "\n" for row in rows))
    command = [sys.executable, "launch/crv.py", "--config=configs/crv_recorded.py", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.input={tmp_path / 'in.jsonl'}", "--config.columns.map=problem=q,id=n"]
    command += ["--config.columns.gold=hash(key)", "--config.columns.cot=why", "--config.columns.preset=general"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["problems"]["rewritten"] == 2
    assert "solver" not in summary["calls"], "the chains that were given are rewritten, none is written anew"
    assert summary["understood"]["columns"] == {"cot": "why", "id": "n", "problem": "q"}
    assert "columns: preset general: problem=q, id=n, cot=why, answer=hash(key); of the first 2 rows 2" in done.stderr


def test_the_data_half_never_imports_jax():
    code = "import sys, crv.driver; print([m for m in ('jax', 'torch', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pilot_draws_from_all_of_the_input_and_forecasts_the_rest(tmp_path):
    lines = Path("examples/gsm8k_cots/problems.jsonl").read_text().splitlines()[::-1]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    pilot = run(replace(options(limit=0), input=str(tmp_path / "in.jsonl"), sample=30), tmp_path / "run")
    forecast = pilot["forecast"]
    assert (pilot["problems"]["total"], forecast["pilot"], forecast["problems"]) == (30, 30, len(lines))
    assert forecast["calls"] == round(sum(c["calls"] for c in pilot["calls"].values()) * len(lines) / 30)
    assert forecast["findings"] == []
    drawn = {g.problem_id for split in ("train", "validation") for g in read_groups(tmp_path / "run", split)}
    assert drawn - {json.loads(line)["problem_id"] for line in lines[:30]}, "not the first thirty"


def test_a_critic_of_one_word_is_a_finding():
    assert findings({"easy": 58, "hard": 2}, {"original_wrong": 3}, 100) == [
        "the critic says 'easy' of 58 of 60 texts: change its prompt or its model"
    ]
    assert findings({"easy": 30, "hard": 30}, {"original_wrong": 40}, 100) == [
        "40 of 100 problems are dropped as original_wrong"
    ]
