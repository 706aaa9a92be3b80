"""A real SGLang server that says what a recording says: every answer is forced word for word by a grammar."""

import json
import time
from typing import Any

import httpx

from crv.options import PoolOptions
from crv.pool.base import Answer, RecordedPool, Request
from crv.pool.http import HttpCaller
from crv.pool.sglang import SglangPool


class ScriptedSglangPool(SglangPool):
    """The real client and server; only the `ebnf` constraint is added. `calls` keeps (prompt ids, answer) as sent."""

    def __init__(
        self,
        url: str | list[str],
        model: str,
        tokenizer: str,
        recordings: str,
        concurrency: int = 16,
        timeout: float = 120.0,
    ):
        place = PoolOptions(kind="sglang", model=model, tokenizer=tokenizer)
        super().__init__(HttpCaller(url, concurrency, timeout, retries=20), place)
        self.script = RecordedPool(recordings)
        self.calls: list[tuple[list[int], Answer]] = []
        self._texts: dict[int, str] = {}

    async def generate(self, request: Request) -> Answer:
        """The recorded answer, said by the server."""
        recorded = await self.script.generate(request)
        self._texts[id(request)] = recorded.text
        try:
            answer = await super().generate(request)
        finally:
            del self._texts[id(request)]
        self.calls.append((self.render(request), answer))
        return Answer(
            answer.text,
            answer.finish_reason,
            answer.prompt_tokens,
            answer.output_tokens,
            answer.cached_tokens,
            model=recorded.model,
            origin=recorded.origin,
        )

    def payload(self, request: Request, ids: Any, room: int) -> dict[str, Any]:
        """The real payload, with the schema's place taken by a grammar of one sentence."""
        body = super().payload(request, ids, room)
        body["sampling_params"].pop("json_schema", None)
        body["sampling_params"]["ebnf"] = f"root ::= {json.dumps(self._texts[id(request)], ensure_ascii=False)}"
        return body


def forget(url: str) -> None:
    """Empties the prefix cache of the server, or of every worker behind the router."""
    workers = httpx.get(f"{url}/workers", trust_env=False)
    urls = [worker["url"] for worker in workers.json()["workers"]] if workers.is_success else [url]
    for worker in urls:
        deadline = time.monotonic() + 60  # refused while requests run, those of a client that has gone too
        while not httpx.post(f"{worker}/flush_cache", timeout=30, trust_env=False).is_success:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{worker}: does not empty its cache")
            time.sleep(0.5)
