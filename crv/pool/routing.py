"""Which server answers which agent: one client for each server and model that some agent has of its own."""

import asyncio
import os
from typing import Any

from cogpo_jax.errors import UserError
from crv.options import Options, PoolOptions
from crv.pool.base import Answer, Pool, RecordedPool, Request
from crv.pool.http import HttpCaller
from crv.pool.openai import OpenAIPool
from crv.pool.sglang import SglangPool


def open_pool(options: Options) -> Pool:
    """The pool that the config names."""
    return RecordedPool(options.pool.recordings) if options.pool.kind == "recorded" else RoutedPool(options)


class RoutedPool:
    """Sends each agent's requests to its own server (`agents.NAME.{url,model,tokenizer}`) or to the common one."""

    def __init__(self, options: Options):
        places = {agent: options.pool_of(agent) for agent in ("", *options.agents)}
        self._clients = {place: _client(place) for place in dict.fromkeys(places.values())}
        self._by_agent = {agent: self._clients[place] for agent, place in places.items()}

    async def start(self) -> None:
        """Checks every server."""
        await asyncio.gather(*(pool.start() for pool in self._clients.values()))

    async def generate(self, request: Request) -> Answer:
        """Asks the agent's server."""
        return await self._by_agent.get(request.agent, self._by_agent[""]).generate(request)

    async def close(self) -> None:
        """Closes every client."""
        await asyncio.gather(*(pool.close() for pool in self._clients.values()))

    def statistics(self) -> dict[str, Any]:
        """The statistics of each server, by its URL and model."""
        return {
            f"{url} {place.model}".strip(): numbers
            for place, pool in self._clients.items()
            for url, numbers in pool.statistics().items()
        }


def _client(place: PoolOptions) -> Pool:
    headers = None
    if name := place.api_key:
        if not os.environ.get(name):
            raise UserError(f"pool.api_key: {name}: no such environment variable; set it to the key")
        headers = {"Authorization": f"Bearer {os.environ[name]}"}
    urls = [url.strip().rstrip("/").removesuffix("/v1") for url in place.url.split(",")]
    caller = HttpCaller(urls, place.concurrency, place.timeout, place.retries, headers)
    if place.kind == "openai":
        return OpenAIPool(caller, place.model)
    return SglangPool(caller, place.model, place.tokenizer, place.context, place.weights)
