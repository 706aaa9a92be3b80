"""What a running CRV is doing, in numbers: for the terminal, and for Prometheus."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

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
        self.done_now = 0
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

    def to_go(self) -> float | None:
        """Seconds to the end at the rate so far; None before the first problem is done."""
        left = self.total - sum(self.states.values())
        return left * self.seconds / self.done_now if self.done_now else None

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
            resent = ", ".join(f"{reason} {n}" for reason, n in numbers["resent"].items()) or "none"
            rows.append(
                (place, f"{numbers['in_flight']} of at most {numbers['concurrency']} in flight; sent again: {resent}")
            )
        time_to_go = "" if to_go is None else f", {_clock(to_go)} to go"
        rows.append(("time", _clock(self.seconds) + time_to_go))
        if self.gpus:
            ahead = "" if to_go is None else f", {to_go * self.gpus / 3600:,.1f} to go"
            rows.append(("GPU-hours", f"{self.seconds * self.gpus / 3600:,.1f}{ahead}"))
        return rows

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


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
