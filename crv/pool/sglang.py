"""SGLang's native `/generate`: token ids in (our tokenizer, our chat template), text and token counts out."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.options import PoolOptions
from crv.pool.base import PROMPT_TOO_LONG, Answer, PoolError, Request
from crv.pool.http import HttpCaller
from crv.pool.openai import HttpPool, check_model, without_system
from crv.pool.replies import LaterError, Refusal, finish_reason, sort_reply, with_thought

_PROBE = "The answer is \\boxed{\\frac{3}{4}}; 12,345 × 6 ≠ 7.\n\n<think> é 数学"
_SYSTEM = "Be brief, probe 7319."


class SglangPool(HttpPool):
    """SGLang servers of one model, or the router before them; the place's tokenizer is the model's own folder."""

    def __init__(self, caller: HttpCaller, place: PoolOptions):
        super().__init__(caller)
        self.place, self.model, self.context = place, place.model, place.context
        extra = dict(place.extra_body)
        self._template = dict(extra.pop("chat_template_kwargs", {}))  # switches of the chat template: we render it
        if "reasoning_effort" in extra:
            self._template["reasoning_effort"] = extra.pop("reasoning_effort")
        self._extra = extra
        self.tokenizer = _tokenizer(place.tokenizer)
        self._no_system = self._lacks_system_role()
        # A tokenizer must not be used by two threads at once.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def _lacks_system_role(self) -> bool:
        """Whether the chat template refuses or drops a system message; UserError where it renders no chat at all."""
        try:
            if _SYSTEM in self._text((("system", _SYSTEM), ("user", "What is 1 + 1?"))):
                return False
        except Exception:
            pass
        try:
            self._text((("user", "What is 1 + 1?"),))
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"pool.tokenizer: {self.place.tokenizer}: its chat template renders no user message ({words})"
            ) from error
        return True

    def _text(self, messages: tuple[tuple[str, str], ...]) -> str:
        rows = [{"role": role, "content": text} for role, text in messages]
        return str(
            self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True, **self._template)
        )

    async def start(self) -> None:
        """Asks the server who it is: refuses another model, version of weights, tokenizer, or a smaller context."""
        for url in (server.url for server in self.caller.servers):
            listed = await _models(self.caller, url)
            check_model(url, listed, self.model)
            info = await self.caller.get(url, "/get_model_info") or {}
            if self.place.weights and info.get("weight_version") != self.place.weights:
                there = info.get("weight_version")
                raise UserError(f"pool.weights: {self.place.weights!r}: {url} has weights of version {there!r}")
            context = await self._served_context(url, listed)
            if context and self.context > context:
                raise UserError(f"pool.context: {self.context}: {url} has a context of {context} tokens")
            self.context = self.context or context
            if not self.context:
                raise UserError(f"pool.context: 0: {url} does not tell its context length; give it")
            await self._check_tokenizer(url)

    async def _served_context(self, url: str, listed: list[dict[str, Any]]) -> int:
        """The smallest context behind a URL, 0 where none tells (a router does not, its workers do)."""
        lengths = [model.get("max_model_len") for model in listed]
        if not any(lengths):
            for worker in await _worker_urls(self.caller, url):
                lengths += [model.get("max_model_len") for model in await _models(self.caller, worker)]
        return min((int(length) for length in lengths if length), default=0)

    async def _check_tokenizer(self, url: str) -> None:
        """Compares token ids: the server reads a text with its tokenizer, and its log-probs tell how.

        Text is sent, not ids: an id beyond the model's vocabulary kills an SGLang server.
        """
        payload = {
            "text": _PROBE,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        body = await self.caller.post("/generate", payload, lambda body: body, only=url)
        try:
            meta = (body[0] if isinstance(body, list) else body)["meta_info"]
            theirs = [int(token[1]) for token in meta["input_token_logprobs"]]
            theirs[0]
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"pool.kind: sglang: {url} answers without input_token_logprobs, by which its tokenizer is compared"
                " with ours; use another version of SGLang, or pool.kind=openai"
            ) from error
        mine = self.tokenizer.encode(_PROBE, add_special_tokens=False)
        if theirs != mine:
            raise UserError(
                f"pool.tokenizer: not the server's: a text is {len(mine)} tokens {mine[:6]} here, {theirs[:6]} there"
            )

    def render(self, request: Request) -> list[int]:
        """The token ids of a request's prompt: our chat template, generation prompt included."""
        messages = without_system(request.messages) if self._no_system else request.messages
        return list(self.tokenizer.encode(self._text(messages), add_special_tokens=False))

    async def generate(self, request: Request) -> Answer:
        """One call. A prompt that leaves no room, and a request that is refused, are finish reasons of their own.

        The length is checked here: a router counts a server's 4xx as that server's failure.
        """
        ids = await asyncio.get_running_loop().run_in_executor(self._thread, self.render, request)
        room = self.context - len(ids) - 1 if self.context else request.sampling.max_tokens
        if room < 1:
            return Answer("", PROMPT_TOO_LONG, prompt_tokens=len(ids), model=self.model)
        reply = await self.caller.post(
            "/generate",
            self.payload(request, ids, room),
            self._read,
            request.problem_id,
            family=request.agent,
            tokens=len(ids),
        )
        if isinstance(reply, Refusal):
            return Answer(reply.words, reply.reason, prompt_tokens=len(ids), model=self.model)
        return reply

    def payload(self, request: Request, ids: Sequence[int], room: int) -> dict[str, Any]:
        """The body of the POST: sampling, seed and the output's schema; `pool.extra_body` and `pool.omit` mend it."""
        sampling: dict[str, Any] = {
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "max_new_tokens": min(request.sampling.max_tokens, room),
            "sampling_seed": request.seed,
        }
        if request.schema:
            sampling["json_schema"] = request.schema
        if request.regex:
            sampling["regex"] = request.regex
        extra = {name: value for name, value in self._extra.items() if name != "sampling_params"}
        sampling |= self._extra.get("sampling_params", {})
        sampling = {name: value for name, value in sampling.items() if name not in self.place.omit}
        return {"input_ids": list(ids), "sampling_params": sampling, **extra}

    def _read(self, body: Any) -> Answer:
        body = body[0] if isinstance(body, list) else body
        meta = body["meta_info"]
        ended = meta.get("finish_reason")
        if isinstance(ended, dict) and ended.get("type") == "abort" and str(ended.get("status_code", "")).isdigit():
            error = {"error": {"message": str(ended.get("message")), "code": ended["status_code"]}}
            reply = sort_reply(int(ended["status_code"]), {}, json.dumps(error).encode(), dict)
            if isinstance(reply, Refusal) and reply.sure:
                return Answer(reply.words, reply.reason, model=self.model)
            raise LaterError("abort")
        text, reason = with_thought(str(body["text"] or ""), finish_reason(ended))
        prompt, output, cached = (int(meta.get(f"{name}_tokens") or 0) for name in ("prompt", "completion", "cached"))
        seconds = float(meta.get("e2e_latency") or 0.0)
        return Answer(text, reason, prompt, output, cached, model=self.model, seconds=seconds)

    async def close(self) -> None:
        """Closes the connections, and ends the tokenizer's thread."""
        self._thread.shutdown()
        await super().close()


