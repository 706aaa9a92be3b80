"""Algebra in processes that can be killed: a time-out or a crash is "unknown", never "wrong".

`python -m crv.verify.workers MEGABYTES SECONDS` is such a process. It reads {gold, answer} lines, writes [verdict,
rule] lines, and ends with its standard input. The seconds are CPU time of one comparison, so that a busy machine does
not change verdicts: when they are up, the kernel ends the process.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType

from cogpo_jax.errors import UserError
from crv.verify.certificate import Certificate, certify, ladder
from crv.verify.grade import UNKNOWN

_WALL_FACTOR = 60.0  # a worker that uses no CPU time for so long is stuck
_START_SECONDS = 300.0  # imports on a loaded machine


class AlgebraWorkers:
    """A few processes of `serve`, started when first needed, replaced when they hang or die.

    `seconds` (of CPU time) and `megabytes` bound one comparison; `lost` counts the workers that a comparison cost.
    """

    def __init__(self, count: int = 2, seconds: float = 5.0, megabytes: int = 2048):
        self.seconds, self.megabytes = seconds, megabytes
        self.lost = 0
        self._idle: asyncio.LifoQueue[asyncio.subprocess.Process | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._idle.put_nowait(None)

    async def __aenter__(self) -> "AlgebraWorkers":
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while not self._idle.empty():
            process = self._idle.get_nowait()
            if process is not None:
                await _kill(process)

    async def compare(self, gold: str, answer: str) -> tuple[str, str]:
        """`algebra.compare` in a worker; ("unknown", why) where the worker ran out of time or memory, or died."""
        process = await self._idle.get()
        alive: asyncio.subprocess.Process | None = None
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            verdict = await self._ask(process, gold, answer)
            if verdict is not None:
                alive = process
                return verdict
            self.lost += 1
            return UNKNOWN, "the comparison ran out of time or memory"
        finally:
            if alive is None and process is not None:
                await _kill(process)
            self._idle.put_nowait(alive)

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "crv.verify.workers",
            str(self.megabytes),
            str(self.seconds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)
        except TimeoutError:
            line = b""
        if line != b"ready\n":
            await _kill(process)
            raise UserError(
                "grader: the worker process does not start: is mpmath installed (pip install cogpo-jax[crv])?"
            )
        return process

    async def _ask(self, process: asyncio.subprocess.Process, gold: str, answer: str) -> tuple[str, str] | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"gold": gold, "answer": answer}).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), _WALL_FACTOR * self.seconds)
            verdict, rule = json.loads(line)
        except (TimeoutError, OSError, ValueError):
            return None
        return verdict, rule


def grade_responses(
    rows: Iterable[tuple[str, str, Sequence[str]]], workers: int = 2, seconds: float = 5.0, megabytes: int = 2048
) -> list[Certificate]:
    """Certificates of many (gold, response text, choices), in order; for callers without an event loop of their own.

    `choices` are the options of a multiple-choice question in the order A, B, C, ... (gold is then a letter, and a
    response may state the letter or the option's text); empty for a free answer. Hostile text is killed after `seconds`
    of CPU time, and is "unknown".
    """

    async def run() -> list[Certificate]:
        async with AlgebraWorkers(workers, seconds, megabytes) as algebra:
            compare = ladder(algebra.compare)
            return [await certify(gold, text, compare, choices) for gold, text, choices in rows]

    return asyncio.run(run())


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def serve() -> None:  # pragma: no cover (in a process of its own, which is killed)
    """Serves comparisons until end of input, under the limits of the command line."""
    limit, seconds = int(sys.argv[1]) << 20, float(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not become a verdict
    from crv.verify import algebra  # its imports are most of the start-up time, and are paid before the limits hold

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF's default action ends the process, in C code too
        verdict = algebra.compare(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(verdict) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
