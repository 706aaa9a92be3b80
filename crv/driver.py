"""The run: problems in, as many at a time as the pool likes, outcomes into the ledger, records out. Resumable."""

import asyncio
import contextlib
import hashlib
import json
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.progress import say
from cogpo_jax.records.texts import replace_surrogates
from crv.agents import Agents
from crv.intake import pending, remaining, rows_of_input, take_in
from crv.ledger import Ledger
from crv.loop import run_problem
from crv.monitor import Meter, shown
from crv.options import Options, claim_workdir
from crv.output import export, gaps_of, outcome_row, write_also
from crv.pool.base import Answer, Pool, PoolError, Request, StoppedError
from crv.pool.http import FailedError
from crv.pool.routing import open_pool
from crv.problems import read_questions, understand
from crv.prompts import Prompt, load_prompts
from crv.review import print_problems
from crv.summary import count_calls, forecast, summarise, went_badly
from crv.verify import grade
from crv.verify.certificate import Compare, ladder
from crv.verify.workers import AlgebraWorkers

_CODE_VERSION = "2"  # raised when the loop itself changes: outcomes are then worked out anew from the recorded calls


def run(options: Options, workdir: str | Path, pool: Pool | None = None) -> dict[str, Any]:
    """Runs or resumes CRV in `workdir` and exports its records; returns the summary that the command prints.

    `pool` stands in for the one that the config names. Raises UserError for bad input, a workdir of another config, a
    pool that cannot answer, or a full disk.
    """
    workdir = Path(workdir)
    prompts = load_prompts(options.prompts)
    meaning = understand(options)
    for source in options.hygiene.against:
        next(read_questions(source))
    pool = pool or open_pool(options)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        claim_workdir(workdir, options)
        say(meaning.line())
        return asyncio.run(_run(options, workdir, pool, prompts))
    except (sqlite3.OperationalError, OSError) as error:
        raise UserError(
            f"workdir: {workdir}: {error}; free some space or give another folder, then run the same command"
        ) from error
    except PoolError as error:
        raise UserError(f"pool: {error}") from error


def show_preview(options: Options, count: int, pool: Pool | None = None) -> None:
    """Walks the first `count` problems through the whole loop and prints them side by side; keeps nothing."""
    with tempfile.TemporaryDirectory() as folder:
        summary = run(replace(options, limit=count, sample=0, heldout=0.0, also=()), folder, pool)
        print_problems(folder, count)
    calls = list(summary["calls"].values())
    tokens = {name: sum(row[f"{name}_tokens"] for row in calls) for name in ("prompt", "output")}
    cost = (tokens["prompt"] * options.pool.price_in + tokens["output"] * options.pool.price_out) / 1e6
    print(
        f"{sum(row['calls'] for row in calls)} calls, {tokens['prompt']:,} tokens in, {tokens['output']:,} out"
        + (f", {cost:.2f} in the currency of the prices" if cost else "")
    )
    if told := summary.get("went_badly"):
        say(told)


