"""How many calls may be in flight: grows by one per round trip while all goes well, shrinks on a sign of overload."""

import asyncio
import time
from types import TracebackType

_DECREASE = 0.7
_COOLDOWN_SECONDS = 1.0  # one congestion is answered once, however many calls report it


class Limiter:
    """Additive increase, multiplicative decrease between 1 and `most` (TCP's rule); an async context manager a call."""

    def __init__(self, most: int, start: int = 16):
        self.most = most
        self.limit = float(min(start, most))
        self.in_flight = 0
        self.decreases = 0
        self._last_decrease = float("-inf")
        self._free = asyncio.Condition()

    async def __aenter__(self) -> "Limiter":
        async with self._free:
            await self._free.wait_for(lambda: self.in_flight < int(self.limit))
            self.in_flight += 1
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        async with self._free:
            self.in_flight -= 1
            self._free.notify_all()

    def succeeded(self) -> None:
        """A call came back: one more slot for every full window of them, if the window was in use."""
        if self.in_flight >= int(self.limit) - 1:
            self.limit = min(self.limit + 1 / self.limit, self.most)

    def overloaded(self) -> None:
        """429, 503, a time-out or a lost connection: fewer calls at a time."""
        now = time.monotonic()
        if now - self._last_decrease > _COOLDOWN_SECONDS:
            self._last_decrease = now
            self.decreases += 1
            self.limit = max(1.0, self.limit * _DECREASE)
