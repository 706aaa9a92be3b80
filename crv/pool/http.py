"""Calls over HTTP that arrive: bounded concurrency, deadlines, waiting as told, and sending again what was lost.

A call that was answered is never sent again; one that is to come back later (see crv/pool/replies.py) is, and counted
by reason in `resent`. Several servers of one model have a limit of concurrency each; all calls of a problem go to one
of them, where their common prefix is cached, while it is well.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from crv.pool.base import REFUSED, PoolError, StoppedError
from crv.pool.replies import Later, Refusal, SetupError, seconds_to_wait, sort_reply

_DECREASE = 0.7
_COOLDOWN_SECONDS = 1.0  # one congestion is answered once, however many calls report it
_GET_TRIES = 5
_ABSENT = (404, 405, 410, 501)
_BACKOFF_SECONDS, _LONGEST_BACKOFF = 0.25, 30.0
_OUT_SECONDS = 0.5  # how long a server is left alone after its first lost call; twice as long after each further one
_TRIES_WITH_ONE = 3
_TRIES_REFUSED, _TRIES_REFUSED_ALONE = 3, 8  # of a request that is refused for no known reason (see `post`)


_SECRETS = re.compile(r"([?&](?:[\w-]*key|token|sig\w*|secret)=)[^&\s:]+", re.IGNORECASE)


def _now() -> float:
    return asyncio.get_running_loop().time()


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
        if _now() - self._last_decrease > _COOLDOWN_SECONDS:
            self._last_decrease = _now()
            self.decreases += 1
            self.limit = max(1.0, self.limit * _DECREASE)


class Pace:
    """Requests and tokens a minute; 0 = no limit. What a call will need is estimated, and mended when it is known."""

    def __init__(self, requests: int = 0, tokens: int = 0):
        self._request_seconds = 60 / requests if requests else 0.0
        self._token_seconds = 60 / tokens if tokens else 0.0
        self._next = float("-inf")

    def turn(self, tokens: int) -> float:
        """In how many seconds a call of so many tokens may be sent; its turn is taken."""
        now = _now()
        start = max(now, self._next)
        self._next = start + max(self._request_seconds, tokens * self._token_seconds)
        return start - now

    def used(self, estimated: int, tokens: int) -> None:
        """What a call really needed."""
        if self._token_seconds:
            self._next += (tokens - estimated) * self._token_seconds


@dataclass
class Server:
    """One server or router, and how it does: shared by all clients that ask it."""

    url: str
    limiter: Limiter
    sent: int = 0
    answered: int = 0
    resent: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # calls in a row that got no answer at all
    out_until: float = float("-inf")
    told_until: float = float("-inf")  # it asked to be left alone until then
    words: str = ""  # why the last call was sent again

    def does_not_answer(self) -> None:
        self.limiter.overloaded()
        self.lost += 1
        self.out_until = _now() + min(_LONGEST_BACKOFF, _OUT_SECONDS * 2 ** min(self.lost - 1, 16))

    def answers(self) -> None:
        self.lost, self.out_until = 0, float("-inf")

    def told(self, seconds: float) -> None:
        self.told_until = max(self.told_until, _now() + seconds)


class FailedError(PoolError):
    """One call failed again and again while others succeed: its problem is set aside, and nothing is stored."""


class HttpCaller:
    """POSTs JSON to servers of one model, at most `concurrency` calls at a time to each; a router is one server.

    `timeout`: seconds for one try; `retries`: further tries after the first; `secret`: never to be seen in a message.
    Proxies are those of the environment, but for loopback addresses.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        concurrency: int,
        timeout: float,
        retries: int,
        headers: dict[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        pace: Pace | None = None,
        secret: str = "",
        known: dict[str, Server] | None = None,
    ):
        known = {} if known is None else known  # servers that other clients ask too: their limits are shared
        given = [urls] if isinstance(urls, str) else urls
        self.prefixes = dict.fromkeys(
            (url.rstrip("/") for url in given), ""
        )  # what stands between a URL and the paths of the API
        self.servers = [known.setdefault(url, Server(url, Limiter(concurrency))) for url in self.prefixes]
        self.retries, self.timeout = retries, timeout
        self._pace, self._secret = pace or Pace(), secret
        self._stopped = asyncio.Event()
        self._last_success = float("-inf")
        self._answered: Counter[str] = Counter()  # by family of calls
        self._open: Counter[str] = Counter()  # calls of a family that were neither answered nor refused yet
        self._output_tokens = 0
        connections = len(self.servers) * concurrency + 4
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        direct: dict[str, Any] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
        self._client = httpx.AsyncClient(
            timeout=timeout, limits=limits, headers=headers, transport=transport, mounts=direct
        )

    def address(self, url: str, path: str, prefix: str | None = None) -> str:
        """The address of a path of the API (or below another `prefix`); a query of the URL stays at its end."""
        place, _, query = url.partition("?")
        prefix = self.prefixes.get(url, "") if prefix is None else prefix
        return f"{place}{prefix}{path}" + (f"?{query}" if query else "")

    def stop(self) -> None:
        """Sends no further call: those that wait raise StoppedError."""
        self._stopped.set()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)
        else:
            await asyncio.sleep(0)
        if self._stopped.is_set():
            raise StoppedError

    async def exists(self, url: str, path: str) -> bool:
        """Whether a server takes POSTs there; an empty one costs nothing."""
        try:
            response = await self._client.post(self.address(url, path), json={}, timeout=30.0)
        except httpx.HTTPError:
            return False
        page = response.content.lstrip()[:1]  # an API speaks JSON; a website answers any path with a page
        return response.status_code not in (404, 405, 501) and page in (b"", b"{", b"[")

    async def get(
        self, url: str, path: str, tries: int = _GET_TRIES, absent: Sequence[int] = _ABSENT, prefix: str | None = None
    ) -> Any:
        """GET of a JSON document below a URL; None where there is none (a status in `absent`, a page, an error).

        A server that says "later" is waited for, as for a call. Raises SetupError where the server refuses, PoolError
        where no document comes in a few tries.
        """
        address, started, attempt = self.address(url, path, prefix), _now(), 0
        while True:
            attempt += 1
            reply: Any = Later("")
            try:
                response = await self._client.get(address, timeout=min(self.timeout, 30.0))
                if response.status_code in absent:
                    return None
                reply = sort_reply(response.status_code, response.headers, response.content, lambda document: document)
                if isinstance(reply, Refusal):
                    raise SetupError(reply.words)
                if not isinstance(reply, Later) or response.status_code < 300:
                    return None if isinstance(reply, Later) else reply
                words = f"{response.status_code}: {reply.words}"
            except SetupError as error:
                if response.status_code < 300:
                    return None
                raise SetupError(self.clean(f"{address}: {error}")) from None
            except httpx.HTTPError as error:
                words = " ".join(str(error).split())[:200] or type(error).__name__
            waits = reply.reason.isdigit() and tries > 1 and _now() - started < self.timeout
            if attempt >= tries and not waits:
                raise PoolError(self.clean(f"{address}: {words}"))
            for server in self.servers:
                if server.url == url and reply.reason:
                    server.sent += 1
                    server.resent[reply.reason] += 1
                    server.words = self.clean(words)
            await self._wait(max(reply.seconds, min(_LONGEST_BACKOFF, _BACKOFF_SECONDS * 2 ** min(attempt, 16))))

    async def post(
        self,
        path: str,
        payload: Any,
        read: Callable[[Any], Any],
        affinity: str = "",
        only: str = "",
        family: str = "",
        tokens: int = 0,
    ) -> Any:
        """`read(document)` of the answer to a POST, or a Refusal.

        Calls of one `affinity` go to one server while it answers, else to the next in their line; `only` names the one.
        `family`: calls of one kind (an agent's); `tokens`: how many the prompt has, about. What is to come later is
        sent again, as told. What is refused for no known reason is sent again until another call of its family is
        answered (then it is a Refusal), or all of them are refused (then the set-up is wrong). Raises SetupError;
        FailedError where `retries` did not help while other calls succeeded; PoolError where no call has succeeded for
        `timeout` seconds: a shorter outage is waited for.
        """
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        started, tries, overloads, refused, asked, last_told = _now(), 0, 0, 0, 0, 0.0
        undecided = {family}  # until the first refusal
        self._open[family] += 1
        try:
            while True:
                server, reply = await self._turn(path, body, read, affinity, only, tries, tokens)
                if isinstance(reply, Refusal):
                    if reply.sure or self._answered[family]:
                        return reply
                    refused += 1
                    self._open.subtract(undecided)
                    undecided.clear()
                    enough = _TRIES_REFUSED_ALONE if self._answered.total() else _TRIES_REFUSED
                    if refused >= enough and self._open[family] <= 0:
                        raise SetupError(self.clean(f"{self.address(server.url, path)}: {reply.words}"))
                    reply = Later(reply.reason, words=reply.words)
                if not isinstance(reply, Later):
                    self._answered[family] += 1
                    return reply
                server.resent[reply.reason] += 1
                server.words = self.clean(reply.words)
                if reply.reason == "429":  # it lives, and will answer: this is no failure
                    last_told = _now() + reply.seconds
                elif reply.reason != REFUSED:
                    tries += 1
                    overloads += reply.overloaded and _now() - started < self.timeout  # no failure either, for so long
                place, last = self.address(server.url, path), f"{tries} tries, the last: {reply.reason} {reply.words}"
                if self._last_success > started:
                    if tries - overloads > self.retries:
                        raise FailedError(self.clean(f"{place}: {last}"))
                elif tries > self.retries and _now() - max(started, self._last_success, last_told) > self.timeout:
                    raise PoolError(self.clean(f"{place}: does not answer: {last}"))
                asked += 1
                doublings = 0 if reply.seconds else min(asked, 16)  # where the server says how long, no guessing
                await self._wait(random.uniform(0, min(_LONGEST_BACKOFF, _BACKOFF_SECONDS * 2**doublings)))
        finally:
            self._open.subtract(undecided)

    async def _turn(
        self, path: str, body: bytes, read: Callable[[Any], Any], affinity: str, only: str, tries: int, tokens: int
    ) -> tuple[Server, Any]:
        """One try; a server that went down while the call waited for its turn is not the one any more."""
        estimated = tokens + self._output_tokens // max(1, self._answered.total())
        await self._wait(self._pace.turn(estimated))
        while True:
            server = self._choose(affinity, only, tries)
            await self._wait(server.told_until - _now())
            async with server.limiter:
                if server is self._choose(affinity, only, tries) and server.told_until <= _now():
                    reply = await self._try(server, path, body, read)
                    output = getattr(reply, "output_tokens", 0)
                    self._output_tokens += output
                    self._pace.used(estimated, getattr(reply, "prompt_tokens", tokens) + output)
                    return server, reply

    def _choose(self, affinity: str, only: str, tries: int) -> Server:
        """The first in the line of `affinity` that is not out (rendezvous hashing); the very first where all are.

        After a few tries in vain the line begins with the next: it may be this one server that refuses.
        """
        if len(self.servers) == 1:
            return self.servers[0]
        if only:
            return next(server for server in self.servers if server.url == only)
        line = sorted(self.servers, key=lambda server: _digest(f"{server.url} {affinity}"))
        first = tries // _TRIES_WITH_ONE % len(line)
        now = _now()
        line = line[first:] + line[:first]
        return next((server for server in line if server.out_until <= now), line[0])

    async def _try(self, server: Server, path: str, body: bytes, read: Callable[[Any], Any]) -> Any:
        """What came back: `read`'s answer, Refusal or Later."""
        server.sent += 1
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.post(self.address(server.url, path), content=body, headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            server.does_not_answer()
            return Later("timeout")
        except httpx.TransportError as error:
            server.does_not_answer()
            return Later(type(error).__name__, words=str(error))
        except httpx.HTTPError as error:  # a body that does not decode, too many redirects
            return Later("unreadable body", words=str(error))
        try:
            reply = sort_reply(response.status_code, response.headers, response.content, read)
        except SetupError as error:
            raise SetupError(self.clean(f"{self.address(server.url, path)}: {error}")) from None
        if isinstance(reply, Later):
            server.told(reply.seconds)
            if reply.overloaded:
                server.limiter.overloaded()
            return reply
        server.told(seconds_to_wait(response.headers))  # of the next call: a limit that this one has spent
        server.answers()
        if not isinstance(reply, Refusal):
            server.answered += 1
            self._last_success = _now()
            server.limiter.succeeded()
        return reply

    def clean(self, words: str) -> str:
        """Words on one line without keys: a server may repeat one, an address may hold one."""
        words = _SECRETS.sub(r"\1(key)", re.sub(r"//[^/@\s]+@", "//", " ".join(words.split())))
        return words.replace(self._secret, "(key)") if self._secret else words

    def statistics(self) -> dict[str, dict[str, Any]]:
        """By server: calls sent, answered and sent again by reason, where the concurrency stands, what it waits for."""
        return {self.clean(server.url.partition("?")[0]): self._numbers(server) for server in self.servers}

    def _numbers(self, server: Server) -> dict[str, Any]:
        try:
            waits = max(0.0, server.told_until - _now())
        except RuntimeError:  # asked after the run: nothing waits any more
            waits = 0.0
        return {
            "sent": server.sent,
            "answered": server.answered,
            "resent": dict(sorted(server.resent.items())),
            "concurrency": int(server.limiter.limit),
            "in_flight": server.limiter.in_flight,
            "told_to_wait": round(waits, 1),
            "last_words": server.words,
        }


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
