"""The options of a CRV run, declared once: default, meaning, type and range of every field (see crv/config.py)."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.config import option, read_config
from crv.pool.base import Sampling
from crv.prompts import AGENTS


@dataclass(frozen=True)
class PoolOptions:
    """Where answers come from."""

    kind: str = option("recorded", "who answers", choices=("recorded", "sglang", "openai"))
    url: str = option("", "base URL of the server or router, any path; of several workers, with commas", free=True)
    recordings: str = option("", "recorded: the file of answers")
    model: str = option("recorded", "the model's name, as the server lists it; part of every call's key")
    tokenizer: str = option("", "tokenizer folder; sglang: renders the prompts, the server's own; openai: not needed")
    weights: str = option("", "sglang: the weight version that the server must have; empty = any")
    context: int = option(0, "tokens of context, prompt and answer; 0 = as the server says", low=0)
    api_key: str = option("", "name of the environment variable that holds the key, never the key", free=True)
    concurrency: int = option(64, "most requests in flight, to each URL", low=1, free=True)
    timeout: float = option(600.0, "seconds a call may take", low=0.001, free=True)
    retries: int = option(8, "times that a call is sent again while other calls succeed", low=0, free=True)
    gpus: int = option(0, "behind the pool: for the count of GPU-hours", low=0, free=True)
    key_header: str = option("Authorization", "header of the key; any other than Authorization: no Bearer", free=True)
    extra_body: Mapping[str, Any] = option({}, "fields added to every request, e.g. {'reasoning_effort': 'low'}")
    omit: tuple[str, ...] = option((), "fields left out of every request, e.g. seed or temperature")
    requests_per_minute: int = option(0, "most requests a minute; 0 = no limit", low=0, free=True)
    tokens_per_minute: int = option(0, "most tokens a minute, in and out; 0 = no limit", low=0, free=True)
    price_in: float = option(0.0, "of a million prompt tokens, any currency, for the forecast", low=0, free=True)
    price_out: float = option(0.0, "of a million output tokens, thoughts included", low=0, free=True)


@dataclass(frozen=True)
class AgentOptions:
    """What one agent has of its own; None: as all."""

    kind: str | None = option(None, "as pool.kind", choices=("sglang", "openai"))
    model: str | None = option(None, "its model's name")
    url: str | None = option(None, "its server; the pool's key is not sent there", free=True)
    api_key: str | None = option(None, "name of the environment variable with its server's key", free=True)
    tokenizer: str | None = option(None, "its tokenizer folder")
    context: int | None = option(None, "as pool.context", low=0)
    extra_body: Mapping[str, Any] | None = option(None, "as pool.extra_body, instead of it")
    omit: tuple[str, ...] | None = option(None, "as pool.omit, instead of it")
    temperature: float | None = option(None, "as sampling.temperature", low=0.0)
    top_p: float | None = option(None, "as sampling.top_p", low=0.0, high=1.0)
    max_tokens: int | None = option(None, "as sampling.max_tokens", low=1)


@dataclass(frozen=True)
class SolverOptions:
    """Solutions asked for where the original is missing or wrong."""

    attempts: int = option(1, "solutions, until one is right", low=0)
    for_wrong: int = option(0, "further ones, until one is wrong: a natural mistake", low=0)


@dataclass(frozen=True)
class VerifierOptions:
    """Blind re-solves: a rewrite must lead a model that was not told the answer to it."""

    asked: int = option(1, "re-solves of a rewrite", low=1)
    needed: int = option(1, "how many of them must reach the answer", low=1)
    brief: bool = option(False, "the output may only be the final statement")


@dataclass(frozen=True)
class CorrupterOptions:
    """Wrong texts made from right ones."""

    attempts: int = option(1, "tries at a wrong text that is proved wrong", low=0)


@dataclass(frozen=True)
class ColumnsOptions:
    """What the input's columns are; empty and auto: as they look, which is said before any call (docs/data.md)."""

    preset: str = option("", "name of a known set; general = by plain names")
    map: str = option("", "ROLE=COLUMN, ...: problem, answer, cot, id, model, source, difficulty; cot=thought+solution")
    gold: str = option("auto", "where the gold answer is: auto | NAME | box(NAME) | hash(NAME) (after ####) | box(cot)")
    cot: str = option("auto", "where the chain of thought is: auto | NAME | NAME+NAME | none = left out on purpose")
    strict: bool = option(False, "the first bad row ends the run, instead of being dropped and counted")


