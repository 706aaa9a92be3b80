"""Any OpenAI-compatible server: `/v1/chat/completions`; the server renders the chat template."""

import json
from typing import Any

from crv.pool.base import FAILED, PROMPT_TOO_LONG, Answer, Request
from crv.pool.http import FailedError, HttpCaller, RefusedError
from crv.pool.sglang import check_model

_TOO_LONG = ("context length", "context_length", "maximum context", "too long", "longer than")


class OpenAIPool:
    """One server that speaks OpenAI's chat completions."""

    def __init__(self, caller: HttpCaller, model: str):
        self.caller, self.model = caller, model

    async def start(self) -> None:
        """Refuses a server that does not serve the model."""
        for url in self.caller.urls:
            await check_model(self.caller, url, self.model)

    async def generate(self, request: Request) -> Answer:
        """One call; see `SglangPool.generate` for the finish reasons."""
        try:
            return await self.caller.post("/v1/chat/completions", self.payload(request), self._read, request.problem_id)
        except FailedError:
            return Answer("", FAILED, model=self.model)
        except RefusedError as error:
            if any(words in str(error).lower() for words in _TOO_LONG):
                return Answer("", PROMPT_TOO_LONG, model=self.model)
            raise

    def payload(self, request: Request) -> dict[str, Any]:
        """The body of the POST."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in request.messages],
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "max_tokens": request.sampling.max_tokens,
            "seed": request.seed,
        }
        if request.schema:
            schema = {"name": request.agent, "schema": json.loads(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.regex:
            body["regex"] = request.regex  # SGLang's and vLLM's extension; others let it pass or refuse it
        return body

    def _read(self, body: Any) -> Answer:
        choice, usage = body["choices"][0], body.get("usage") or {}
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason {reason}")
        message = choice["message"]
        text = message.get("content") or ""
        if thought := message.get("reasoning_content"):
            text = f"<think>\n{thought}\n</think>\n\n{text}"
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        counts = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), int(cached))
        return Answer(str(text), reason, *counts, model=self.model)

    async def close(self) -> None:
        """Closes the connections."""
        await self.caller.close()

    def statistics(self) -> dict[str, Any]:
        """`HttpCaller.statistics`."""
        return self.caller.statistics()
