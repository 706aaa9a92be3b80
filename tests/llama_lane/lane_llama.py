"""20 real problems through the whole loop before a real model: every reply is accounted for. See README.md.

Leaves the run in runs/llama (the same command goes on with it), its page beside it, and prints the figures as JSON.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from cogpo_jax.records import read_groups
from crv.config import default_config
from crv.driver import run
from crv.ledger import Ledger
from crv.options import Options

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROBLEMS = HERE / "gsm8k_20.jsonl"
WORKDIR = ROOT / "runs" / "llama"
SLOTS, CONTEXT = 8, 3072


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """llama.cpp's server with the model that LLAMA_MODEL names."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [os.environ["LLAMA_SERVER"], "-m", os.environ["LLAMA_MODEL"], "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), "-t", str(os.cpu_count()), "--alias", "student"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not come up"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                    break
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def options(url):
    c = default_config(Options)
    c.input, c.student, c.heldout, c.shards = str(PROBLEMS), "a model with 0.5 billion parameters", 0.0, 1
    c.pool.kind, c.pool.url, c.pool.model = "openai", url, "student"
    c.pool.timeout, c.pool.concurrency = 3600.0, SLOTS
    c.sampling.max_tokens, c.asks, c.max_rounds = 600, 2, 2
    c.agents.critic.temperature, c.agents.critic.max_tokens = 0.0, 300
    c.agents.student.model, c.student_attempts = "student", 2
    c.verifier.asked, c.verifier.needed, c.corrupter.attempts = 2, 1, 1
    return Options.from_config(c)


@pytest.fixture(scope="module")
def finished(url):
    """(summary, seconds) of the run."""
    WORKDIR.mkdir(parents=True, exist_ok=True)
    before = time.monotonic()
    return run(options(url), WORKDIR), time.monotonic() - before


def rows(query):
    ledger = Ledger(WORKDIR / "ledger.sqlite", read_only=True)
    try:
        return ledger.db.execute(query).fetchall()
    finally:
        ledger.release()


def test_every_problem_has_its_end_and_every_reply_its_place(finished):
    summary, _ = finished
    problems = dict(summary["problems"])
    assert problems.pop("total") == sum(problems.values()) == 20
    assert sum(summary["drops"].values()) == problems["dropped"]
    for numbers in summary["pool"].values():
        assert numbers["sent"] == numbers["answered"] + sum(numbers["resent"].values())
        assert numbers["answered"] == summary["asked_now"]
    asked = sum(row["calls"] for row in summary["calls"].values())
    assert asked == rows("SELECT COUNT(*) FROM calls")[0][0]
    ended = dict(rows("SELECT finish_reason, COUNT(*) FROM calls GROUP BY 1"))
    assert ended.keys() <= {"stop", "length", "prompt_too_long"}, "a word of the server that we do not know"
    assert ended["stop"] > 0.5 * asked


def test_the_records_hold_what_the_summary_says(finished):
    summary, _ = finished
    pairs = Counter(pair.gap for group in read_groups(WORKDIR, "train") for pair in group.pairs)
    assert {gap: count for gap, count in summary["pairs"].items() if count} == dict(pairs)


def test_a_prompt_beyond_the_context_is_an_outcome_and_the_room_is_known(url, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"problem": "What is 1 + 1? " * 2000, "answer": "2"}) + "\n")
    c = options(url)
    from dataclasses import replace

    summary = run(replace(c, input=str(tmp_path / "long.jsonl"), agents={}), tmp_path / "run")
    assert summary["drops"] == {"solver_prompt_too_long": 1}


def test_the_figures_are_printed_and_the_page_is_written(finished):
    summary, seconds = finished
    page = WORKDIR / "report.html"
    command = [sys.executable, "-m", "cogpo_jax", "report", f"--data={WORKDIR}", f"--output={page}"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert page.stat().st_size > 10_000
    words = {row["problem_id"]: len(row["cot"].split()) for row in map(json.loads, PROBLEMS.open()) if row["cot"]}
    labels = dict(rows("SELECT problem_id, label FROM outcomes WHERE label != ''"))
    judged = {name: by_length(count, sorted(words.values())) for name, count in words.items() if name in labels}
    agree = sum(labels[name] == label for name, label in judged.items())
    # What one would agree by chance: the product of how often each of the two says a label.
    said, ruled = Counter(labels[name] for name in judged), Counter(judged.values())
    chance = sum(said[label] * ruled[label] for label in ruled) / max(1, len(judged)) ** 2
    output = sum(row["output_tokens"] for row in summary["calls"].values())
    figures = {
        **{name: summary[name] for name in ("problems", "labels", "drops", "pairs", "rounds", "unusable")},
        "wrong_by_origin": summary["wrong_by_origin"],
        "calls": {agent: row["calls"] for agent, row in summary["calls"].items()},
        "output_tokens": output,
        "output_tokens_per_second": round(output / seconds, 1) if summary["asked_now"] else None,
        "seconds": round(seconds),
        "critic_agrees_with_length": f"{agree} of {len(judged)}",
        "kappa": round((agree / max(1, len(judged)) - chance) / (1 - chance), 2) if chance < 1 else None,
        "by_length": dict(ruled),
    }
    print("\n" + json.dumps(figures, indent=1))


def by_length(words, all_words):
    """easy for the shortest third of the chains of thought, hard for the longest, medium between."""
    third = len(all_words) // 3
    return "easy" if words <= all_words[third - 1] else "hard" if words >= all_words[-third] else "medium"
