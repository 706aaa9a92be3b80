"""Whole runs before servers that reply as real ones do: what is understood, what is an outcome, what is waited for."""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cogpo_jax.records import read_groups
from crv.config import default_config
from crv.driver import run
from crv.ledger import Ledger
from crv.options import Options, PoolOptions
from crv.pool.base import Request
from crv.pool.http import HttpCaller
from crv.pool.openai import OpenAIPool

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from answering_server import chat, serving  # noqa: E402

RIGHT = "First we add the two numbers, one by one, and see that {a} and {b} make {c}. The answer is {c}"
WRONG = "We add the two numbers quickly and see that {a} and {b} make {d} in all. The answer is {d}"


def problem(number):
    a, b = number, number + 3
    return {"problem_id": f"p{number}", "problem": f"What is {a} plus {b}?", "answer": str(a + b)}


def numbers_of(text):
    a, b = text.partition("What is ")[2].partition("?")[0].split(" plus ")
    a, b = int(a), int(b)
    return {"a": a, "b": b, "c": a + b, "d": a + b + 1}


def agent_of(body):
    text = body["messages"][-1]["content"]
    return text.partition("## Task: ")[2].partition("\n")[0] or "student"


def speak(body):
    """What a good model says to each agent's question."""
    text, agent = body["messages"][-1]["content"], agent_of(body)
    if "label" in json.dumps(body.get("response_format", "")):
        return json.dumps({"reason": "r", "label": "medium"})
    wrong = "corrupt" in agent or "wrong" in agent or "mistake" in agent
    return (WRONG if wrong else RIGHT).format(**numbers_of(text))


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("crv.pool.http._BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("crv.pool.http._OUT_SECONDS", 0.01)

    def make(url, count, **changes):
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(json.dumps(problem(i)) + "\n" for i in range(1, count + 1)))
        c = default_config(Options)
        c.input, c.heldout = str(path), 0.0
        c.pool.kind, c.pool.url, c.pool.model, c.pool.timeout = "openai", url, "m", 20.0
        return replace(Options.from_config(c), **changes)

    return make


TROUBLES = {  # number of a problem -> how the first call about it is met, and the reason of its drop ("" = none)
    1: ((200, chat(None, "stop", reasoning=RIGHT.format(**numbers_of("What is 1 plus 4?")))), "solver_empty"),
    2: ("parts", ""),
    3: ("eos", ""),
    4: ((200, chat("x", "content_filter")), "solver_content_filter"),
    5: ((200, chat("x x x x", "repetition")), "solver_repetition"),
    6: ((400, {"error": {"code": 400, "message": "exceeds the available context size", "type": "e"}}), "solver_prompt_too_long"),  # noqa: E501
    7: ((422, {"error": "`inputs` must have less than 1024 tokens", "error_type": "validation"}), "solver_prompt_too_long"),  # noqa: E501
    8: ((200, {"error": {"code": 400, "message": "exceeds the available context size"}}), "solver_prompt_too_long"),
    9: ((400, {"error": {"code": "content_filter", "message": "filtered"}}), "solver_content_filter"),
    10: ("once 520", ""),
    11: ("once 529", ""),
    12: ("once HTML", ""),
    13: ("once 429", ""),
    14: ("reasoning", ""),
    15: ("null", ""),
    16: ((400, {"error": "we do not like this one"}), "solver_refused"),
    17: ("fence", ""),
    18: ("once choice error", ""),
    19: ((200, chat("<think>and on and on", "stop")), "solver_length"),
}  # fmt: skip
ONCE = {
    "once 520": (520, b"<html>Web server is returning an unknown error</html>"),
    "once 529": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "once HTML": (200, b"<html>502 Bad Gateway</html>"),
    "once 429": (429, {"error": "slow down"}, {"Retry-After": "0.05"}),
    "once choice error": (200, {"choices": [{"error": {"code": 502, "message": "Provider returned error"}}]}),
}


