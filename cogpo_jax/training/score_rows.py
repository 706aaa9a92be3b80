"""Log-probs of a file's responses under a student: rows {prompt, response} -> the same rows with `logp` and `tokens`.

With `by_step`, each step's own as well: its surprisal is -logp. A step that the student cannot follow has much of it.

The numbers come from the training code path: text, packed rows, token-chunked log-probs. The file is streamed in
windows, so that memory does not grow with it.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogpo_jax import text
from cogpo_jax.atomic import atomic_file, check_writable
from cogpo_jax.data.batches import Feed, Rows, prefetch
from cogpo_jax.data.plan import EpochPlan, default_shapes
from cogpo_jax.data.tokens import TokenizedData, tokenize_records
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.progress import Bar
from cogpo_jax.prompt_rows import check_rows, read_rows, to_line, windows
from cogpo_jax.records import Group, Response
from cogpo_jax.sharding import make_mesh, row_shards
from cogpo_jax.student.attention import default_backend
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.weights import from_hf
from cogpo_jax.training.scoring import planned
from cogpo_jax.training.step import StepSettings, score

_FIELDS = ("prompt", "response")
_SHORTEST_ROW = 256


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How to score. Zeros and empty strings: chosen from the data, the model and the platform."""

    row_length: int = 0  # tokens of a row; 0: as long as a window's longest response needs (a power of two)
    batch_tokens: int = 16_384  # tokens of a micro-batch per device (at least one row)
    window: int = 1024  # rows of the file that are packed together
    compute_dtype: str = ""  # float32 | bfloat16; empty: float32 on a CPU, bfloat16 elsewhere
    param_dtype: str = ""  # empty: the compute dtype
    tensor: int = 1  # devices over which heads and vocabulary are split; the others split rows
    by_step: str = ""  # a regular expression that ends a step of a response; empty: no `steps`
    text_format: text.TextFormat = dataclasses.field(default_factory=text.TextFormat)

    def __post_init__(self) -> None:
        try:
            re.compile(self.by_step)
        except re.error as error:
            raise UserError(f"--by_step: {self.by_step}: not a regular expression: {error}") from None
        for field, low in (("row_length", 0), ("batch_tokens", 1), ("window", 1), ("tensor", 1)):
            if getattr(self, field) < low:
                raise UserError(f"--{field}: {getattr(self, field)}: must be at least {low}")


def score_file(model: str, source: str, output: str, options: ScoreOptions) -> dict[str, Any]:
    """Scores every row of `source` with the student of the folder `model`; writes `output`, in order, whole.

    A response that does not fit a row (prompt included) is not cut: its `logp` and `tokens` are null and `reason` says
    why. Returns counts and times. Raises UserError for bad input, before any work.
    """
    check_writable("--output", output, file=True)
    total = check_rows(source, _FIELDS)
    tokenizer = text.load_tokenizer(model)
    scorer = _Scorer(model, tokenizer, options)
    started, done, scored, tokens = time.monotonic(), 0, 0, 0
    with atomic_file(output) as out, Bar("scoring", total) as bar:
        for rows in windows(read_rows(source, _FIELDS), options.window):
            results = scorer(rows, functools.partial(_after, bar, done))
            for row, result in zip(rows, results, strict=True):
                out.write(to_line({**row, **result}))
                scored += result["logp"] is not None
                tokens += result["tokens"] or 0
            done += len(rows)
            bar.at(done, note=f"{tokens} response tokens")
    seconds = round(time.monotonic() - started, 3)
    return {"rows": total, "scored": scored, "too_long": total - scored, "tokens": tokens, "seconds": seconds}


def _after(bar: Bar, before: int, done: int) -> None:
    bar.at(before + done)


