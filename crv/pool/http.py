"""Calls over HTTP that arrive: bounded concurrency, deadlines, retries with jitter, and what the servers must be.

A call that was answered is never sent again; one that was lost on the way (connection, time-out, 5xx, a body cut off)
is, and counted by reason in `resent`. Several servers of one model have a limit of concurrency each; all calls of a
problem go to one of them, where their common prefix is cached, while it is well.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from crv.pool.base import PoolError

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


_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_GET_TRIES = 5
_BACKOFF_SECONDS, _LONGEST_BACKOFF = 0.25, 30.0
_OUT_SECONDS = 0.5  # how long a server is left alone after its first lost call; twice as long after each further one
_TRIES_WITH_ONE = 3


class RefusedError(PoolError):
    """The server says that the request itself is wrong (4xx): sending it again cannot help."""


class FailedError(PoolError):
    """One call failed again and again while others succeed: an outcome of its own."""


@dataclass
class _Server:
    """One server or router, and how it does."""

    url: str
    limiter: Limiter
    sent: int = 0
    answered: int = 0
    resent: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # calls in a row that got no answer at all
    out_until: float = float("-inf")

    def does_not_answer(self) -> None:
        self.limiter.overloaded()
        self.lost += 1
        self.out_until = time.monotonic() + min(_LONGEST_BACKOFF, _OUT_SECONDS * 2 ** min(self.lost - 1, 16))

    def answers(self) -> None:
        self.lost, self.out_until = 0, float("-inf")


class HttpCaller:
    """POSTs JSON to servers of one model, at most `concurrency` calls at a time to each; a router is one server.

    `timeout`: seconds for one try; `retries`: further tries after the first.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        concurrency: int,
        timeout: float,
        retries: int,
        headers: dict[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        urls = [urls] if isinstance(urls, str) else urls
        self.servers = [_Server(url, Limiter(concurrency)) for url in dict.fromkeys(url.rstrip("/") for url in urls)]
        self.retries = retries
        self.timeout = timeout
        self._last_success = float("-inf")
        connections = len(self.servers) * concurrency + 4
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.AsyncClient(
            timeout=timeout, limits=limits, headers=headers, trust_env=False, transport=transport
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    @property
    def urls(self) -> list[str]:
        """Of the servers."""
        return [server.url for server in self.servers]

    async def get(self, url: str, path: str) -> Any:
        """GET of a JSON document; PoolError where there is none after a few tries."""
        address = f"{url}{path}"
        for attempt in range(_GET_TRIES):
            try:
                response = await self._client.get(address, timeout=min(self.timeout, 30.0))
                response.raise_for_status()
                return response.json()
            except (httpx.HTTPError, ValueError) as error:
                if attempt == _GET_TRIES - 1:
                    raise PoolError(f"{address}: {_words(error)}") from error
            await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)

    async def post(
        self, path: str, payload: Any, read: Callable[[Any], Any], affinity: str = "", only: str = ""
    ) -> Any:
        """`read(document)` of the answer to a POST. `read` raises ValueError for a document that is no answer.

        Calls of one `affinity` go to one server while it answers, else to the next in their line; `only` names the one.
        Raises RefusedError for a 4xx; FailedError where `retries` did not help while other calls succeeded; PoolError
        where no call has succeeded for `timeout` seconds: a shorter outage is waited for.
        """
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        started, tries = time.monotonic(), 0
        while True:
            server, reason, answer = await self._turn(path, body, read, affinity, only, tries)
            if not reason:
                return answer
            tries += 1
            if self._last_success > started:
                if tries > self.retries:
                    raise FailedError(f"{server.url}{path}: {tries} tries, the last: {reason}")
            elif tries > self.retries and time.monotonic() - max(started, self._last_success) > self.timeout:
                raise PoolError(f"{server.url}{path}: does not answer: {tries} tries, the last: {reason}")
            server.resent[reason] += 1
            pause = min(_LONGEST_BACKOFF, _BACKOFF_SECONDS * 2 ** min(tries, 16))
            await asyncio.sleep(random.uniform(0, pause))

    async def _turn(
        self, path: str, body: bytes, read: Callable[[Any], Any], affinity: str, only: str, tries: int
    ) -> tuple[_Server, str, Any]:
        """One try; a server that went down while the call waited for its turn is not the one any more."""
        while True:
            server = self._choose(affinity, only, tries)
            async with server.limiter:
                if server is self._choose(affinity, only, tries):
                    return (server, *await self._try(server, path, body, read))

    def _choose(self, affinity: str, only: str, tries: int) -> _Server:
        """The first in the line of `affinity` that is not out (rendezvous hashing); the very first where all are.

        After a few tries in vain the line begins with the next: it may be this one server that refuses.
        """
        if len(self.servers) == 1:
            return self.servers[0]
        if only:
            return next(server for server in self.servers if server.url == only)
        line = sorted(self.servers, key=lambda server: _digest(f"{server.url} {affinity}"))
        first = tries // _TRIES_WITH_ONE % len(line)
        now = time.monotonic()
        line = line[first:] + line[:first]
        return next((server for server in line if server.out_until <= now), line[0])

    async def _try(self, server: _Server, path: str, body: bytes, read: Callable[[Any], Any]) -> tuple[str, Any]:
        """("", answer), or the reason to try again."""
        server.sent += 1
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.post(f"{server.url}{path}", content=body, headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            server.does_not_answer()
            return "timeout", None
        except httpx.TransportError as error:
            server.does_not_answer()
            return type(error).__name__, None
        if response.status_code in _RETRY_STATUS:
            if response.status_code in (429, 503):
                server.limiter.overloaded()
            return str(response.status_code), None
        if response.status_code >= 400:
            raise RefusedError(f"{server.url}{path}: {response.status_code}: {' '.join(response.text.split())[:300]}")
        try:
            answer = read(response.json())
        except (ValueError, KeyError, TypeError, IndexError):
            return "unreadable body", None
        server.answered += 1
        server.answers()
        self._last_success = time.monotonic()
        server.limiter.succeeded()
        return "", answer

    def statistics(self) -> dict[str, dict[str, Any]]:
        """By server: calls sent, answered and sent again by reason, and where the concurrency stands."""
        return {
            server.url: {
                "sent": server.sent,
                "answered": server.answered,
                "resent": dict(sorted(server.resent.items())),
                "concurrency": int(server.limiter.limit),
                "in_flight": server.limiter.in_flight,
            }
            for server in self.servers
        }


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
