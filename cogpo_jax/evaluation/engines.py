"""Who answers: the in-process sampler on any mesh, or a server of CRV's pool."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cogpo_jax.errors import RunError, UserError
from cogpo_jax.evaluation.tasks import Problem
from cogpo_jax.text import TextFormat, encode_prompts, load_tokenizer, prompt_text
from crv.options import PoolOptions
from crv.pool.base import PoolError, Request, Sampling
from crv.pool.http import FailedError
from crv.pool.openai import find_api
from crv.pool.routing import open_client


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
    positions: int = 0  # 0: as the folder's config.json says

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
        config = Path(self.folder) / "config.json"
        limit = self.positions or StudentConfig.from_hf(config).max_position_embeddings
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
        from cogpo_jax.student.sampling import Sampling as Choice

        if self.sampler is None:
            _, self.sampler = load_sampler(self.folder, self.compute_dtype, self.tensor, self.slots)
        stops = stop_ids(Path(self.folder), self._tokenizer, self.text_format)
        stream = self.sampler.stream(
            self._encode([ask.problem for ask in asks]),
            decoding.max_new_tokens,
            stops,
            Choice(decoding.temperature, 0, decoding.top_p),
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
    """A server of CRV's pool; `place` says which. Without a model's name it is the only one that is served."""

    place: PoolOptions

    def describe(self) -> dict[str, Any]:
        """The model's served name; where it is served may change between two starts."""
        return {"engine": f"pool {self.place.kind}", "model": self.place.model}

    def check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        """Refuses a server that does not answer, serves another model, or has too small a context."""
        try:
            asyncio.run(self._check(problems, decoding))
        except PoolError as error:
            raise UserError(f"--pool.url: {error}") from error

    async def _check(self, problems: Sequence[Problem], decoding: Decoding) -> None:
        async with _client(self.place) as first:
            if not self.place.model:
                url = first.caller.servers[0].url
                served = [str(model.get("id", model.get("name"))) for model in await find_api(first.caller, url)]
                if len(served) != 1:
                    raise UserError(
                        f"--pool.model: missing: {url} serves {' and '.join(served) or 'no list of models'}"
                    )
                self.place = dataclasses.replace(self.place, model=served[0])
        async with _client(self.place) as client:
            await client.start()
            context, new = client.context, decoding.max_new_tokens
            if self.place.kind == "sglang":
                prompts = [client.render(self._request(Ask(p, 0), decoding)) for p in problems]
                check_positions(prompts, [p.id for p in problems], new + 1, context)
            elif context and new >= context:
                raise UserError(f"--max_new_tokens: {new}: {self.place.url} has a context of {context} tokens")

    def _request(self, ask: Ask, decoding: Decoding) -> Request:
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.max_new_tokens)
        problem, seed = ask.problem, ask.number(decoding.seed)
        inputs = {"problem": problem.problem}
        return Request(
            "student", inputs, ask.sample, problem.prompt_digest, problem.messages, self.place.model, sampling,
            seed=seed, problem_id=problem.id,
        )  # fmt: skip

    def generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> None:
        """Asks `place.concurrency` at a time. Raises RunError where calls were lost: the caller keeps what came."""
        try:
            failed = asyncio.run(self._generate(asks, decoding, got))
        except PoolError as error:
            raise RunError(f"{error}; what is finished is kept: run the same command again") from error
        if failed:
            raise RunError(f"{failed} of {len(asks)} calls failed again and again; run the same command for them")

    async def _generate(self, asks: Sequence[Ask], decoding: Decoding, got: Callable[[Ask, Reply], None]) -> int:
        waiting, failed = iter(asks), 0
        async with _client(self.place) as client:
            await client.start()

            async def work() -> None:
                nonlocal failed
                for ask in waiting:
                    try:
                        answer = await client.generate(self._request(ask, decoding))
                    except FailedError:
                        failed += 1
                        continue
                    text = answer.text if answer.finish_reason in ("stop", "length") else None
                    got(ask, Reply(text, answer.output_tokens or None, answer.finish_reason))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.place.concurrency):
                        group.create_task(work())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return failed


@contextlib.asynccontextmanager
async def _client(place: PoolOptions) -> AsyncIterator[Any]:
    """The pool's client of a place, closed at the end of the block."""
    pool = open_client(place)
    try:
        yield pool
    finally:
        await pool.close()
