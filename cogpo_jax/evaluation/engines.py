"""Who answers: the in-process sampler on any mesh, or a server of CRV's pool."""

import asyncio
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from cogpo_jax.errors import RunError, UserError
from cogpo_jax.evaluation.tasks import Problem
from cogpo_jax.text import TextFormat, encode_prompts, load_tokenizer, prompt_text


@dataclasses.dataclass(frozen=True)
class Ask:
    """One sample to be made of one problem."""

    problem: Problem
    sample: int

    def number(self, seed: int = 0) -> int:
        """31 bits that decide the draws: the same for a problem and sample wherever in a file, in any batch."""
        text = f"{seed} {self.problem.id} {self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How responses are drawn; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Reply:
    """A finished response. finish_reason: stop | length, or why there is none (then `response` is None)."""

    response: str | None
    tokens: int | None
    finish_reason: str | None


class Engine(Protocol):
    """Makes responses."""

    def describe(self) -> dict[str, Any]:
        """What decides the responses: a folder is only continued by the same."""
        ...

    def check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        """Raises UserError, before any work, where it cannot answer these problems so."""
        ...

    def generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> None:
        """Answers every ask; `got` hears each as it is finished, in no order."""
        ...


@dataclasses.dataclass
class StudentEngine:
    """The student of a Hugging Face folder, in this process; `slots` rows are decoded at a time."""

    folder: str
    compute_dtype: str = ""
    tensor: int = 1
    slots: int = 16
    text_format: TextFormat = dataclasses.field(default_factory=TextFormat)
    sampler: Any = None  # the trainer's; else the folder's weights are read when first needed

    def describe(self) -> dict[str, Any]:
        """The folder and its weights, the arithmetic, the text format."""
        form = dataclasses.asdict(self.text_format)
        return {
            "engine": "student",
            "model": Path(self.folder).resolve().name,
            "weights": fingerprint(self.folder),
            "dtype": self.compute_dtype or "default",
            "text_format": form,
        }

    def check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        """Refuses prompts that leave no room for the token limit in the student's positions."""
        from cogpo_jax.student.config import StudentConfig

        self._tokenizer = load_tokenizer(self.folder)
        limit = StudentConfig.from_hf(Path(self.folder) / "config.json").max_position_embeddings
        check_positions(self._encode(problems), [p.id for p in problems], decoding.max_new_tokens, limit)

    def _encode(self, problems: Sequence[Problem]) -> list[list[int]]:
        texts = []
        for problem in problems:
            turns = json.dumps([{"role": role, "content": text} for role, text in problem.messages])
            raw = problem.messages[-1][1]
            texts.append(prompt_text(self._tokenizer, raw, "", turns, text_format=self.text_format))
        return encode_prompts(self._tokenizer, texts)

    def generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> None:
        """All asks through the sampler at once: it keeps its slots full."""
        from cogpo_jax.student.generate_rows import load_sampler, stop_ids
        from cogpo_jax.student.sampling import Sampling

        if self.sampler is None:
            _, self.sampler = load_sampler(self.folder, self.compute_dtype, self.tensor, self.slots)
        stops = stop_ids(Path(self.folder), self._tokenizer, self.text_format)
        stream: Iterator[tuple[int, Any]] = self.sampler.stream(
            self._encode([ask.problem for ask in asks]),
            decoding.max_new_tokens,
            stops,
            Sampling(decoding.temperature, 0, decoding.top_p),
            seed=decoding.seed,
            rows=[ask.number() for ask in asks],
        )
        for i, generated in stream:
            response = self._tokenizer.decode(generated.tokens, skip_special_tokens=False)
            got(asks[i], Reply(response, len(generated.tokens), generated.finish_reason))


def check_positions(prompts: Sequence[Sequence[int]], ids: Sequence[str], new: int, limit: int) -> None:
    """Raises UserError where a prompt and its `new` tokens are more than the model's `limit` positions."""
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) + new > limit:
        count = sum(len(prompt) + new > limit for prompt in prompts)
        raise UserError(
            f"--max_new_tokens: {new}: with the {len(prompts[longest])} tokens of problem {ids[longest]!r} more than "
            f"the model's {limit} positions ({count} of {len(prompts)} prompts do not fit); "
            f"give at most {limit - len(prompts[longest])}"
        )


