"""What a running CRV is doing: counted, shown on the terminal or as lines in a log, and served to Prometheus."""

import asyncio
import contextlib
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from crv.pool.base import Answer

_WINDOW_SECONDS = 60.0  # of the token rates


class Meter:
    """Counts problems and tokens; `before`: problems finished earlier by state, `gpus`: behind the pool."""

    def __init__(self, total: int, before: Mapping[str, int], gpus: int, pool: Callable[[], Mapping[str, Any]]):
        self.total, self.gpus, self._pool = total, gpus, pool
        self.states = Counter(before)
        self.started = time.monotonic()
        self.calls: Counter[str] = Counter()  # finished calls by agent
        self.ends: Counter[str] = Counter()  # by finish reason
        self.prompt = self.cached = self.output = 0
        self.done_now = self.set_aside = self.in_flight = 0
        self.stopping = False
        self._recent: deque[tuple[float, int, int]] = deque([(self.started, 0, 0)])

    def call(self, agent: str, answer: Answer) -> None:
        """A call is finished and recorded."""
        self.calls[agent] += 1
        self.ends[answer.finish_reason] += 1
        self.prompt += answer.prompt_tokens
        self.cached += answer.cached_tokens
        self.output += answer.output_tokens

    def problem(self, state: str) -> None:
        """A problem has ended."""
        self.states[state] += 1
        self.done_now += 1

    @property
    def seconds(self) -> float:
        """Since this start."""
        return time.monotonic() - self.started

    def left(self) -> int:
        """Problems without an outcome."""
        return self.total - sum(self.states.values())

    def to_go(self) -> float | None:
        """Seconds to the end at the rate so far; None before the first problem is done."""
        return self.left() * self.seconds / self.done_now if self.done_now else None

    def rates(self) -> tuple[float, float]:
        """Prompt and output tokens a second over the last minute."""
        now = time.monotonic()
        if now - self._recent[-1][0] >= 1:
            self._recent.append((now, self.prompt, self.output))
        while len(self._recent) > 2 and now - self._recent[0][0] > _WINDOW_SECONDS:
            self._recent.popleft()
        then, prompt, output = self._recent[0]
        span = max(now - then, 1e-9)
        return (self.prompt - prompt) / span, (self.output - output) / span

    def servers(self) -> dict[str, Mapping[str, Any]]:
        """The pool's statistics by server; empty for a pool without servers."""
        return dict(self._pool())

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) lines for a person."""
        prompt, output = self.rates()
        to_go, finished = self.to_go(), sum(self.states.values())
        rows = [
            (
                "problems",
                f"{finished:,} of {self.total:,}: " + ", ".join(f"{n:,} {s}" for s, n in sorted(self.states.items())),
            ),
            ("calls", ", ".join(f"{agent} {n:,}" for agent, n in sorted(self.calls.items())) or "none yet"),
            (
                "tokens/s",
                f"{prompt:,.0f} in, {output:,.0f} out; cached {self.cached / self.prompt if self.prompt else 0:.0%}",
            ),
        ]
        if unusual := {reason: n for reason, n in self.ends.items() if reason != "stop"}:
            rows.append(("ends", ", ".join(f"{reason} {n:,}" for reason, n in sorted(unusual.items()))))
        for place, numbers in self.servers().items():
            rows.append((place, _server_line(numbers)))
        if self.set_aside:
            rows.append(("set aside", f"{self.set_aside:,}: their calls keep failing; the next start asks them again"))
        time_to_go = "" if to_go is None else f", {timedelta(seconds=int(to_go))} to go"
        rows.append(("time", f"{timedelta(seconds=int(self.seconds))}{time_to_go}"))
        if self.gpus:
            ahead = "" if to_go is None else f", {to_go * self.gpus / 3600:,.1f} to go"
            rows.append(("GPU-hours", f"{self.seconds * self.gpus / 3600:,.1f}{ahead}"))
        return rows

    def line(self) -> str:
        """The rows that tell most, on one line of a log."""
        rows = dict(self.rows())
        servers = [f"{place}: {_server_line(numbers)}" for place, numbers in self.servers().items()]
        flying = [] if servers else [f"{self.in_flight} calls in flight"]
        return "CRV " + "; ".join([rows["problems"], *servers, *flying, rows["tokens/s"], rows["time"]])

    def prometheus(self) -> str:
        """The same in Prometheus' text format (version 0.0.4)."""
        lines = ["# TYPE crv_problems gauge", f'crv_problems{{state="all"}} {self.total}']
        lines += [f'crv_problems{{state="{state}"}} {n}' for state, n in sorted(self.states.items())]
        lines += ["# TYPE crv_calls_total counter"]
        lines += [f'crv_calls_total{{agent="{agent}"}} {n}' for agent, n in sorted(self.calls.items())]
        lines += ["# TYPE crv_ends_total counter"]
        lines += [f'crv_ends_total{{reason="{reason}"}} {n}' for reason, n in sorted(self.ends.items())]
        lines += ["# TYPE crv_tokens_total counter"]
        counts = (("prompt", self.prompt), ("cached", self.cached), ("output", self.output))
        lines += [f'crv_tokens_total{{kind="{kind}"}} {n}' for kind, n in counts]
        for place, numbers in self.servers().items():
            where = f'server="{place}"'
            lines += [
                f"crv_in_flight{{{where}}} {numbers['in_flight']}",
                f"crv_concurrency{{{where}}} {numbers['concurrency']}",
            ]
            lines += [f'crv_resent_total{{{where},reason="{reason}"}} {n}' for reason, n in numbers["resent"].items()]
        lines += ["# TYPE crv_gpu_seconds_total counter", f"crv_gpu_seconds_total {self.seconds * self.gpus:.0f}"]
        return "\n".join(lines) + "\n"


