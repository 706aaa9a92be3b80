"""Calls over HTTP that arrive: bounded concurrency, deadlines, retries with jitter, and what the servers must be.

A call that was answered is never sent again; one that was lost on the way (connection, time-out, 5xx, a body cut off)
is, and counted by reason in `resent`.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from crv.pool.aimd import Limiter
from crv.pool.base import PoolError

_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_GET_TRIES = 5
_BACKOFF_SECONDS, _LONGEST_BACKOFF = 0.25, 30.0


class RefusedError(PoolError):
    """The server says that the request itself is wrong (4xx): sending it again cannot help."""


class FailedError(PoolError):
    """One call failed again and again while others succeed: an outcome of its own."""


class HttpCaller:
    """POSTs JSON to one server or router. `timeout`: seconds for one try; `retries`: further tries after the first."""

    def __init__(
        self,
        url: str,
        concurrency: int,
        timeout: float,
        retries: int,
        headers: dict[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.url = url.rstrip("/")
        self.limiter = Limiter(concurrency)
        self.retries = retries
        self.timeout = timeout
        self.resent: Counter[str] = Counter()
        self.sent = self.answered = 0
        self._last_success = float("-inf")
        limits = httpx.Limits(max_connections=concurrency + 4, max_keepalive_connections=concurrency + 4)
        self._client = httpx.AsyncClient(
            timeout=timeout, limits=limits, headers=headers, trust_env=False, transport=transport
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def get(self, path: str, url: str = "") -> Any:
        """GET of a JSON document (of another server: `url`); PoolError where there is none after a few tries."""
        address = f"{url or self.url}{path}"
        for attempt in range(_GET_TRIES):
            try:
                response = await self._client.get(address, timeout=min(self.timeout, 30.0))
                response.raise_for_status()
                return response.json()
            except (httpx.HTTPError, ValueError) as error:
                if attempt == _GET_TRIES - 1:
                    raise PoolError(f"{address}: {_words(error)}") from error
            await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)

    async def post(self, path: str, payload: Any, read: Callable[[Any], Any]) -> Any:
        """`read(document)` of the answer to a POST. `read` raises ValueError for a document that is no answer.

        Raises RefusedError for a 4xx; FailedError where `retries` did not help while other calls succeeded; PoolError
        where no call has succeeded for `timeout` seconds: a shorter outage is waited for.
        """
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        started, tries = time.monotonic(), 0
        while True:
            async with self.limiter:
                reason, answer = await self._try(path, body, read)
            if not reason:
                return answer
            tries += 1
            if self._last_success > started:
                if tries > self.retries:
                    raise FailedError(f"{self.url}{path}: {tries} tries, the last: {reason}")
            elif tries > self.retries and time.monotonic() - max(started, self._last_success) > self.timeout:
                raise PoolError(f"{self.url}{path}: does not answer: {tries} tries, the last: {reason}")
            self.resent[reason] += 1
            pause = min(_LONGEST_BACKOFF, _BACKOFF_SECONDS * 2 ** min(tries, 16))
            await asyncio.sleep(random.uniform(0, pause))

    async def _try(self, path: str, body: bytes, read: Callable[[Any], Any]) -> tuple[str, Any]:
        """("", answer), or the reason to try again."""
        self.sent += 1
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.post(f"{self.url}{path}", content=body, headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            self.limiter.overloaded()
            return "timeout", None
        except httpx.TransportError as error:
            self.limiter.overloaded()
            return type(error).__name__, None
        if response.status_code in _RETRY_STATUS:
            if response.status_code in (429, 503):
                self.limiter.overloaded()
            return str(response.status_code), None
        if response.status_code >= 400:
            raise RefusedError(f"{self.url}{path}: {response.status_code}: {' '.join(response.text.split())[:300]}")
        try:
            answer = read(response.json())
        except (ValueError, KeyError, TypeError, IndexError):
            return "unreadable body", None
        self.answered += 1
        self._last_success = time.monotonic()
        self.limiter.succeeded()
        return "", answer

    def statistics(self) -> dict[str, Any]:
        """Calls sent, answered and sent again by reason, and where the concurrency stands."""
        return {
            "sent": self.sent,
            "answered": self.answered,
            "resent": dict(sorted(self.resent.items())),
            "concurrency": int(self.limiter.limit),
            "in_flight": self.limiter.in_flight,
        }


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
