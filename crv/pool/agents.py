"""One client a server: agents may have a model, a server and a tokenizer of their own."""

import asyncio
import os
from typing import Any

from cogpo_jax.errors import UserError
from crv.options import Options
from crv.pool.base import Answer, Pool, Request
from crv.pool.http import HttpCaller
from crv.pool.openai import OpenAIPool
from crv.pool.sglang import SglangPool


class AgentPools:
    """Sends each agent's requests to its own server (`agents.NAME.{url,model,tokenizer}`) or to the common one."""

    def __init__(self, options: Options):
        self._by_agent: dict[str, Pool] = {}
        clients: dict[tuple[str, str, str], Pool] = {}
        for agent in ("", *options.own):
            settings = {**options.pool, **options.own.get(agent, {})}
            place = (settings["url"], settings["model"], settings["tokenizer"])
            if place not in clients:
                clients[place] = _client(settings)
            self._by_agent[agent] = clients[place]
        self._clients = clients

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
            f"{url} {model}".strip(): numbers
            for (_, model, _), pool in self._clients.items()
            for url, numbers in pool.statistics().items()
        }


def _client(settings: dict[str, Any]) -> Pool:
    headers = None
    if name := settings["api_key"]:
        if not os.environ.get(name):
            raise UserError(f"pool.api_key: {name}: no such environment variable; set it to the key")
        headers = {"Authorization": f"Bearer {os.environ[name]}"}
    urls = [url.strip().rstrip("/").removesuffix("/v1") for url in settings["url"].split(",")]
    caller = HttpCaller(urls, settings["concurrency"], settings["timeout"], settings["retries"], headers)
    if settings["kind"] == "openai":
        return OpenAIPool(caller, settings["model"])
    return SglangPool(caller, settings["model"], settings["tokenizer"], settings["context"], settings["weights"])