def _server_line(numbers: Mapping[str, Any]) -> str:
    """How a server does: calls in flight, what was sent again and why, how long it asked to wait."""
    resent = ", ".join(f"{reason} {n}" for reason, n in numbers["resent"].items()) or "none"
    waits = f"; asked to wait {wait:.0f} s more" if (wait := numbers.get("told_to_wait", 0)) else ""
    words = f" (last: {said[:100]})" if (said := numbers.get("last_words", "")) else ""
    return f"{numbers['in_flight']} of at most {numbers['concurrency']} in flight; sent again: {resent}{words}{waits}"


_FIRST_SECONDS, _PLAIN_SECONDS = 1.0, 60.0  # to the first line, and between two, where stderr is no terminal
_DRAW_SECONDS = 0.5


@contextlib.asynccontextmanager
async def shown(meter: Meter, port: int) -> AsyncIterator[None]:
    """Shows the meter until the block ends; `port` above 0 also serves it at http://127.0.0.1:port/metrics."""
    async with contextlib.AsyncExitStack() as stack:
        if port:
            server = await asyncio.start_server(lambda r, w: _answer(meter, r, w), "127.0.0.1", port)
            await stack.enter_async_context(server)
        view = asyncio.create_task(_table(meter) if sys.stderr.isatty() else _lines(meter))
        try:
            yield
        finally:
            view.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await view


async def _table(meter: Meter) -> None:
    with Live(_draw(meter), console=Console(stderr=True), auto_refresh=False) as live:
        try:
            while True:
                await asyncio.sleep(_DRAW_SECONDS)
                live.update(_draw(meter), refresh=True)
        finally:
            live.update(_draw(meter), refresh=True)


def _draw(meter: Meter) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, title="CRV", title_justify="left")
    for row in meter.rows():
        table.add_row(*row)
    return table


async def _lines(meter: Meter) -> None:
    """A line after a second, one a minute, and one as soon as calls are sent again for a new reason."""
    said, known = time.monotonic() - _PLAIN_SECONDS, set[str]()
    while True:
        await asyncio.sleep(_FIRST_SECONDS)
        resent = {f"{place} {reason}" for place, numbers in meter.servers().items() for reason in numbers["resent"]}
        if resent <= known and time.monotonic() - said < _PLAIN_SECONDS:
            continue
        said, known = time.monotonic(), known | resent
        print(meter.line(), file=sys.stderr, flush=True)


async def _answer(meter: Meter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        request = await reader.readuntil(b"\r\n\r\n")
        found = request.startswith((b"GET /metrics ", b"GET / "))
        body = meter.prometheus().encode() if found else b"see /metrics\n"
        status = "200 OK" if found else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()
    writer.close()
