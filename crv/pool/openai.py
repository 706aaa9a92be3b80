"""Any OpenAI-compatible server, local or hosted: chat completions; the server renders the chat template."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cogpo_jax.errors import UserError
from crv.options import PoolOptions
from crv.pool.base import PROMPT_TOO_LONG, Answer, Pool, PoolError, Request
from crv.pool.http import HttpCaller
from crv.pool.replies import NO_SYSTEM, Refusal, SetupError, chat_answer

_VERSION = re.compile(r"/(api/)?v\d+\w*(/|$)")
_CONTEXTS = (  # in which field a description of a model or server tells its context
    "max_model_len",  # vLLM, SGLang
    "n_ctx",  # llama.cpp
    "max_total_tokens",  # TGI
    "context_length",  # OpenRouter, Together, Fireworks
    "context_window",  # Groq
    "loaded_context_length",  # LM Studio
    "max_context_length",  # Mistral
)
_TOLD_CONTEXT = re.compile(r"(?:context (?:length|size|window)\D{0,40}|must be <=\s*|n_ctx\W+)(\d+)")
_TOLD_PROMPT = re.compile(
    r"(\d+)\s+(?:in the messages|in your prompt|input tokens|tokens from the input|of text input|`inputs` tokens)"
)
_BUDGETS = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
_LEAST_ROOM = 256  # output tokens below which a smaller budget is not tried any more
_BYTES_PER_TOKEN = 2.0  # of prompts, until an answer tells of fewer; low, so that the room is not overrated
_TEMPLATE_TOKENS = 64  # that a chat template adds, at most


class HttpPool(Pool):
    """A pool whose calls one HttpCaller sends."""

    def __init__(self, caller: HttpCaller):
        self.caller = caller

    def stop(self) -> None:
        """Sends no further call."""
        self.caller.stop()

    async def close(self) -> None:
        """Closes the connections."""
        await self.caller.close()

    def statistics(self) -> dict[str, Any]:
        """`HttpCaller.statistics`."""
        return self.caller.statistics()


class OpenAIPool(HttpPool):
    """Servers that speak OpenAI's chat completions, at any base URL."""

    def __init__(self, caller: HttpCaller, place: PoolOptions):
        super().__init__(caller)
        self.place, self.model = place, place.model
        self.context = place.context
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._no_system = False  # the model's template has no system role

    async def start(self) -> None:
        """Finds the API below each URL; refuses a server that lists other models; learns the context."""
        contexts = [self.place.context]
        for server in self.caller.servers:
            listed = await find_api(self.caller, server.url)
            row = check_model(self.caller.clean(server.url), listed, self.model) if listed else {}
            contexts.append(_context(row) or await self._context_of_server(server.url))
        told = [context for context in contexts if context]
        self.context = min(told, default=0)

    async def _context_of_server(self, url: str) -> int:
        """From llama.cpp's /props or TGI's /info; 0 where there is neither, as at hosted APIs."""
        for path in ("/props", "/info"):
            try:
                page = await self.caller.get(url, path, tries=1, prefix="")
            except PoolError:
                continue
            if isinstance(page, Mapping):
                settings = page.get("default_generation_settings")
                if found := _context(settings if isinstance(settings, Mapping) else {}) or _context(page):
                    return found
        return 0

    async def generate(self, request: Request) -> Answer:
        """One call. A prompt that leaves no room, and a request that is refused, are finish reasons of their own."""
        size = sum(len(text.encode(errors="replace")) for _, text in request.messages)
        tokens = _TEMPLATE_TOKENS + int(size / self._bytes_per_token)
        room = self.context - tokens if self.context else request.sampling.max_tokens
        budget = min(request.sampling.max_tokens, max(room, _LEAST_ROOM))
        while True:
            reply = await self._ask(request, budget, tokens)
            if isinstance(reply, Answer):
                text_tokens = max(1, reply.prompt_tokens - _TEMPLATE_TOKENS)
                self._bytes_per_token = min(self._bytes_per_token, size / text_tokens)
                return reply
            smaller = self._smaller(reply, budget)
            if not smaller:
                return Answer(reply.words, reply.reason, model=self.model)
            budget = smaller

    def _smaller(self, refusal: Refusal, budget: int) -> int:
        """Output tokens that fit where prompt and output were too long together; 0 where the prompt alone is."""
        said = refusal.words.lower()
        if refusal.reason != PROMPT_TOO_LONG or budget <= _LEAST_ROOM:
            return 0
        context, prompt = _TOLD_CONTEXT.search(said), _TOLD_PROMPT.search(said)
        if context and prompt:
            fits = int(context[1]) - int(prompt[1]) - 1
            return fits if 0 < fits < budget else 0
        counted = re.search(r"completion|max_(completion_|new_|output_)?tokens|requested", said)
        return max(_LEAST_ROOM, budget // 2) if counted else 0

    async def _ask(self, request: Request, budget: int, tokens: int) -> Answer | Refusal:
        """One call, said again without a system role where the model's template has none."""
        while True:
            folded = self._no_system
            body = self.payload(replace(request, messages=without_system(request.messages)) if folded else request)
            for name in body.keys() & _BUDGETS:
                body[name] = min(int(body[name] or budget), budget)
            try:
                reply = await self.caller.post(
                    "/chat/completions", body, self._read, request.problem_id, family=request.agent, tokens=tokens
                )
                refused = reply.words if isinstance(reply, Refusal) else ""
            except SetupError as error:
                if folded or not NO_SYSTEM.search(str(error).lower()):
                    raise
                refused = str(error)
            if not refused or folded or not NO_SYSTEM.search(refused.lower()):
                return reply
            if request.messages[0][0] != "system":
                return reply
            self._no_system = True

    def payload(self, request: Request) -> dict[str, Any]:
        """The body of the POST: the usual fields, less `pool.omit`, with `pool.extra_body` over them."""
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
        extra = dict(self.place.extra_body)
        if extra.keys() & _BUDGETS:  # one name for the budget: servers refuse two
            del body["max_tokens"]
        return {name: value for name, value in (body | extra).items() if name not in self.place.omit}

    def _read(self, body: Any) -> Answer:
        return chat_answer(body, self.model)


def without_system(messages: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The messages with the system text at the head of the user's turn, for templates without a system role."""
    if not messages or messages[0][0] != "system":
        return messages
    (_, system), (role, text), *rest = messages
    return ((role, f"{system}\n\n{text}"), *rest)


async def find_api(caller: HttpCaller, url: str) -> list[dict[str, Any]]:
    """Finds where below a URL the API is, and tells the caller; the models that it lists (none: no list).

    `/v1` is added to a URL without a version in its path, where the API answers there.
    """
    path = re.sub(r"^https?://[^/?]*", "", url.partition("?")[0])
    prefixes = [""] if _VERSION.search(path) else ["/v1", ""]
    for prefix in prefixes:
        caller.prefixes[url] = prefix
        page = await caller.get(url, "/models", absent=(400, 403, 404, 405, 410, 501))
        if page is None:
            continue
        rows = page.get("data", page.get("models")) if isinstance(page, dict) else page
        if not isinstance(rows, list):
            place = caller.clean(caller.address(url, "/models"))
            raise PoolError(f"{place}: no list of models; is that an OpenAI-compatible server?")
        return [row if isinstance(row, dict) else {"id": row} for row in rows]
    for prefix in prefixes:  # some hosted APIs list no models, or not to every key
        caller.prefixes[url] = prefix
        if await caller.exists(url, "/chat/completions"):
            return []
    places = " nor ".join(f"{prefix}/chat/completions" for prefix in prefixes)
    raise SetupError(caller.clean(f"{url}: neither /models nor {places} is there"))


def check_model(url: str, listed: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """The row of `model` in a server's list; UserError where the server serves others only.

    Names are taken as they come: a list may add `models/` before a name or `:latest` after it, and lack a `:variant`.
    """
    for row in listed:
        for name in _names(row):
            if {model, model.partition(":")[0]} & {name, name.removeprefix("models/"), f"models/{name}"}:
                return row
            if model == name.removesuffix(":latest"):
                return row
    served = " and ".join(repr(name) for row in listed[:5] for name in list(_names(row))[:1])
    raise UserError(f"pool.model: {model!r}: {url} serves {served or 'no model'}")


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    for value in (row.get("id"), row.get("name"), row.get("model"), *(row.get("aliases") or ())):
        if isinstance(value, str):
            yield value


def _context(row: Mapping[str, Any]) -> int:
    """The context that a description of a model or server tells, in whichever field; 0 where it tells none."""
    for place in (row, row.get("meta"), row.get("top_provider"), row.get("limits")):
        if isinstance(place, Mapping):
            for name in _CONTEXTS:
                if isinstance(value := place.get(name), int) and value > 0:
                    return value
    return 0