@dataclass(frozen=True)
class HygieneOptions:
    """What is mended and what is dropped before any call, counted by reason. Everything off by default."""

    repair: bool = option(False, "text that lost its backslashes (a tab and `imes` for \\times) is mended, and counted")
    duplicates: bool = option(False, "problems equal but for case, spaces and dollars: the first stays")
    near_duplicates: float = option(
        0.0, "Jaccard similarity of 5-gram shingles from which a problem is repeated; 0 = off", low=0.0, high=1.0
    )
    against: tuple[str, ...] = option(
        (), "evaluation sets, as `input` or questions without answers: overlapping problems are dropped"
    )
    ngram: int = option(8, "tokens in a row that an overlapping problem shares (words, numbers, symbols)", low=1)
    template_share: float = option(
        0.0, "0.3 also finds the same question with other numbers (and more innocents); 0 = off", low=0.0, high=1.0
    )
    min_characters: int = option(0, "of a problem", low=0)
    max_characters: int = option(0, "of a problem; 0 = no limit", low=0)
    latin_share: float = option(0.0, "least share of Latin letters outside formulas; 0 = any script", low=0.0, high=1.0)


@dataclass(frozen=True)
class BetaOptions:
    """Only written into the authors' JSON."""

    small: float = option(0.1, "of pairs with a small gap", low=1e-6)
    medium: float = option(0.2, "of pairs with a medium gap", low=1e-6)
    large: float = option(0.5, "of pairs with a large gap", low=1e-6)


@dataclass(frozen=True)
class PartitionOptions:
    """Several drivers: each takes the problems whose hash modulo `drivers` is its number; --merge joins them."""

    driver: int = option(0, "this driver's number", low=0)
    drivers: int = option(1, "how many there are", low=1)


@dataclass(frozen=True)
class GraderOptions:
    """Processes that compare answers by algebra."""

    workers: int = option(1, "processes", low=1, free=True)
    seconds: float = option(5.0, "CPU seconds a comparison", low=0.001)
    megabytes: int = option(2048, "memory of a comparison", low=256)


FORMATS = ("authors", "datasets", "array_record")