async def _run(options: Options, workdir: Path, pool: Pool, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    grader = options.grader
    async with (
        Ledger(workdir / "ledger.sqlite") as ledger,
        AlgebraWorkers(grader.workers, grader.seconds, grader.megabytes) as workers,
    ):
        _refresh(ledger, prompts)
        await asyncio.to_thread(take_in, ledger, options)
        meter = Meter(remaining(ledger), ledger.counts("state"), options.pool.gpus, pool.statistics)
        aside = await _walk_all(ledger, options, pool, prompts, workers, meter)
        info = {
            "config": options.identity(),
            "prompts": {agent: prompt.digest for agent, prompt in sorted(prompts.items())},
            "input_sha256": ledger.meta("input_sha256"),
            **(summary := summarise(ledger)),
        }
        await asyncio.to_thread(export, ledger, options, workdir, info)
        await asyncio.to_thread(write_also, workdir, options.also, vars(options.beta))
        asked = sum(meter.calls.values())
        ahead = {"forecast": forecast(ledger, rows_of_input(ledger), meter.seconds, asked, options.pool)}
        badly = went_badly(ledger, options.drop_share, aside)
        return {
            **summary,
            "calls": count_calls(ledger),
            "asked_now": asked,
            "pool": meter.servers(),
            "workdir": str(workdir),
            **(ahead if options.sample else {}),
            **({"stopped": True, "left": meter.left()} if meter.stopping else {}),
            **({"unfinished": len(aside)} if aside else {}),
            **({"went_badly": badly} if badly else {}),
        }


async def _walk_all(
    ledger: Ledger, options: Options, pool: Pool, prompts: Mapping[str, Prompt], workers: AlgebraWorkers, meter: Meter
) -> list[str]:
    """Walks the pending problems, `problems_in_flight` together; the first error stops all.

    SIGINT or SIGTERM, once: no further call is sent, those in flight come back and are kept. Returns, for each problem
    that was set aside because one of its calls kept failing while others succeeded, what its server said last.
    """
    agents = Agents(prompts, options)
    generate = _LedgerPool(ledger, pool, meter).generate
    compare = ladder(_recorded_compare(ledger, workers))
    problems, walking = pending(ledger, options), set[str]()
    aside: list[str] = []

    async def walk_on() -> None:
        for problem in problems:  # one shared iterator: each problem goes to one of the walkers
            if problem.problem_id in walking:
                continue  # a repeated row, counted at intake
            walking.add(problem.problem_id)
            try:
                outcome = await run_problem(problem, agents, generate, compare, options)
            except StoppedError:
                return
            except FailedError as error:
                aside.append(f"{problem.problem_id}: {error}")
                meter.set_aside += 1
                continue
            about = (problem.problem_id, outcome.state, outcome.reason, outcome.label, outcome.rounds)
            await ledger.put_outcome(*about, gaps_of(problem, outcome), outcome_row(problem, outcome))
            walking.discard(problem.problem_id)
            meter.problem(outcome.state)

    def stop() -> None:
        meter.stopping = True
        pool.stop()

    try:
        async with shown(meter, options.metrics_port):
            with _once(stop):
                await pool.start()
                async with asyncio.TaskGroup() as group:
                    for _ in range(options.problems_in_flight):
                        group.create_task(walk_on())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    except StoppedError:  # before the servers were found
        pass
    finally:
        await pool.close()
    for words in aside:
        say(f"not finished: {words}; the same command asks it again")
    return aside


@contextlib.contextmanager
def _once(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` on the first SIGINT or SIGTERM; a second one ends the process as usual."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        say("stopping: the calls in flight are finished and kept; once more to stop at once")
        stop()

    try:
        for number in numbers:
            loop.add_signal_handler(number, first)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread: whoever called has the signals
        pass
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, RuntimeError):
            for number in numbers:
                loop.remove_signal_handler(number)


class _LedgerPool:
    """A pool whose finished calls are never asked again; equal requests in flight share one call."""

    def __init__(self, ledger: Ledger, pool: Pool, meter: Meter):
        self.ledger, self.pool, self.meter = ledger, pool, meter
        self._flying: dict[bytes, asyncio.Task[Answer]] = {}

    async def generate(self, request: Request) -> Answer:
        key = request.key()
        if (known := self.ledger.call(key)) is not None:
            return known
        if key not in self._flying:
            if self.meter.stopping:
                raise StoppedError
            task = self._flying[key] = asyncio.ensure_future(self._ask(key, request))
            task.add_done_callback(lambda _: self._flying.pop(key, None))
        return await asyncio.shield(self._flying[key])

    async def _ask(self, key: bytes, request: Request) -> Answer:
        self.meter.in_flight += 1
        try:
            answer = await self.pool.generate(request)
        finally:
            self.meter.in_flight -= 1
        answer = replace(answer, text=replace_surrogates(answer.text)[0])
        await self.ledger.put_call(key, request.agent, request.problem_id, request.attempt, answer)
        self.meter.call(request.agent, answer)
        return answer


def _recorded_compare(ledger: Ledger, workers: AlgebraWorkers) -> Compare:
    async def compare(gold: str, answer: str) -> tuple[str, str]:
        key = hashlib.sha256(json.dumps([grade.VERSION, gold, answer]).encode()).digest()
        if (known := ledger.verdict(key)) is not None:
            return known
        verdict = await workers.compare(gold, answer)
        await ledger.put_verdict(key, *verdict)
        return verdict

    return compare


def _refresh(ledger: Ledger, prompts: Mapping[str, Prompt]) -> None:
    """Forgets outcomes that other prompts or another version of the loop led to; recorded calls stay."""
    source = json.dumps(
        [_CODE_VERSION, grade.VERSION, {agent: prompt.digest for agent, prompt in sorted(prompts.items())}]
    )
    if ledger.meta("outcomes_from") != source:
        ledger.forget_outcomes()
        ledger.set_meta("outcomes_from", source)
