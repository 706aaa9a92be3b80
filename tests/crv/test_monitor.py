"""What a run shows of itself: rows for a person, a page for Prometheus."""

import asyncio

import httpx

from crv import monitor
from crv.monitor import Meter, shown
from crv.pool.base import Answer


def busy():
    server = {"in_flight": 3, "concurrency": 16, "resent": {"503": 2, "timeout": 1}}
    meter = Meter(100, {"rewritten": 40}, 8, lambda: {"http://pool:1": server})
    for i in range(10):
        meter.call("critic" if i % 2 else "verifier", Answer("x", "stop" if i else "length", 100, 20, 75))
    for _ in range(20):
        meter.problem("fitting")
    meter.started -= 100  # as if it had run for so long
    return meter


def test_the_view_tells_states_cache_retries_and_what_is_to_go():
    rows = dict(busy().rows())
    assert rows["problems"] == "60 of 100: 20 fitting, 40 rewritten"
    assert "cached 75%" in rows["tokens/s"]
    assert rows["ends"] == "length 1"
    assert rows["http://pool:1"] == "3 of at most 16 in flight; sent again: 503 2, timeout 1"
    assert rows["time"].endswith(("0:03:20 to go", "0:03:19 to go")), "40 of 100 left, 20 in 100 s"
    assert rows["GPU-hours"] == "0.2, 0.4 to go"


def test_nothing_is_foretold_before_the_first_problem():
    assert Meter(10, {}, 0, dict).to_go() is None


def test_prometheus_reads_the_page():
    async def read():
        async with shown(busy(), 39277), httpx.AsyncClient(trust_env=False) as client:
            page = await client.get("http://127.0.0.1:39277/metrics")
            missing = await client.get("http://127.0.0.1:39277/else")
        return page, missing

    page, missing = asyncio.run(read())
    assert missing.status_code == 404
    lines = page.text.splitlines()
    assert 'crv_problems{state="fitting"} 20' in lines
    assert 'crv_calls_total{agent="critic"} 5' in lines
    assert 'crv_tokens_total{kind="cached"} 750' in lines
    assert 'crv_resent_total{server="http://pool:1",reason="503"} 2' in lines


def test_without_a_terminal_a_line_tells_from_the_start_what_flies_and_what_is_sent_again(monkeypatch, capsys):
    monkeypatch.setattr(monitor, "_FIRST_SECONDS", 0.01)
    server = {"in_flight": 3, "concurrency": 16, "resent": {}, "told_to_wait": 0.0, "last_words": ""}
    meter = Meter(100, {}, 0, lambda: {"http://pool:1": server})

    async def watch():
        async with shown(meter, 0):
            await asyncio.sleep(0.1)
            server.update(resent={"429": 2}, told_to_wait=7.0, last_words="slow down")
            await asyncio.sleep(0.1)

    asyncio.run(watch())
    first, second = capsys.readouterr().err.splitlines()
    assert "0 of 100" in first
    assert "3 of at most 16 in flight; sent again: none" in first
    assert "sent again: 429 2 (last: slow down); asked to wait 7 s more" in second, "at once, not a minute later"
