"""The config of a run, checked: every field, its type and its range, before any work."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.also import FORMATS
from crv.hygiene import HygieneOptions
from crv.pool.base import Sampling

# Fields that may change between two starts of one run: they say where and how fast, not what.
# Agents' own servers (agents.NAME.url) as well.
_FREE = (
    "pool.url",
    "pool.concurrency",
    "pool.timeout",
    "pool.retries",
    "pool.gpus",
    "pool.api_key",
    "problems_in_flight",
    "metrics_port",
    "grader.workers",
)


@dataclass(frozen=True)
class Options:
    """A CRV run; the shipped configs explain the fields."""

    input: str
    limit: int
    sample: int
    seed: int
    student: str
    prompts: str
    max_rounds: int
    recritique: bool
    asks: int
    solver_attempts: int
    solver_for_wrong: int
    judge: bool
    corrupt_attempts: int
    blind_asked: int
    blind_needed: int
    blind_brief: bool
    balance: str
    heldout: float
    also: tuple[str, ...]
    beta: Mapping[str, float]
    shards: int
    hygiene: HygieneOptions
    driver: int
    drivers: int
    problems_in_flight: int
    metrics_port: int
    grader_workers: int
    grader_seconds: float
    grader_megabytes: int
    pool: Mapping[str, Any]
    models: Mapping[str, str]
    samplings: Mapping[str, Sampling]
    own: Mapping[str, Mapping[str, str]]  # agent -> its own model, url, tokenizer

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Options":
        """Checks a config (of the shape of configs/crv_recorded.py); raises UserError."""
        c = _Checked(config)
        pool: dict[str, Any] = {
            "kind": c.choice("pool.kind", ("recorded", "sglang", "openai")),
            "url": c.text("pool.url"),
            "recordings": c.text("pool.recordings"),
            "model": c.text("pool.model"),
            "tokenizer": c.text("pool.tokenizer"),
            "weights": c.text("pool.weights"),
            "context": c.integer("pool.context", 0),
            "api_key": c.text("pool.api_key"),
            "concurrency": c.integer("pool.concurrency", 1),
            "timeout": c.number("pool.timeout", 0.001),
            "retries": c.integer("pool.retries", 0),
            "gpus": c.integer("pool.gpus", 0),
        }
        if pool["kind"] == "recorded" and not pool["recordings"]:
            raise UserError("pool.recordings: empty: pool.kind recorded needs a file of recorded answers")
        urls = [url.strip() for url in pool["url"].split(",")]
        if pool["kind"] != "recorded" and not all(url.startswith(("http://", "https://")) for url in urls):
            raise UserError(
                f"pool.url: {pool['url']!r}: pool.kind {pool['kind']} needs a URL such as http://localhost:30000, or"
                " several with commas between"
            )
        models, samplings, own = _agents(c)
        options = cls(
            input=c.text("input"),
            limit=c.integer("limit", 0),
            sample=c.integer("sample", 0),
            seed=c.integer("seed", 0),
            student=c.text("student"),
            prompts=c.text("prompts"),
            max_rounds=c.integer("max_rounds", 1),
            recritique=c.flag("recritique"),
            asks=c.integer("asks", 1),
            solver_attempts=c.integer("solver.attempts", 0),
            solver_for_wrong=c.integer("solver.for_wrong", 0),
            judge=c.flag("judge"),
            corrupt_attempts=c.integer("corrupter.attempts", 0),
            blind_asked=c.integer("verifier.asked", 1),
            blind_needed=c.integer("verifier.needed", 1),
            blind_brief=c.flag("verifier.brief"),
            balance=c.choice("balance", ("none", "weight", "drop")),
            heldout=c.number("heldout", 0.0),
            also=c.texts("also"),
            beta={gap: c.number(f"beta.{gap}", 1e-6) for gap in ("small", "medium", "large")},
            shards=c.integer("shards", 1),
            hygiene=_hygiene(c),
            driver=c.integer("partition.driver", 0),
            drivers=c.integer("partition.drivers", 1),
            metrics_port=c.integer("metrics_port", 0),
            problems_in_flight=c.integer("problems_in_flight", 1),
            grader_workers=c.integer("grader.workers", 1),
            grader_seconds=c.number("grader.seconds", 0.001),
            grader_megabytes=c.integer("grader.megabytes", 256),
            pool=pool,
            models=models,
            samplings=samplings,
            own=own,
        )
        c.refuse_unknown()
        if options.blind_needed > options.blind_asked:
            raise UserError(
                f"verifier.needed: {options.blind_needed}: more than verifier.asked ({options.blind_asked})"
            )
        if options.driver >= options.drivers:
            raise UserError(f"partition.driver: {options.driver}: must be below partition.drivers ({options.drivers})")
        for name in options.also:
            if name not in FORMATS:
                raise UserError(f"also: {name!r}: must be {' or '.join(FORMATS)}")
        if options.heldout >= 1 and options.heldout != int(options.heldout):
            raise UserError(f"heldout: {options.heldout}: a count is a whole number, a share is below 1")
        return options

    def identity(self) -> dict[str, Any]:
        """The fields that decide what comes out, flat, as JSON values: what a workdir belongs to."""
        flat = json.loads(json.dumps(_flatten(asdict(self))))
        flat = {name.replace("grader_", "grader."): value for name, value in flat.items()}
        return {
            name: value
            for name, value in sorted(flat.items())
            if name not in _FREE and not (name.startswith("own.") and name.endswith(".url"))
        }


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
    differing = [
        f"{name} ({json.dumps(theirs.get(name))} there, {json.dumps(mine.get(name))} now)"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if differing:
        raise UserError(f"workdir: {workdir}: belongs to another config; differing: {', '.join(differing)}")


def _agents(c: "_Checked") -> tuple[dict[str, str], dict[str, Sampling], dict[str, dict[str, str]]]:
    """The default model and sampling under "", and those of the agents that have their own (`agents.NAME.field`)."""
    from crv.prompts import AGENTS

    own: dict[str, dict[str, str]] = {}
    models, samplings = {"": c.text("pool.model")}, {"": _sampling(c, "sampling", Sampling())}
    for agent in c.names("agents"):
        if agent not in AGENTS:
            raise UserError(f"agents.{agent}: no such agent; there are {', '.join(AGENTS)}")
        own[agent] = {name: c.text(f"agents.{agent}.{name}") for name in _OWN if c.has(f"agents.{agent}.{name}")}
        if "model" in own[agent]:
            models[agent] = own[agent]["model"]
        samplings[agent] = _sampling(c, f"agents.{agent}", samplings[""])
    return models, samplings, {agent: fields for agent, fields in own.items() if fields}


def _hygiene(c: "_Checked") -> HygieneOptions:
    options = HygieneOptions(
        repair=c.flag("hygiene.repair"),
        duplicates=c.flag("hygiene.duplicates"),
        near_duplicates=c.number("hygiene.near_duplicates", 0.0),
        against=c.texts("hygiene.against"),
        ngram=c.integer("hygiene.ngram", 1),
        template_share=c.number("hygiene.template_share", 0.0),
        min_characters=c.integer("hygiene.min_characters", 0),
        max_characters=c.integer("hygiene.max_characters", 0),
        latin_share=c.number("hygiene.latin_share", 0.0),
    )
    for name in ("near_duplicates", "template_share", "latin_share"):
        if getattr(options, name) > 1:
            raise UserError(f"hygiene.{name}: {getattr(options, name)}: a share is at most 1 (0 = off)")
    return options


def _sampling(c: "_Checked", prefix: str, default: Sampling) -> Sampling:
    return Sampling(
        temperature=c.number(f"{prefix}.temperature", 0.0, default.temperature),
        top_p=c.number(f"{prefix}.top_p", 0.0, default.top_p),
        max_tokens=c.integer(f"{prefix}.max_tokens", 1, default.max_tokens),
    )


_OWN = ("model", "url", "tokenizer")


class _Checked:
    """Typed reads of a nested config, remembering which fields were read."""

    def __init__(self, config: Mapping[str, Any]):
        self._flat = _flatten(config.to_dict() if hasattr(config, "to_dict") else dict(config))
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._flat

    def names(self, prefix: str) -> list[str]:
        return sorted({name.split(".")[1] for name in self._flat if name.startswith(prefix + ".")})

    def refuse_unknown(self) -> None:
        if unknown := sorted(self._flat.keys() - self._read):
            raise UserError(f"{unknown[0]}: no such config field; see configs/crv_recorded.py for the known ones")

    def text(self, name: str) -> str:
        return self._get(name, str, "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._get(name, (tuple, list), "a tuple of texts")
        if not all(isinstance(item, str) for item in value):
            raise UserError(f"{name}: {value!r}: must be a tuple of texts")
        return tuple(value)

    def flag(self, name: str) -> bool:
        return self._get(name, bool, "True or False")

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in choices:
            raise UserError(f"{name}: {value!r}: must be {' or '.join(choices)}")
        return value

    def integer(self, name: str, low: int, default: int | None = None) -> int:
        value = self._get(name, int, "a whole number", default)
        if isinstance(value, bool) or value < low:
            raise UserError(f"{name}: {value}: must be a whole number of at least {low}")
        return value

    def number(self, name: str, low: float, default: float | None = None) -> float:
        value = self._get(name, (int, float), "a number", default)
        if isinstance(value, bool) or not low <= value < float("inf"):
            raise UserError(f"{name}: {value}: must be a number of at least {low}")
        return float(value)

    def _get(self, name: str, kind: Any, wanted: str, default: Any = None) -> Any:
        if name not in self._flat:
            if default is not None:
                return default
            raise UserError(f"{name}: missing from the config; must be {wanted}")
        self._read.add(name)
        value = self._flat[name]
        if not isinstance(value, kind):
            raise UserError(f"{name}: {value!r}: must be {wanted}")
        return value


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat
