"""The live line of a run: problems by state, calls per second, time to go; on stderr."""

import sys
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_PLAIN_SECONDS = 15.0  # between two lines where stderr is a file


class Progress:
    """Context manager; `done` is told of every finished problem. `before`: outcomes by state of an earlier start."""

    def __init__(self, total: int, before: Mapping[str, int]):
        self._total, self._states, self._begun = total, Counter(before), sum(before.values())
        self._start = self._last = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            columns = [
                TextColumn("CRV"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[states]}"),
                TimeElapsedColumn(),
            ]
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), refresh_per_second=4)
            self._task = self._bar.add_task("crv", total=total, completed=self._begun, states="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def done(self, state: str, calls: int) -> None:
        """A problem has ended in `state`; `calls` have been asked since the start."""
        self._states[state] += 1
        now = time.monotonic()
        if self._bar:
            if now - self._last > 0.25:
                self._last = now
            self._bar.update(self._task, advance=1, states=self._describe(calls, now))
        elif now - self._last > _PLAIN_SECONDS:
            self._last = now
            finished = sum(self._states.values())
            rate = (finished - self._begun) / (now - self._start)
            to_go = (self._total - finished) / rate if rate else float("inf")
            print(
                f"CRV {finished}/{self._total}, {self._describe(calls, now)}, about {to_go:.0f} s to go",
                file=sys.stderr,
                flush=True,
            )

    def _describe(self, calls: int, now: float) -> str:
        states = ", ".join(f"{state} {count}" for state, count in sorted(self._states.items()))
        return f"{states}; {calls / max(now - self._start, 1e-9):.1f} calls/s"