class _Scorer:
    """The student on a mesh and its compiled programs, one per row length."""

    def __init__(self, model: str, tokenizer: Any, options: ScoreOptions):
        self._options, self._tokenizer = options, tokenizer
        compute = options.compute_dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self._mesh = make_mesh({"fsdp": -1, "tensor": options.tensor})
        forward = ForwardOptions(compute, default_backend(), "none", self._mesh)
        config, _, self._params = from_hf(model, self._mesh, options.param_dtype or compute)
        self._longest = options.row_length or config.max_position_embeddings
        settings = StepSettings(config, forward, "sft", PreferenceOptions(), 512, 0)
        self._program = jax.jit(functools.partial(_token_logps, settings=settings))

    def __call__(self, rows: list[dict[str, Any]], progress: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        """What each row gets, in order; progress(n) hears how many rows are done."""
        data = tokenize_records(
            (_group(i, row) for i, row in enumerate(rows)), self._tokenizer, self._options.text_format
        )
        for row, length, logps in zip(rows, data.lengths.tolist(), self._score(data, progress), strict=True):
            if logps is None:
                reason = f"{length} tokens with the prompt, a row has {self._longest}"
                yield {"logp": None, "tokens": None, "reason": reason}
            elif not np.isfinite(logps).all():
                raise RunError(f"logp: {logps.sum()}: not finite; the weights are damaged")
            else:
                steps = {"steps": self._steps(row["response"], logps)} if self._options.by_step else {}
                yield {"logp": _sum(logps), "tokens": len(logps), **steps}

    def _score(self, data: TokenizedData, progress: Callable[[int], None]) -> list[np.ndarray | None]:
        """The log-prob of each token of each response, its end token's last; None where it is too long."""
        found: list[np.ndarray | None] = [None] * len(data.lengths)
        fitting = data.lengths[data.lengths <= self._longest]
        if not len(fitting):
            return found
        plan = self._plan(data, self._options.row_length or _row_length(int(fitting.max()), self._longest))
        feed, done = Feed(data, plan, self._mesh, slots=1, pairs=False), len(found) - len(fitting)
        for micro, rows in prefetch(planned(plan, plan.steps_per_epoch), feed.rows):
            logps = jax.device_get(self._program(self._params, rows))
            for placement in micro.placements:
                end = placement.start + int(data.lengths[placement.response]) - 1
                begin = end - int(data.response_lengths[placement.response])
                found[placement.response] = logps[placement.row, begin:end]
            done += len(micro.placements)
            progress(done)
        return found

    def _steps(self, response: str, logps: np.ndarray) -> list[dict[str, Any]]:
        """{end, tokens, logp} of each step, where it ends in the response and its share; the last has the end token."""
        encoded = self._tokenizer(
            response, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        starts = np.array([start for start, _ in encoded["offset_mapping"]], np.int64)
        if len(starts) != len(logps) - 1:
            raise UserError("--by_step: the chat template changes a response: give it without tags and end token")
        ends = [
            *sorted({m.end() for m in re.finditer(self._options.by_step, response)} - {len(response)}),
            len(response),
        ]
        of_token = np.append(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
        parts = [logps[of_token == step] for step in range(len(ends))]
        return [{"end": end, "tokens": len(part), "logp": _sum(part)} for end, part in zip(ends, parts, strict=True)]

    def _plan(self, data: TokenizedData, row_length: int) -> EpochPlan:
        shards = row_shards(self._mesh)
        rows = max(1, self._options.batch_tokens // row_length) * shards
        return EpochPlan(
            data.lengths,
            data.response_offsets,
            data.pair_offsets,
            data.chosen,
            data.rejected,
            groups_per_step=self._options.window,
            shapes=default_shapes(rows, row_length, shards),
            seed=0,
            pairwise=False,
            shuffle=False,
        )


def _token_logps(params: Any, rows: Rows, settings: StepSettings) -> jax.Array:
    """[B, T]: the log-prob of each counted target, 0 elsewhere: `score` with a slot for each token."""
    index = jnp.arange(rows.slots.size).reshape(rows.slots.shape)
    spread = dataclasses.replace(rows, slots=jnp.where(rows.slots < 0, -1, index))
    logps, _ = score(params, spread, dataclasses.replace(settings, max_slots=index.size))
    return logps.reshape(index.shape)


def _sum(logps: np.ndarray) -> float:
    return float(logps.sum(dtype=np.float64))


def _row_length(longest: int, limit: int) -> int:
    """The smallest power of two (at least 256) that holds `longest` tokens: few lengths, so few compilations."""
    return min(max(_SHORTEST_ROW, 1 << (longest - 1).bit_length()), limit)


def _group(index: int, row: dict[str, Any]) -> Group:
    response = Response(
        id="", parent="", origin="imported", model="", thought="", solution="", text=row["response"], kind="unknown",
        certificate="",
    )  # fmt: skip
    return Group(
        problem_id=str(index),
        system=row.get("system", ""),
        prompt=row["prompt"],
        answer="",
        responses=(response,),
        pairs=(),
    )
