"""What CRV's engine costs: output tokens a second of a CRV run against a bare load generator on the same server.

    python benchmarks/crv_overhead.py --url=http://127.0.0.1:30000 --model=student --tokenizer=MODEL_FOLDER

Both send the same bodies (token ids, sampling, grammar) with the same number in flight; the runs take turns, the first
and last tenth of the answers of each are cut off, and the medians are compared. Prints one JSON object.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from typing import Any

import httpx
from absl import flags
from scripted_sglang import ScriptedSglangPool, forget

from cogpo_jax import cli
from crv.driver import run
from crv.options import Options
from crv.pool.base import Answer, Request

_URL = flags.DEFINE_string("url", "http://127.0.0.1:30000", "An SGLang server, or the router before several.")
_MODEL = flags.DEFINE_string("model", "student", "The served model's name.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "The served model's folder.", required=True)
_PROBLEMS = flags.DEFINE_integer("problems", 40, "How many of the shipped problems.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 16, "Calls in flight, on both sides.")
_RUNS = flags.DEFINE_integer("runs", 5, "Runs of each.")
_CONFIG = cli.define_config("crv_recorded")

Finished = list[tuple[float, int]]  # (when, output tokens) of each answer


class _NotedPool(ScriptedSglangPool):
    """Keeps the bodies that are sent, and when each answer came."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bodies: list[dict[str, Any]] = []
        self.finished: Finished = []

    def payload(self, request: Request, ids: Any, room: int) -> dict[str, Any]:
        body = super().payload(request, ids, room)
        self.bodies.append(body)
        return body

    async def generate(self, request: Request) -> Answer:
        answer = await super().generate(request)
        self.finished.append((time.monotonic(), answer.output_tokens))
        return answer


def tokens_per_second(finished: Finished) -> float:
    """Output tokens a second between the first and the last tenth of the answers."""
    finished = sorted(finished)
    cut = max(1, len(finished) // 10)
    middle = finished[cut:-cut]
    return sum(tokens for _, tokens in middle[1:]) / (middle[-1][0] - middle[0][0])


async def bare(url: str, bodies: list[dict[str, Any]], in_flight: int) -> Finished:
    """The same bodies, sent as fast as the server takes them."""
    finished: Finished = []
    queue = iter(bodies)
    limits = httpx.Limits(max_connections=in_flight)
    async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:

        async def send() -> None:
            for body in queue:
                answer = (await client.post(f"{url}/generate", json=body)).json()
                finished.append((time.monotonic(), answer["meta_info"]["completion_tokens"]))

        await asyncio.gather(*(send() for _ in range(in_flight)))
    return finished


def main() -> None:
    """Runs both in turn and prints the figures."""
    config = cli.load_config(_CONFIG)
    config.limit, config.problems_in_flight = _PROBLEMS.value, 2 * _IN_FLIGHT.value
    options, url = Options.from_config(config), _URL.value
    ours, theirs = [], []
    for _ in range(_RUNS.value):
        forget(url)
        pool = _NotedPool(url, _MODEL.value, _TOKENIZER.value, options.pool.recordings, concurrency=_IN_FLIGHT.value)
        pool.caller.servers[0].limiter.limit = _IN_FLIGHT.value  # no ramp: the generator has none either
        with tempfile.TemporaryDirectory() as workdir:
            run(options, workdir, pool)
        ours.append(tokens_per_second(pool.finished))
        forget(url)
        theirs.append(tokens_per_second(asyncio.run(bare(url, pool.bodies, _IN_FLIGHT.value))))
        print(f"CRV {ours[-1]:.0f}, bare {theirs[-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    mine, bare_rate = statistics.median(ours), statistics.median(theirs)
    rates = {"crv_tokens_per_second": [round(x) for x in ours], "bare_tokens_per_second": [round(x) for x in theirs]}
    print(json.dumps({"calls": len(pool.bodies), **rates, "ratio_of_medians": round(mine / bare_rate, 3)}))


if __name__ == "__main__":
    cli.run(main)
