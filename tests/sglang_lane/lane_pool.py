"""CRV against two real SGLang servers behind a real sglang-router: `make test-sglang`.

Collected only when named: the servers need an environment of their own (server/README.md) and 4 GB of memory.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "crv")]
from crv_prefix_cache import measure  # noqa: E402
from scripted_sglang import ScriptedSglangPool  # noqa: E402
from slow_run import options as recorded_options  # noqa: E402

from cogpo_jax.configs import crv_recorded  # noqa: E402
from cogpo_jax.errors import UserError  # noqa: E402
from cogpo_jax.records import read_groups  # noqa: E402
from crv.agents import LABELS, Agents, read_answer  # noqa: E402
from crv.driver import run  # noqa: E402
from crv.options import PoolOptions, VerifierOptions  # noqa: E402
from crv.pool.base import PROMPT_TOO_LONG  # noqa: E402
from crv.pool.http import HttpCaller  # noqa: E402
from crv.pool.openai import OpenAIPool  # noqa: E402
from crv.pool.sglang import SglangPool  # noqa: E402
from crv.prompts import load_prompts  # noqa: E402
from crv.verify.extract import final_spans  # noqa: E402

PROBLEM = "What is 6 times 7?"
COT = "6 times 7 makes 42. The answer is 42"


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny random model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("model")
    command = [os.environ["LANE_PYTHON"], str(HERE / "server" / "make_model.py"), str(folder), "qwen3", "64"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def pool_folder(model, tmp_path_factory):
    """Two servers and a router, by our own command; the folder with pool.json."""
    folder = tmp_path_factory.mktemp("pool")
    command = [sys.executable, "launch/serve_pool.py", f"--config={HERE / 'pool_cpu.py'}", f"--config.output={folder}"]
    environment = {**os.environ, "LANE_MODEL": str(model)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    ready = process.stdout.readline()
    assert ready, "serve_pool ended while starting"
    assert json.loads(ready)["url"] == described(folder)["url"]
    yield folder
    urls = [worker["url"] for worker in described(folder)["workers"]]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not (folder / "pool.json").exists()
    for url in urls:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)


def described(folder):
    return json.loads((folder / "pool.json").read_text())


@pytest.fixture
def url(pool_folder):
    return described(pool_folder)["url"]


def scripted(url, model, **changes):
    return ScriptedSglangPool(url, "student", str(model), recorded_options().pool.recordings, **changes)


def real(url, model, context=0):
    place = PoolOptions(kind="sglang", model="student", tokenizer=str(model), context=context)
    return SglangPool(HttpCaller(url, 16, 120.0, 8), place)


def agents(max_tokens=1200):
    o = recorded_options()
    sampling, pool = replace(o.sampling, max_tokens=max_tokens), replace(o.pool, model="student")
    o = replace(o, sampling=sampling, pool=pool, verifier=VerifierOptions(1, 1, True))
    return Agents(load_prompts("default"), o)


def ask_all(pool, asks):
    async def go():
        await pool.start()
        answers = await asyncio.gather(*(pool.generate(ask.request) for ask in asks))
        await pool.close()
        return answers

    return asyncio.run(go())


def texts(workdir):
    groups = [group for split in ("train", "validation") for group in read_groups(workdir, split)]
    return [(g.problem_id, [(r.kind, r.thought, r.solution, r.text) for r in g.responses], g.pairs) for g in groups]


def test_the_whole_loop_with_all_agents_says_what_the_recording_says(url, model, tmp_path):
    options = recorded_options(limit=16)
    summary = run(options, tmp_path / "real", scripted(url, model))
    recorded = run(options, tmp_path / "recorded")
    assert {**summary, "calls": 0, "pool": 0, "workdir": 0} == {**recorded, "calls": 0, "pool": 0, "workdir": 0}
    assert texts(tmp_path / "real") == texts(tmp_path / "recorded")
    assert set(summary["calls"]) >= {
        "critic",
        "rethinker_expand",
        "rethinker_simplify",
        "verifier",
        "corrupter",
        "solver",
    }
    assert all(counts["prompt_tokens"] and counts["output_tokens"] for counts in summary["calls"].values())


def test_json_schema_and_regex_hold_on_a_model_that_only_rambles(url, model):
    build = agents()
    critiques = [build.critique(PROBLEM, f"{COT} {i}", "p") for i in range(6)]
    resolves = [build.resolve(PROBLEM, f"{COT} {i}", "p", 0) for i in range(6)]
    answers = ask_all(real(url, model), critiques + resolves)
    finished = [
        (ask, answer)
        for ask, answer in zip(critiques + resolves, answers, strict=True)
        if answer.finish_reason == "stop"
    ]
    assert len(finished) >= 8
    for ask, answer in finished:
        value = read_answer(ask, answer)
        if ask.request.agent == "critic":
            assert value.label in LABELS
        else:
            assert len(final_spans(value)) == 1


def test_a_cut_off_answer_is_told_apart(url, model):
    (answer,) = ask_all(real(url, model), [agents(max_tokens=3).solve(PROBLEM, "p", 0)])
    assert answer.finish_reason == "length"
    assert answer.output_tokens == 3


def test_log_probs_prove_that_the_tokenizer_is_the_servers(url, qwen25_tokenizer):
    with pytest.raises(UserError, match=r"pool.tokenizer: not the server's"):
        ask_all(real(url, qwen25_tokenizer), [])


def test_another_model_or_context_than_the_servers_is_refused(url, model):
    place = PoolOptions(kind="sglang", model="teacher", tokenizer=str(model))
    with pytest.raises(UserError, match=r"pool.model: 'teacher'.*serves 'student'"):
        ask_all(SglangPool(HttpCaller(url, 4, 30.0, 0), place), [])
    with pytest.raises(UserError, match=r"pool.context: 100000: .* has a context of 4096 tokens"):
        ask_all(real(url, model, context=100_000), [])


def test_a_prompt_that_is_too_long_is_never_sent(url, model):
    pool = real(url, model)
    long, short = agents().solve("six times seven " * 3000, "p", 0), agents(5).solve(PROBLEM, "p", 0)
    answers = ask_all(pool, [long] * 12 + [short])
    assert [answer.finish_reason for answer in answers] == [PROMPT_TOO_LONG] * 12 + ["length"]
    (statistics,) = pool.statistics().values()
    assert statistics["sent"] == 2, "the tokenizer's probe and the short one: no 4xx opens the router's breaker"


def test_the_openai_door_of_the_same_servers(url, model):
    pool = OpenAIPool(HttpCaller(url, 4, 120.0, 4), PoolOptions(kind="openai", model="student"))
    (answer,) = ask_all(pool, [agents().critique(PROBLEM, COT, "p")])
    assert answer.prompt_tokens > 0
    if answer.finish_reason == "stop":
        assert read_answer(agents().critique(PROBLEM, COT, "p"), answer).label in LABELS


def test_the_prefix_cache_serves_what_is_shareable(url, model):
    config = recorded_config()
    ours = measure(url, "student", str(model), "default", 12, 4, config)
    authors = measure(url, "student", str(model), "authors", 12, 4, config)
    assert ours["cached_of_shareable"] >= 0.95
    assert ours["cached"] > 1.5 * authors["cached"]


def recorded_config():
    return crv_recorded.get_config()


def test_the_workers_themselves_without_the_router(pool_folder, model, tmp_path):
    urls = [worker["url"] for worker in described(pool_folder)["workers"]]
    options = recorded_options(limit=12)
    summary = run(options, tmp_path / "real", scripted(urls, model))
    run(options, tmp_path / "recorded")
    assert texts(tmp_path / "real") == texts(tmp_path / "recorded")
    assert set(summary["pool"]) == set(urls)
    assert all(numbers["answered"] > 0 for numbers in summary["pool"].values())
    cached, prompt = (sum(c[f"{name}_tokens"] for c in summary["calls"].values()) for name in ("cached", "prompt"))
    assert cached > 0.3 * prompt, "a problem's calls go where its prefix is"


def test_a_worker_killed_under_load_costs_no_answer(pool_folder, url, model, tmp_path):
    options = recorded_options(limit=40)
    victim = described(pool_folder)["workers"][0]

    class Killing(ScriptedSglangPool):
        async def generate(self, request):
            answer = await super().generate(request)
            if len(self.calls) == 30:
                os.killpg(victim["pid"], signal.SIGKILL)
            return answer

    pool = Killing(url, "student", str(model), options.pool.recordings, concurrency=32)
    summary = run(options, tmp_path / "real", pool)
    recorded = run(options, tmp_path / "recorded")
    assert texts(tmp_path / "real") == texts(tmp_path / "recorded"), "no call was lost"
    assert summary["asked_now"] == recorded["asked_now"], "no recorded answer was asked again"
    (statistics,) = summary["pool"].values()
    assert statistics["sent"] == statistics["answered"] + sum(statistics["resent"].values())
    assert sum(statistics["resent"].values()) > 0, "what was in flight on the dead worker was sent again, and counted"
    deadline = time.monotonic() + 240
    while not (worker := described(pool_folder)["workers"][0])["healthy"] or not worker["restarts"]:
        assert time.monotonic() < deadline, "the dead worker was not restarted"
        time.sleep(1)
