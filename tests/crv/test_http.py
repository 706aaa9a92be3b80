"""Calls over HTTP: what is sent again, what is not, and what an answer must be."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from cogpo_jax.errors import UserError
from crv.options import AgentOptions, Options, PoolOptions
from crv.pool import http
from crv.pool.base import PROMPT_TOO_LONG, PoolError, Request
from crv.pool.http import FailedError, HttpCaller, Limiter
from crv.pool.openai import OpenAIPool
from crv.pool.replies import SetupError
from crv.pool.routing import RoutedPool

REQUEST = Request("critic", {"problem": "p"}, 0, "t", (("user", "p"),), "m", schema='{"type": "object"}', seed=7)


PLACE = PoolOptions(kind="openai", url="http://pool", model="m")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.0)


def caller(answers, retries=4, timeout=5.0, seen=None):
    """A caller whose server gives `answers` in turn, the last one for ever."""
    queue = list(answers)

    async def serve(request):
        if seen is not None:
            seen.append(json.loads(request.content) if request.content else request.url.path)
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(*answer) if isinstance(answer, tuple) else answer

    return HttpCaller("http://pool", 8, timeout, retries, transport=httpx.MockTransport(serve))


def ok(document):
    return httpx.Response(200, json=document)


def post(c):
    return asyncio.run(c.post("/x", {}, lambda body: body["value"]))


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ((429,), "429"),
        ((503,), "503"),
        ((500,), "500"),
        (httpx.ConnectError("no"), "ConnectError"),
        (httpx.RemoteProtocolError("cut off"), "RemoteProtocolError"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.Response(200, content=b'{"value": '), "unreadable body"),
        (ok({"other": 1}), "unreadable body"),
    ],
)
def test_what_was_lost_on_the_way_is_sent_again_and_counted(trouble, reason):
    c = caller([trouble, trouble, ok({"value": 5})])
    assert post(c) == 5
    assert c.statistics()["http://pool"]["resent"] == {reason: 2}
    assert (c.servers[0].sent, c.servers[0].answered) == (3, 1)


def test_a_wrong_set_up_is_not_sent_again():
    c = caller([httpx.Response(400, json={"error": "schema: not supported"})])
    with pytest.raises(SetupError, match=r"400: .*schema: not supported"):
        asyncio.run(c.post("/x", {}, dict))
    assert c.servers[0].sent == 1


def test_an_outage_is_waited_for_and_a_longer_one_ends_the_run():
    c = caller([*[(503,)] * 30, ok({"value": 5})], retries=2)
    assert post(c) == 5
    assert c.statistics()["http://pool"]["resent"] == {"503": 30}, (
        "more tries than `retries`, since no other call succeeds either"
    )
    with pytest.raises(PoolError, match=r"does not answer: \d+ tries, the last: 503"):
        post(caller([(503,)], retries=2, timeout=0.3))


@pytest.mark.parametrize("others", [0, 3])
def test_what_is_refused_for_no_known_reason_is_an_outcome_if_others_are_answered_however_late(others):
    async def serve(request):
        if b"poison" in request.content:
            return httpx.Response(400, json={"error": "no"})
        await asyncio.sleep(0.05)
        return chat()

    async def run():
        pool = OpenAIPool(HttpCaller("http://pool", 8, 5.0, 2, transport=httpx.MockTransport(serve)), PLACE)
        bad = pool.generate(Request("critic", {}, 0, "t", (("user", "poison"),), "m"))
        answers = await asyncio.gather(bad, *(pool.generate(REQUEST) for _ in range(others)))
        return answers[0].finish_reason

    if others:
        assert asyncio.run(run()) == "refused"
    else:
        with pytest.raises(SetupError, match="400: no"):
            asyncio.run(run())


def test_a_call_that_alone_keeps_failing_is_set_aside_and_is_no_outcome():
    async def serve(request):
        poison = b"poison" in request.content
        return httpx.Response(500) if poison else chat()

    async def run():
        pool = OpenAIPool(HttpCaller("http://pool", 8, 5.0, 2, transport=httpx.MockTransport(serve)), PLACE)
        bad = asyncio.create_task(pool.generate(Request("critic", {}, 0, "t", (("user", "poison"),), "m")))
        for _ in range(50):
            await pool.generate(REQUEST)
            await asyncio.sleep(0.001)
        with pytest.raises(FailedError, match=r"3 tries, the last: 500"):
            await bad
        return pool.statistics()["http://pool"]

    assert asyncio.run(run())["answered"] == 50


def chat(content="hi", reason="stop", **message):
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    return ok({"choices": [{"message": {"content": content, **message}, "finish_reason": reason}], "usage": usage})


def ask(answers, seen=None):
    return asyncio.run(OpenAIPool(caller(answers, seen=seen), PLACE).generate(REQUEST))


def test_an_openai_call_carries_seed_and_schema_and_gives_counts():
    seen = []
    answer = ask([chat()], seen)
    assert (answer.text, answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == ("hi", 10, 2, 4)
    (body,) = seen
    assert (body["model"], body["seed"]) == ("m", 7)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_thought_in_a_field_of_its_own_is_kept():
    assert ask([chat(reasoning_content="hm")]).text == "<think>\nhm\n</think>\n\nhi"


def test_an_aborted_answer_is_no_answer():
    assert ask([chat("par", "abort"), chat("whole")]).text == "whole"


def test_a_prompt_beyond_the_context_is_told_apart():
    refusal = httpx.Response(400, json={"error": {"message": "This model's maximum context length is 10 tokens"}})
    assert ask([refusal]).finish_reason == PROMPT_TOO_LONG
    with pytest.raises(SetupError, match="unknown field seed"):
        ask([httpx.Response(400, json={"error": "unknown field seed"})])


def test_a_server_of_another_model_is_refused():
    pool = OpenAIPool(caller([ok({"data": [{"id": "other"}]})]), PLACE)
    with pytest.raises(UserError, match=r"pool.model: 'm': http://pool serves 'other'"):
        asyncio.run(pool.start())
    with pytest.raises(PoolError, match="no list of models"):
        asyncio.run(OpenAIPool(caller([ok({"hello": 1})]), PLACE).start())


def test_a_server_that_is_still_loading_is_waited_for_and_it_shows():
    loading = httpx.Response(503, json={"error": {"message": "Loading model"}})
    pool = OpenAIPool(caller([*[loading] * 20, ok({"data": [{"id": "m"}]})]), PLACE)
    asyncio.run(pool.start())
    (numbers,) = pool.statistics().values()
    assert (numbers["resent"], numbers["last_words"]) == ({"503": 20}, "503: Loading model")


@pytest.mark.parametrize("listed", [["m"], {"data": ["m"]}, {"models": [{"name": "m"}]}, {"data": []}])
def test_a_list_of_models_in_any_form_is_read(listed):
    asyncio.run(OpenAIPool(caller([ok(listed)]), PLACE).start())


@pytest.mark.parametrize("page", [httpx.Response(200, html="<h1>hello</h1>"), ok({"error": "Unexpected endpoint"})])
def test_a_website_that_answers_any_path_is_no_api(page):
    def serve(request):
        return ok({"data": [{"id": "m"}]}) if request.url.path == "/api/models" else page

    pool = OpenAIPool(HttpCaller("http://pool/api", 8, 5.0, 2, transport=httpx.MockTransport(serve)), PLACE)
    asyncio.run(pool.start())
    assert pool.caller.address("http://pool/api", "/x") == "http://pool/api/x", "not /api/v1"


def test_a_website_alone_is_a_wrong_set_up():
    page = httpx.Response(200, html="<h1>hello</h1>")
    with pytest.raises(SetupError, match="neither /models nor"):
        asyncio.run(OpenAIPool(caller([page]), PLACE).start())


def test_concurrency_grows_by_one_a_window_and_shrinks_once_a_congestion():
    async def run():
        limiter = Limiter(most=20, start=4)
        for _ in range(4):
            async with limiter, limiter, limiter, limiter:
                limiter.succeeded()
        assert 4.9 < limiter.limit < 5.1
        limiter.overloaded()
        limiter.overloaded()  # of the same congestion
        assert limiter.decreases == 1
        assert 3.3 < limiter.limit < 3.6
        for _ in range(400):
            limiter.in_flight = int(limiter.limit)
            limiter.succeeded()
        return limiter.limit

    assert asyncio.run(run()) == 20


def test_an_idle_pool_does_not_grow():
    limiter = Limiter(most=20, start=4)
    for _ in range(100):
        limiter.succeeded()
    assert limiter.limit == 4


def test_no_more_calls_than_the_limit_are_in_flight():
    running, most = 0, 0

    async def serve(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return ok({"value": 1})

    async def run():
        c = HttpCaller("http://pool", 3, 5.0, 0, transport=httpx.MockTransport(serve))
        await asyncio.gather(*(c.post("/x", {}, dict) for _ in range(40)))

    asyncio.run(run())
    assert most == 3


def several(serve, count=3, concurrency=8, **more):
    urls = [f"http://worker{i}" for i in range(count)]
    return HttpCaller(urls, concurrency, 5.0, 50, transport=httpx.MockTransport(serve), **more)


def test_calls_of_one_problem_share_a_worker_and_the_problems_are_spread():
    seen = {}

    async def serve(request):
        seen.setdefault(json.loads(request.content), set()).add(request.url.host)
        return ok({"value": 1})

    async def run():
        c = several(serve)
        await asyncio.gather(*(c.post("/x", i % 60, dict, affinity=f"p{i % 60}") for i in range(300)))
        return c.statistics()

    statistics = asyncio.run(run())
    assert all(len(hosts) == 1 for hosts in seen.values())
    assert all(numbers["sent"] >= 50 for numbers in statistics.values()), "a third of 300 each, about"


def test_each_worker_has_its_own_limit(monkeypatch):
    running = {}

    async def serve(request):
        host = request.url.host
        running[host] = running.get(host, 0) + 1
        await asyncio.sleep(0.001)
        overloaded = host == "worker0" and running[host] > 2
        running[host] -= 1
        return httpx.Response(429) if overloaded else ok({"value": 1})

    async def run():
        monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.002)
        c = several(serve, concurrency=16)
        await asyncio.gather(*(c.post("/x", {}, dict, affinity=f"p{i}") for i in range(300)))
        return c.statistics()

    statistics = asyncio.run(run())
    assert statistics["http://worker0"]["concurrency"] < 16
    assert statistics["http://worker0"]["resent"]["429"] > 0
    assert statistics["http://worker1"]["concurrency"] == statistics["http://worker2"]["concurrency"] == 16


@pytest.mark.parametrize("trouble", [httpx.ConnectError("gone"), httpx.ReadTimeout("hangs")])
def test_the_calls_of_a_worker_that_is_down_go_to_the_others_until_it_is_back(trouble):
    down = True

    async def serve(request):
        if down and request.url.host == "worker0":
            raise trouble
        return ok({"value": 1})

    async def run():
        nonlocal down
        c = several(serve)
        await asyncio.gather(*(c.post("/x", {}, dict, affinity=f"p{i}") for i in range(90)))
        lost = c.servers[0].sent
        assert c.servers[0].answered == 0
        assert lost < 20, "what waited for it went elsewhere, unsent"
        assert sum(server.answered for server in c.servers) == 90
        down = False
        c.servers[0].out_until = 0.0  # its pause is over
        await asyncio.gather(*(c.post("/x", {}, dict, affinity=f"p{i}") for i in range(90)))
        assert c.servers[0].answered > 15

    asyncio.run(run())


def test_all_workers_down_is_waited_for_as_one_is():
    transport = httpx.MockTransport(lambda _: httpx.Response(503))
    c = HttpCaller(["http://a", "http://b"], 4, 0.2, 2, transport=transport)
    with pytest.raises(PoolError, match="does not answer"):
        post(c)
    assert all(server.sent for server in c.servers)


def test_every_worker_is_asked_who_it_is():
    def serve(request):
        return ok({"data": [{"id": "m" if request.url.host == "worker0" else "other"}]})

    with pytest.raises(UserError, match=r"http://worker1 serves 'other'"):
        asyncio.run(OpenAIPool(several(serve), PLACE).start())


def test_no_key_in_an_address_or_a_reply_is_ever_seen():
    c = HttpCaller("http://me:pass@pool?key=abc", 8, 5.0, 0, secret="sk-1")
    assert (
        c.clean("http://me:pass@pool/v1?key=abc&x=1: wrong key sk-1") == "http://pool/v1?key=(key)&x=1: wrong key (key)"
    )


def test_agents_on_one_server_share_what_it_asked_to_wait_and_its_limits():
    agents = {"critic": AgentOptions(model="n"), "judge": AgentOptions(url="http://other")}
    pool = RoutedPool(Options(pool=replace(PLACE, requests_per_minute=60), agents=agents))
    common, critic, judge = (pool._by_agent[name].caller for name in ("", "critic", "judge"))
    assert common is not critic
    assert common.servers[0] is critic.servers[0]
    assert common._pace is critic._pace
    assert common.servers[0] is not judge.servers[0]
    assert common._pace is not judge._pace