def _tokenizer(folder: str) -> Any:
    """The served model's tokenizer; UserError where there is none with a chat template in the folder."""
    if not folder or not Path(folder).is_dir():
        raise UserError(f"pool.tokenizer: {folder!r}: no such folder; pool.kind sglang needs the model's tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a broken file makes the library raise
        words = " ".join(str(error).split())[:200]
        raise UserError(f"pool.tokenizer: {folder}: holds no tokenizer that can be read ({words})") from error
    if not tokenizer.chat_template:
        raise UserError(f"pool.tokenizer: {folder}: has no chat template; give the tokenizer of a chat model")
    return tokenizer


async def _models(caller: HttpCaller, url: str) -> list[dict[str, Any]]:
    listed = await caller.get(url, "/v1/models")
    try:
        return [row for row in listed["data"] if row["id"]]
    except (KeyError, TypeError) as error:
        raise PoolError(f"{url}/v1/models: no list of models; is that an SGLang server?") from error


async def _worker_urls(caller: HttpCaller, url: str) -> list[str]:
    """The workers behind an sglang-router; none where the server is no router."""
    try:
        workers = (await caller.get(url, "/workers"))["workers"]
        return [str(worker["url"]) for worker in workers]
    except (PoolError, KeyError, TypeError):
        return []
