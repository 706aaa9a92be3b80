"""Whole runs before servers that reply as real ones do: what is understood, what is an outcome, what is waited for."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records import read_groups
from crv.config import default_config
from crv.driver import run
from crv.ledger import Ledger
from crv.options import AgentOptions, Options, PoolOptions
from crv.pool.base import Request, Sampling
from crv.pool.http import HttpCaller, Pace
from crv.pool.openai import OpenAIPool
from crv.pool.replies import chat_answer
from crv.pool.routing import open_pool

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
        words = command(options, url, tmp_path, 24, f"--workdir={tmp_path / 'run'}")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
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


@pytest.mark.parametrize(("status", "tells"), [(429, True), (503, True), (429, False), (529, False)])
def test_64_in_flight_against_half_a_request_a_second_wait_as_told_and_none_is_lost(status, tells):
    free_at, told_until, early = 0.0, 0.0, []

    async def serve(request):
        nonlocal free_at, told_until
        sent = asyncio.get_running_loop().time()
        if sent < told_until:
            early.append(told_until - sent)
        await asyncio.sleep(0.3)
        now = asyncio.get_running_loop().time()
        if now < free_at:
            told_until = free_at if tells else 0.0
            headers = {"Retry-After": f"{free_at - now:.6f}"} if tells else {}
            return httpx.Response(status, json={"error": "overloaded"}, headers=headers)
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
    assert 126 <= seconds < (1.5 if tells else 4) * 128, "no slower than the server allows"
    assert numbers["answered"] == 64
    assert numbers["resent"].keys() == {str(status)}


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


def ask(url, requests=None, **place):
    """Answers of a pool at `url`."""

    async def go():
        options = Options(pool=PoolOptions(kind="openai", url=url, **{"model": "m", "timeout": 20.0, **place}))
        pool = open_pool(options)
        try:
            await pool.start()
            return [await pool.generate(request) for request in requests or [REQUEST]]
        finally:
            await pool.close()

    return asyncio.run(go())


REQUEST = Request("critic", {}, 0, "t", (("system", "be brief"), ("user", "p")), "m", Sampling(0.5, 0.9, 4096), seed=7)


@pytest.mark.parametrize(
    ("base", "given"),
    [
        ("/v1", ""),
        ("/v1", "/v1"),
        ("/v1", "/v1/"),
        ("/v1", "/v1/chat/completions"),
        ("/api/v1", "/api/v1"),
        ("/api/v1", "/api"),
        ("/api/paas/v4", "/api/paas/v4"),
        ("/v1beta/openai", "/v1beta/openai/"),
        ("/openai/deployments/x", "/openai/deployments/x?api-version=2024-10-21"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("models", [({"id": "m"},), None])
def test_the_api_is_found_below_any_base_url(base, given, models):
    seen = []
    with serving(lambda _, __, path: seen.append(path) or (200, chat()), models, base) as url:
        (answer,) = ask(url + given)
    assert answer.text == "hi"
    query = given.partition("?")[2]
    assert seen == [f"{base}/chat/completions" + (f"?{query}" if query else "")]


@pytest.mark.parametrize(
    ("named", "listed"), [("m", "m:latest"), ("m:latest", "m:latest"), ("m", "models/m"), ("m:free", "m")]
)
def test_a_models_name_is_taken_as_it_comes(named, listed):
    seen = []
    with serving(lambda body, *_: seen.append(body["model"]) or (200, chat()), [{"id": listed}]) as url:
        ask(url, model=named)
    assert seen == [named]


def test_fields_are_added_and_left_out_by_config():
    seen = []
    extra = {
        "reasoning_effort": "low",
        "max_completion_tokens": 9000,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with serving(lambda body, *_: seen.append(body) or (200, chat())) as url:
        ask(url, extra_body=extra, omit=("seed", "temperature"))
    (body,) = seen
    assert body.keys() == {"model", "messages", "top_p", *extra}
    assert body["max_completion_tokens"] == 4096, "the call's own budget under the name that this server wants"


@pytest.mark.parametrize(
    ("described", "pages"),
    [
        ({"max_model_len": 3000}, {}),  # vLLM, SGLang
        ({"meta": {"n_ctx": 3000, "n_ctx_train": 32768}}, {}),  # llama.cpp
        ({"context_length": 3000}, {}),  # Together, OpenRouter
        ({"top_provider": {"context_length": 3000}}, {}),
        ({}, {"/props": {"default_generation_settings": {"n_ctx": 3000}}}),  # llama.cpp before it listed n_ctx
        ({}, {"/info": {"max_total_tokens": 3000}}),  # TGI
    ],
)
def test_the_room_is_computed_from_what_the_server_tells(described, pages):
    seen = []

    def reply(body, *_):
        seen.append(body["max_tokens"])
        return 200, chat()

    with serving(reply, [{"id": "m", **described}], pages=pages) as url:
        ask(url, [replace(REQUEST, messages=(("user", "x" * 2000),))])
        ask(url, [replace(REQUEST, messages=(("user", "x" * 2000),))], context=2500)
    assert seen == [3000 - 1064, 2500 - 1064], "two bytes a token, and what a template adds"


def test_a_budget_beyond_a_context_that_nobody_told_shrinks_until_it_fits():
    seen = []

    def reply(body, *_):
        seen.append(body["max_tokens"])
        if body["max_tokens"] > 900:
            words = f"maximum context length is 1000 tokens. However, you requested {body['max_tokens'] + 99} tokens"
            return 400, {"error": {"message": f"{words} (99 in the messages, {body['max_tokens']} in the completion)."}}
        return 200, chat()

    with serving(reply) as url:
        assert ask(url)[0].finish_reason == "stop"
    assert seen == [4096, 900]


@pytest.mark.parametrize("status", [400, 500])
def test_a_template_without_a_system_role_gets_its_text_in_the_users_turn(status):
    seen = []

    def reply(body, *_):
        seen.append([message["role"] for message in body["messages"]])
        if seen[-1][0] == "system":
            return status, {"error": {"message": "Jinja Exception: System role not supported"}}
        return 200, chat(body["messages"][0]["content"])

    with serving(reply) as url:
        answers = ask(url, [REQUEST, REQUEST])
    assert seen == [["system", "user"], ["user"], ["user"]]
    assert [answer.text for answer in answers] == ["be brief\n\np"] * 2


def test_the_key_goes_to_its_server_and_is_never_seen(options, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    seen = []

    def reply(body, headers, _):
        seen.append(headers["Authorization"])
        return (200, chat(speak(body))) if len(seen) < 5 else (401, {"error": "wrong key: sk-very-secret"})

    with serving(reply) as url:
        wanted = options(url, 8, problems_in_flight=1)
        wanted = replace(wanted, pool=replace(wanted.pool, api_key="SOME_KEY"))
        with pytest.raises(UserError, match=r"401: wrong key: \(key\)"):
            run(wanted, tmp_path / "run")
    assert set(seen) == {"Bearer sk-very-secret"}
    written = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert b"very-secret" not in written


def test_an_agents_own_server_does_not_get_the_pools_key():
    pool = PoolOptions(kind="openai", url="http://a", model="m", api_key="SOME_KEY")
    options = Options(pool=pool, agents={"critic": AgentOptions(url="http://b"), "judge": AgentOptions(model="n")})
    assert options.pool_of("critic").api_key == ""
    assert options.pool_of("judge").api_key == "SOME_KEY"


def test_hosted_servers_are_reached_through_the_environments_proxy(monkeypatch):
    seen = []
    with serving(lambda _, headers, path: seen.append((headers["Host"], path)) or (200, chat())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
        assert ask("http://models.test/v1")[0].text == "hi"
    assert seen == [("models.test", "http://models.test/v1/chat/completions")]


@pytest.mark.parametrize(("limits", "seconds"), [((30, 0), 18), ((0, 600), 18)])
def test_requests_and_tokens_a_minute_are_kept_to(limits, seconds):
    sent = []

    async def serve(_):
        sent.append(asyncio.get_running_loop().time())
        return httpx.Response(200, json={**chat(), "usage": {"prompt_tokens": 15, "completion_tokens": 5}})

    async def go():
        caller = HttpCaller("http://pool", 8, 60.0, 2, transport=httpx.MockTransport(serve), pace=Pace(*limits))
        read = lambda body: chat_answer(body, "m")  # noqa: E731
        await asyncio.gather(*(caller.post("/x", {}, read, tokens=20) for _ in range(10)))

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(go())
    assert sent[-1] - sent[0] == pytest.approx(seconds, rel=0.3)


def test_a_call_that_keeps_failing_sets_its_problem_aside_for_the_next_start(options, tmp_path):
    broken = True

    def reply(body, *_):
        poison = numbers_of(body["messages"][-1]["content"])["a"] == 3
        return (500, {"error": "a worker died"}) if poison and broken else (200, chat(speak(body)))

    with serving(reply) as url:
        wanted = options(url, 30, problems_in_flight=4)
        wanted = replace(wanted, pool=replace(wanted.pool, retries=1))
        summary = run(wanted, tmp_path / "run")
        assert summary["unfinished"] == 1
        assert "went_badly" not in summary
        assert summary["problems"] == {"total": 29, "fitting": 29, "dropped": 0}
        assert finish_reasons(tmp_path / "run") == {"stop"}, "nothing is stored of it"
        broken = False
        assert run(wanted, tmp_path / "run")["problems"] == {"total": 30, "fitting": 30, "dropped": 0}


def test_the_student_that_is_to_be_trained_writes_the_wrong_texts(options, tmp_path):
    asked = []

    def reply(body, *_):
        if agent_of(body) != "student":
            return 200, chat(speak(body))
        asked.append(body)
        text = body["messages"][-1]["content"]
        return 200, chat((WRONG if len(asked) % 2 else RIGHT).format(**numbers_of(text)))

    with serving(reply) as url:
        wanted = options(url, 4, problems_in_flight=1)
        assert not wanted.asks_student(), "off by default"
        wanted = replace(wanted, agents={"student": AgentOptions(model="m", temperature=1.0)})
        summary = run(wanted, tmp_path / "run")
    assert all([message["role"] for message in body["messages"]] == ["user"] for body in asked)
    assert asked[0]["messages"][0]["content"] == "What is 1 plus 4?", "as in training: the problem and nothing else"
    assert asked[0]["temperature"] == 1.0
    assert summary["wrong_by_origin"] == {"student": 4}
    assert "corrupter" not in summary["calls"]
    for group in read_groups(tmp_path / "run", "train"):
        assert [r.origin for r in group.responses if r.kind == "incorrect"] == ["student"]


def command(options, url, tmp_path, count, *more):
    options(url, count)  # writes the problems
    flags = [f"--config.input={tmp_path / 'problems.jsonl'}", "--config.pool.kind=openai", f"--config.pool.url={url}"]
    flags += ["--config.pool.model=m", "--config.heldout=0.0", *more]
    return [sys.executable, "-m", "cogpo_jax", "crv", "--config=crv_recorded", *flags]


def test_a_run_that_went_badly_says_why_and_what_to_change_and_ends_with_code_3(options, tmp_path):
    with serving(lambda body, *_: (200, chat("no JSON here" if agent_of(body) == "critic" else speak(body)))) as url:
        words = command(options, url, tmp_path, 3, f"--workdir={tmp_path / 'run'}")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["drops"] == {"critic_not_JSON": 3}
    (line,) = [line for line in done.stderr.splitlines() if "went badly" in line]
    assert "3 of 3 problems were dropped as critic_not_JSON; the first, p" in line
    assert "this model does not keep to the form" in line


def test_ctrl_c_keeps_what_is_in_flight_writes_what_is_done_and_says_how_to_go_on(options, tmp_path):
    release, waiting = threading.Event(), threading.Event()

    def reply(body, *_):
        if numbers_of(body["messages"][-1]["content"])["a"] > 5:
            waiting.set()
            release.wait(30)
        return 200, chat(speak(body))

    with serving(reply) as url:
        words = command(options, url, tmp_path, 12, f"--workdir={tmp_path / 'run'}", "--config.problems_in_flight=2")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        while not any("stopping" in line for line in process.stderr):
            assert process.poll() is None
        release.set()
        out, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        summary = json.loads(out)
        assert summary["left"] == 12 - summary["problems"]["total"] > 0
        assert len(list(read_groups(tmp_path / "run", "train"))) == summary["problems"]["total"]
        assert "the same command goes on" in said
        again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    resumed = json.loads(again.stdout)
    assert resumed["problems"] == {"total": 12, "fitting": 12, "dropped": 0}
    total = sum(row["calls"] for row in resumed["calls"].values())
    assert resumed["asked_now"] == total - summary["asked_now"], "what was in flight was kept"


def test_a_preview_shows_problems_side_by_side_and_keeps_nothing(options, tmp_path):
    with serving(lambda body, *_: (200, chat(speak(body)))) as url:
        words = command(options, url, tmp_path, 9, "--preview=2")
        environment = {**os.environ, "COLUMNS": "100"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Gold answer:") == 2
    assert "suitable: solver-0" in done.stdout
    assert "incorrect: wrong-0" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["problems.jsonl"]