@dataclass(frozen=True)
class Options:
    """A CRV run."""

    input: str = option("", "file, folder or glob of rows, or hf:NAME[@CONFIG][:SPLIT]; see docs/data.md")
    columns: ColumnsOptions = ColumnsOptions()
    limit: int = option(0, "problems from the start of the input; 0 = all", low=0)
    sample: int = option(0, "a pilot: problems drawn from all of the input, with a forecast; 0 = off", low=0)
    seed: int = option(0, "of sampling and of the held-out split")
    student: str = option("a small language model", "for whom the critic judges, in the prompt's words")
    prompts: str = option("default", "default | authors | a folder of prompt files")
    pool: PoolOptions = PoolOptions()
    sampling: Sampling = dataclasses.field(default=Sampling())
    agents: Mapping[str, AgentOptions] = option(
        {}, "what an agent has of its own; None: as all", choices=(*AGENTS, "student")
    )
    max_rounds: int = option(3, "rethinks of a problem before it is dropped", low=1)
    recritique: bool = option(False, "whether a rewrite must be judged medium again")
    asks: int = option(3, "times a question is asked while its answer is unusable (cut off, empty, unparsable)", low=1)
    solver: SolverOptions = SolverOptions()
    judge: bool = option(False, "a model may call answers the same that no rule can compare (it never proves wrong)")
    verifier: VerifierOptions = VerifierOptions()
    corrupter: CorrupterOptions = CorrupterOptions()
    hygiene: HygieneOptions = HygieneOptions()
    heldout: float = option(50.0, "validation split: number of problems, or their share if below 1", low=0.0)
    shards: int = option(2, "files a split", low=1)
    student_attempts: int = option(
        4, "samples of agents.student (off unless it has a model or url), until one is proved wrong", low=0
    )
    drop_share: float = option(
        0.5,
        "exit code 3 where more than this share of problems is dropped for one reason",
        low=0.0,
        high=1.0,
        free=True,
    )
    balance: str = option(
        "none", "training pairs of a gap with a longer and a shorter chosen", choices=("none", "weight", "drop")
    )
    also: tuple[str, ...] = option((), "further formats beside the records: authors, datasets, array_record")
    beta: BetaOptions = BetaOptions()
    partition: PartitionOptions = PartitionOptions()
    metrics_port: int = option(0, "Prometheus reads http://127.0.0.1:PORT/metrics; 0 = off", low=0, free=True)
    problems_in_flight: int = option(32, "problems walked at a time", low=1, free=True)
    grader: GraderOptions = GraderOptions()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Options":
        """Checks a config (of the shape of `default_config`); raises UserError naming the first bad field."""
        options = read_config(cls, config)
        for agent in ("", *options.agents):
            _check_pool(options.pool_of(agent), f"agents.{agent}" if agent else "pool")
        if options.verifier.needed > options.verifier.asked:
            raise UserError(
                f"verifier.needed: {options.verifier.needed}: more than verifier.asked ({options.verifier.asked})"
            )
        if options.partition.driver >= options.partition.drivers:
            raise UserError(
                f"partition.driver: {options.partition.driver}: must be below partition.drivers"
                f" ({options.partition.drivers})"
            )
        for name in options.also:
            if name not in FORMATS:
                raise UserError(f"also: {name!r}: must be {' or '.join(FORMATS)}")
        if options.heldout >= 1 and options.heldout != int(options.heldout):
            raise UserError(f"heldout: {options.heldout}: a count is a whole number, a share is below 1")
        return options

    def sampling_of(self, agent: str) -> Sampling:
        """How an agent's model is sampled."""
        return dataclasses.replace(self.sampling, **self._own(agent, self.sampling))

    def pool_of(self, agent: str) -> PoolOptions:
        """Where an agent's answers come from: the pool, with what the agent has of its own."""
        mine = self._own(agent, self.pool)
        if "url" in mine:  # a key belongs to its server
            mine = {"api_key": "", **mine}
        return dataclasses.replace(self.pool, **mine)

    def _own(self, agent: str, common: Any) -> dict[str, Any]:
        """What an agent has of its own of the fields of `common`."""
        own = vars(self.agents.get(agent, AgentOptions()))
        return {name: value for name, value in own.items() if name in vars(common) and value is not None}

    def asks_student(self) -> bool:
        """Whether wrong texts are sampled from the student that is to be trained."""
        own = self.agents.get("student", AgentOptions())
        return bool(own.model or own.url) and self.student_attempts > 0

    def identity(self) -> dict[str, Any]:
        """The fields that decide what comes out, flat, as JSON values: what a workdir belongs to."""
        return {name: value for name, value in sorted(_flat(self)) if value is not None}


def claim_workdir(workdir: Path, options: Options) -> None:
    """Writes `config.json` of a new workdir; refuses one of another config, naming the fields that differ."""
    from cogpo_jax.atomic import write_json

    path, mine = workdir / "config.json", options.identity()
    if not path.exists():
        write_json(path, mine)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"workdir: {path}: not JSON ({error}); move the folder away, or give another one") from error
    if differing := differences(theirs, mine):
        told = (
            f"{name} ({json.dumps(theirs.get(name))} there, {json.dumps(mine.get(name))} now)" for name in differing
        )
        raise UserError(f"workdir: {workdir}: belongs to another config; differing: {', '.join(told)}")


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ; one that a config of an earlier version lacks has its default."""
    defaults = Options().identity()
    return sorted(
        name
        for name in theirs.keys() | mine.keys()
        if theirs.get(name, defaults.get(name)) != mine.get(name, defaults.get(name))
    )


def _check_pool(pool: PoolOptions, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*|", pool.api_key):  # not shown: it may be the key itself
        raise UserError(f"{name}.api_key: not a name: give the name of the environment variable that holds the key")
    if pool.kind == "recorded":
        if not pool.recordings:
            raise UserError("pool.recordings: empty: pool.kind recorded needs a file of recorded answers")
        return
    if not all(url.strip().startswith(("http://", "https://")) for url in pool.url.split(",")):
        raise UserError(
            f"{name}.url: {pool.url!r}: kind {pool.kind} needs a URL such as http://localhost:30000, or several with"
            " commas between"
        )


def _flat(options: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(name, JSON value) of the fields that are not free."""
    rows: list[tuple[str, Any]] = []
    for field in dataclasses.fields(options):
        name, value = prefix + field.name, getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            rows += _flat(value, name + ".")
        elif isinstance(value, Mapping) and field.name == "agents":
            rows += [row for agent, own in value.items() for row in _flat(own, f"{name}.{agent}.")]
        elif not field.metadata["free"]:
            rows.append((name, json.loads(json.dumps(value))))
    return rows
