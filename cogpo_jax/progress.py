"""Progress of long work on stderr: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A task of `total` units. On a terminal: bar, count, ETA, `note`; elsewhere: the same as a line every 15 s."""

    def __init__(self, what: str, total: int, *, start: int = 0, quiet: bool = False, every_s: float = 15.0):
        self._what, self._total, self._start, self._every = what, total, start, every_s
        self._quiet = quiet
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            more = TimeRemainingColumn(), TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, *more, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=start, note="")

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        """Says that `done` of `total` units are done."""
        self._total = self._total if total is None else total
        if self._bar:
            self._bar.update(self._task, completed=done, total=self._total, note=note)
        now = time.monotonic()
        if self._quiet or self._bar or (now - self._said < self._every and done < self._total):
            return
        self._said = now
        rate = (done - self._start) / max(now - self._began, 1e-9)
        left = f"{(self._total - done) / rate:.0f} s left" if rate > 0 else "..."
        print(f"{self._what}: {done}/{self._total}, {now - self._began:.0f} s, {left} {note}".rstrip(), file=sys.stderr)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


def say(message: str) -> None:
    """One line for a person, on stderr."""
    print(message, file=sys.stderr, flush=True)