def test_a_server_that_mixes_everything_ends_well_and_every_outcome_has_its_reason(options, tmp_path):
    met = Counter()

    def reply(body, _, __):
        number = numbers_of(body["messages"][-1]["content"])["a"]
        trouble = TROUBLES.get(number, ("", ""))[0]
        met[number] += 1
        said = speak(body)
        if isinstance(trouble, tuple):
            return trouble
        if trouble in ONCE and met[number] == 1:
            return ONCE[trouble]
        if trouble == "parts":
            return 200, chat([{"type": "text", "text": said[:9]}, {"type": "text", "text": said[9:]}])
        if trouble == "fence" and said.startswith("{"):
            return 200, chat('Sure:\n```json\n{"Reason": "\\(x\\)", "label": "Medium"}\n```\nI hope {this} helps.')
        reason = {"eos": "eos_token", "null": None}.get(trouble, "stop")
        return 200, chat(said, reason, **({"reasoning": "so many words"} if trouble == "reasoning" else {}))

    with serving(reply) as url:
        wanted = options(url, 24)
        summary = run(wanted, tmp_path / "run")
    assert "went_badly" not in summary
    with_reason = {f"p{number}": reason for number, (_, reason) in TROUBLES.items() if reason}
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)
    ended = dict(ledger.db.execute("SELECT problem_id, reason FROM outcomes").fetchall())
    ledger.release()
    assert {name: reason for name, reason in ended.items() if reason} == with_reason
    assert len(ended) == 24
    trained = {group.problem_id: group for group in read_groups(tmp_path / "run", "train")}
    assert trained.keys() == ended.keys() - with_reason.keys()
    assert all("'type'" not in r.text + r.thought + r.solution for r in trained["p2"].responses)
    assert any("so many words" in response.thought for response in trained["p14"].responses)
    resent = next(iter(summary["pool"].values()))["resent"]
    assert {"520", "529", "unreadable body", "429", "502"} <= resent.keys()


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing to do."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.skipped += max(0.0, self._scheduled[0]._when - self.time())
        super()._run_once()


def test_64_in_flight_against_half_a_request_a_second_wait_as_told_and_none_is_lost():
    free_at, told_until, early = 0.0, 0.0, []

    async def serve(request):
        nonlocal free_at, told_until
        sent = asyncio.get_running_loop().time()
        if sent < told_until:
            early.append(told_until - sent)
        await asyncio.sleep(0.3)
        now = asyncio.get_running_loop().time()
        if now < free_at:
            told_until = free_at
            return httpx.Response(429, json={"error": "rate limit"}, headers={"Retry-After": f"{free_at - now:.6f}"})
        free_at = now + 2.0
        return httpx.Response(200, json=chat("fine"))

    async def go():
        caller = HttpCaller("http://pool", 64, 600.0, 2, transport=httpx.MockTransport(serve))
        caller.servers[0].limiter.limit = 64.0
        pool = OpenAIPool(caller, PoolOptions(kind="openai", model="m"))
        requests = [Request("critic", {}, i, "t", (("user", "p"),), "m") for i in range(64)]
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*map(pool.generate, requests))
        return answers, asyncio.get_running_loop().time() - began, caller.statistics()["http://pool"]

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        answers, seconds, numbers = runner.run(go())
    assert [answer.text for answer in answers] == ["fine"] * 64
    assert early == [], "a request was sent earlier than the server had asked for"
    assert 126 <= seconds < 1.5 * 128, "no slower than the server allows"
    assert numbers["answered"] == 64
    assert numbers["resent"].keys() == {"429"}


def test_a_run_of_64_in_flight_before_a_server_with_a_rate_limit_stores_no_refusal(options, tmp_path):
    every, free_at, lock = 0.01, 0.0, threading.Lock()

    def reply(body, _, __):
        nonlocal free_at
        with lock:
            now = time.monotonic()
            if now < free_at:
                return 429, {"error": "rate limit"}, {"Retry-After": f"{free_at - now:.4f}"}
            free_at = now + every
        return 200, chat(speak(body))

    with serving(reply) as url:
        summary = run(options(url, 64, problems_in_flight=64), tmp_path / "run")
    assert summary["problems"] == {"total": 64, "fitting": 64, "dropped": 0}
    assert finish_reasons(tmp_path / "run") == {"stop"}
    (numbers,) = summary["pool"].values()
    assert numbers["sent"] == numbers["answered"] + numbers["resent"]["429"]


def finish_reasons(workdir):
    ledger = Ledger(workdir / "ledger.sqlite", read_only=True)
    try:
        return {reason for (reason,) in ledger.db.execute("SELECT DISTINCT finish_reason FROM calls")}
    finally:
        ledger.release()
