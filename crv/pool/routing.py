"""Which server answers which agent: one client for each server and model that some agent has of its own."""

import asyncio
import os
from typing import Any

from cogpo_jax.errors import UserError
from crv.options import Options, PoolOptions
from crv.pool.base import Answer, Pool, RecordedPool, Request
from crv.pool.http import HttpCaller, Pace, Server
from crv.pool.openai import OpenAIPool
from crv.pool.sglang import SglangPool


def open_pool(options: Options) -> Pool:
    """The pool that the config names."""
    return RecordedPool(options.pool.recordings) if options.pool.kind == "recorded" else RoutedPool(options)


class RoutedPool(Pool):
    """Sends each agent's requests to its own server (`agents.NAME.*`) or to the common one."""

    def __init__(self, options: Options):
        self._clients: list[tuple[PoolOptions, Pool]] = []
        self._servers: dict[str, Server] = {}
        self._paces: dict[str, Pace] = {}
        self._by_agent = {agent: self._client(options.pool_of(agent)) for agent in ("", *options.agents)}

    def _client(self, place: PoolOptions) -> Pool:
        """The client of a place; agents with equal places share one, and its limits."""
        for known, pool in self._clients:
            if known == place:
                return pool
        pace = self._paces.setdefault(place.url, Pace(place.requests_per_minute, place.tokens_per_minute))
        self._clients.append((place, open_client(place, pace, self._servers)))
        return self._clients[-1][1]

    async def start(self) -> None:
        """Checks every server."""
        await asyncio.gather(*(pool.start() for _, pool in self._clients))

    async def generate(self, request: Request) -> Answer:
        """Asks the agent's server."""
        return await self._by_agent.get(request.agent, self._by_agent[""]).generate(request)

    def stop(self) -> None:
        """Sends no further call."""
        for _, pool in self._clients:
            pool.stop()

    async def close(self) -> None:
        """Closes every client."""
        await asyncio.gather(*(pool.close() for _, pool in self._clients))

    def statistics(self) -> dict[str, Any]:
        """The statistics of each server, by its URL."""
        return {url: numbers for _, pool in self._clients for url, numbers in pool.statistics().items()}


def open_client(place: PoolOptions, pace: Pace | None = None, known: dict[str, Server] | None = None) -> Pool:
    """The client of one place; UserError where its key is not in the environment.

    `pace` and `known` servers are shared with other clients of the same place.
    """
    headers, key = None, ""
    if place.api_key:
        key = os.environ.get(place.api_key, "").strip()
        if not key:
            raise UserError(f"pool.api_key: {place.api_key}: no such environment variable; set it to the key")
        headers = {place.key_header: f"Bearer {key}" if place.key_header.lower() == "authorization" else key}
    # `/v1` is put back where the API is found (crv/pool/openai.py).
    given = [url.strip().rstrip("/").removesuffix("/chat/completions") for url in place.url.split(",")]
    urls = [url.removesuffix("/v1") for url in given]
    pace = pace or Pace(place.requests_per_minute, place.tokens_per_minute)
    caller = HttpCaller(
        urls, place.concurrency, place.timeout, place.retries, headers, pace=pace, secret=key, known=known
    )
    return OpenAIPool(caller, place) if place.kind == "openai" else SglangPool(caller, place)