def fingerprint(folder: str) -> str:
    """Tells one model folder from another: its config, tokenizer, and pieces of every weight file."""
    digest = hashlib.sha256()
    files = sorted(Path(folder).glob("*.json")) + sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(f"--model: {folder}: no model there; give a folder in Hugging Face's layout")
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as f:
            for place in sorted({0, size // 3, size // 2, max(0, size - (1 << 16))}):
                f.seek(place)
                digest.update(f.read(1 << 16))
    return digest.hexdigest()[:16]


@dataclasses.dataclass
class PoolEngine:
    """A server of CRV's pool: `kind` openai (llama.cpp, vLLM, any) or sglang (which needs `tokenizer`, a folder)."""

    url: str
    model: str = ""
    kind: str = "openai"
    tokenizer: str = ""
    concurrency: int = 16
    timeout: float = 1800.0
    retries: int = 3
    api_key: str = ""  # name of an environment variable

    def __post_init__(self) -> None:
        if self.kind not in ("openai", "sglang"):
            raise UserError(f"--pool.kind: {self.kind!r}: must be openai or sglang")
        if self.concurrency < 1:
            raise UserError(f"--pool.concurrency: {self.concurrency}: must be at least 1")
        if self.api_key and not os.environ.get(self.api_key):
            raise UserError(f"--pool.api_key: {self.api_key}: no such environment variable; set it to the key")

    def describe(self) -> dict[str, Any]:
        """The model's served name; where it is served may change between two starts."""
        return {"engine": f"pool {self.kind}", "model": self.model}

    def _caller(self) -> Any:
        from crv.pool.http import HttpCaller

        headers = {"Authorization": f"Bearer {os.environ[self.api_key]}"} if self.api_key else None
        urls = [url.strip().rstrip("/").removesuffix("/v1") for url in self.url.split(",")]
        return HttpCaller(urls, self.concurrency, self.timeout, self.retries, headers)

    def _client(self) -> Any:
        from crv.pool.openai import OpenAIPool
        from crv.pool.sglang import SglangPool

        if self.kind == "openai":
            return OpenAIPool(self._caller(), self.model)
        return SglangPool(self._caller(), self.model, self.tokenizer)

    def check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        """Refuses a server that does not answer, serves another model, or has too small a context."""
        from crv.pool.base import PoolError

        try:
            asyncio.run(self._check(problems, decoding))
        except PoolError as error:
            raise UserError(f"--pool.url: {error}") from error

    async def _check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        caller = self._caller()
        try:
            for url in caller.urls:
                listed = (await caller.get(url, "/v1/models")).get("data", [])
                served = [str(model.get("id")) for model in listed]
                if not self.model and len(served) == 1:
                    self.model = served[0]
                if self.model not in served:
                    raise UserError(f"--pool.model: {self.model!r}: {url} serves {' and '.join(map(repr, served))}")
        finally:
            await caller.close()
        client = self._client()
        try:
            await client.start()
            if self.kind == "sglang":
                lengths = [client.render(self._request(Ask(p, 0), decoding)) for p in problems]
                check_positions(lengths, [p.id for p in problems], decoding.max_new_tokens + 1, client.context)
        finally:
            await client.close()

    def _request(self, ask: Ask, decoding: Decoding) -> Any:
        from crv.pool.base import Request, Sampling

        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.max_new_tokens)
        return Request(
            "student", {"problem": ask.problem.problem}, ask.sample, ask.problem.prompt_digest, ask.problem.messages,
            self.model, sampling, seed=ask.number(decoding.seed), problem_id=ask.problem.id,
        )  # fmt: skip

    def generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> None:
        """Asks `concurrency` at a time. Raises RunError where calls were lost: what came is kept by the caller."""
        from crv.pool.base import PoolError

        try:
            failed = asyncio.run(self._generate(asks, decoding, got))
        except PoolError as error:
            raise RunError(f"{error}; what is finished is kept: run the same command again") from error
        if failed:
            raise RunError(f"{failed} of {len(asks)} calls failed again and again; run the same command for them")

    async def _generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> int:
        from crv.pool.base import FAILED, PROMPT_TOO_LONG

        client, waiting, failed = self._client(), iter(asks), 0
        await client.start()

        async def work() -> None:
            nonlocal failed
            for ask in waiting:
                answer = await client.generate(self._request(ask, decoding))
                if answer.finish_reason == FAILED:
                    failed += 1
                elif answer.finish_reason == PROMPT_TOO_LONG:
                    got(ask, Reply(None, None, PROMPT_TOO_LONG))
                else:
                    got(ask, Reply(answer.text, answer.output_tokens or None, answer.finish_reason))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await client.close()
        return failed
