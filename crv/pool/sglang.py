"""SGLang's native `/generate`: token ids in (our tokenizer, our chat template), text and token counts out."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.pool.base import FAILED, PROMPT_TOO_LONG, Answer, PoolError, Request
from crv.pool.http import FailedError, HttpCaller

_PROBE = "The answer is \\boxed{\\frac{3}{4}}; 12,345 × 6 ≠ 7.\n\n<think> é 数学"


class SglangPool:
    """SGLang servers of one model, or the router before them; `model`: its served name, `tokenizer`: its own folder."""

    def __init__(self, caller: HttpCaller, model: str, tokenizer: str, context: int = 0, weights: str = ""):
        from transformers import AutoTokenizer

        if not Path(tokenizer).is_dir():
            raise UserError(
                f"pool.tokenizer: {tokenizer!r}: no such folder; pool.kind sglang needs the model's tokenizer"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if not self.tokenizer.chat_template:
            raise UserError(f"pool.tokenizer: {tokenizer}: has no chat template; give the tokenizer of a chat model")
        self.caller, self.model, self.context, self.weights = caller, model, context, weights
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="tokenizer"
        )  # a tokenizer must not be used by two at once

    async def start(self) -> None:
        """Asks the server who it is: refuses another model, version of weights, tokenizer, or a smaller context."""
        for url in self.caller.urls:
            await check_model(self.caller, url, self.model)
            info = await self.caller.get(url, "/get_model_info")
            if self.weights and info.get("weight_version") != self.weights:
                there = info.get("weight_version")
                raise UserError(f"pool.weights: {self.weights!r}: {url} has weights of version {there!r}")
            context = await self._served_context(url)
            if context and self.context > context:
                raise UserError(f"pool.context: {self.context}: {url} has a context of {context} tokens")
            self.context = self.context or context
            if not self.context:
                raise UserError(f"pool.context: 0: {url} does not tell its context length; give it")
            await self._check_tokenizer(url)

    async def _served_context(self, url: str) -> int:
        """The smallest context behind a URL, 0 where none tells (a router does not, its workers do)."""
        listed = await self.caller.get(url, "/v1/models")
        lengths = [model.get("max_model_len") for model in listed["data"]]
        if not any(lengths):
            for worker in await _worker_urls(self.caller, url):
                lengths += [m.get("max_model_len") for m in (await self.caller.get(worker, "/v1/models"))["data"]]
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
        tokens = await self.caller.post(
            "/generate", payload, lambda body: body["meta_info"]["input_token_logprobs"], only=url
        )
        theirs, mine = [int(token[1]) for token in tokens], self.tokenizer.encode(_PROBE, add_special_tokens=False)
        if theirs != mine:
            raise UserError(
                f"pool.tokenizer: not the server's: a text is {len(mine)} tokens {mine[:6]} here, {theirs[:6]} there"
            )

    def render(self, request: Request) -> list[int]:
        """The token ids of a request's prompt: our chat template, generation prompt included."""
        messages = [{"role": role, "content": text} for role, text in request.messages]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return list(ids)

    async def generate(self, request: Request) -> Answer:
        """One call. A prompt that leaves no room, and a call that alone keeps failing, are finish reasons of their own.

        The length is checked here: a router counts a server's 4xx as that server's failure.
        """
        ids = await asyncio.get_running_loop().run_in_executor(self._thread, self.render, request)
        room = self.context - len(ids) - 1 if self.context else request.sampling.max_tokens
        if room < 1:
            return Answer("", PROMPT_TOO_LONG, prompt_tokens=len(ids), model=self.model)
        try:
            return await self.caller.post("/generate", self.payload(request, ids, room), self._read, request.problem_id)
        except FailedError:
            return Answer("", FAILED, prompt_tokens=len(ids), model=self.model)

    def payload(self, request: Request, ids: Sequence[int], room: int) -> dict[str, Any]:
        """The body of the POST: sampling, seed and the output's schema."""
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
        return {"input_ids": list(ids), "sampling_params": sampling}

    def _read(self, body: Any) -> Answer:
        meta = body["meta_info"]
        reason = meta["finish_reason"]["type"]
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason {reason}")  # an abort is no answer: the call is sent again
        counts = (int(meta["prompt_tokens"]), int(meta["completion_tokens"]), int(meta.get("cached_tokens") or 0))
        return Answer(
            str(body["text"]), reason, *counts, model=self.model, seconds=float(meta.get("e2e_latency") or 0.0)
        )

    async def close(self) -> None:
        """Closes the connections."""
        self._thread.shutdown()
        await self.caller.close()

    def statistics(self) -> dict[str, Any]:
        """`HttpCaller.statistics`."""
        return self.caller.statistics()


async def check_model(caller: HttpCaller, url: str, model: str) -> None:
    """Refuses a server that does not serve `model`; PoolError where it is no such server at all."""
    listed = await caller.get(url, "/v1/models")
    try:
        served = [str(row["id"]) for row in listed["data"]]
    except (KeyError, TypeError) as error:
        raise PoolError(
            f"{url}/v1/models: no list of models; is that an SGLang or OpenAI-compatible server?"
        ) from error
    if model not in served:
        raise UserError(f"pool.model: {model!r}: {url} serves {' and '.join(map(repr, served[:5]))}")


async def _worker_urls(caller: HttpCaller, url: str) -> list[str]:
    """The workers behind an sglang-router; none where the server is no router."""
    try:
        workers = (await caller.get(url, "/workers"))["workers"]
        return [str(worker["url"]) for worker in workers]
    except (PoolError, KeyError, TypeError):
        return []
