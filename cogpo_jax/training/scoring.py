"""Log-probs of many responses through the training rows: the reference pass and its cache, and held-out numbers.

The reference cache holds the summed log-probs of the reference model, computed once per response, kept by content:

    <dir>/<key>/meta.json, part-<sha256>.npy ...

The key names all that decides the numbers: the weights' checksum, compute dtype, attention back end, `NUMERICS`. Not
the mesh and not the packing: those move a bfloat16 log-prob a little, which the drift check bounds.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.data.batches import Feed, prefetch
from cogpo_jax.data.plan import EpochPlan, MicroBatch
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.errors import UserError
from cogpo_jax.progress import Bar, say
from cogpo_jax.records.schema import GAPS
from cogpo_jax.training import hosts
from cogpo_jax.training.checkpoint import tree_digest
from cogpo_jax.training.setup import Setup

NUMERICS = 1  # bump by hand when the code's log-probs change by more than rounding
_ENTRY = np.dtype([("digest", "S16"), ("logp", "<f4"), ("tokens", "<i4")])


def reference_key(weights_digest: str, compute_dtype: str, attention: str) -> dict[str, Any]:
    """What names a set of reference log-probs."""
    return {"weights": weights_digest, "compute_dtype": compute_dtype, "attention": attention, "numerics": NUMERICS}


class ReferenceCache:
    """Log-probs of one reference under `folder/<key>`; parts are added whole, so a killed pass loses at most one."""

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, Any], say: Callable[[str], None] = print):
        text = json.dumps(dict(key), sort_keys=True)
        self.folder = epath.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._say = say
        self._check_meta(dict(key))
        self._entries = self._load()

    def _check_meta(self, key: dict[str, Any]) -> None:
        path = self.folder / "meta.json"
        if not path.is_file():
            write_json(path, key)
        elif json.loads(path.read_text()) != key:
            raise UserError(f"reference_cache.dir: {self.folder}: holds another reference's log-probs; remove it")

    def _load(self) -> np.ndarray:
        parts = [np.empty(0, _ENTRY)]
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not path.name.startswith("part-"):
                continue
            data = path.read_bytes()
            if path.stem != f"part-{hashlib.sha256(data).hexdigest()[:32]}":
                self._say(f"reference cache: {path} is damaged: left out, its log-probs are computed again")
                continue
            parts.append(np.load(io.BytesIO(data), allow_pickle=False))
        return _sorted(np.concatenate(parts))

    def lookup(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logps [R] float32, NaN where unknown; tokens [R] int32) of response digests [R, 16] uint8."""
        wanted = np.ascontiguousarray(digests).view("S16").reshape(-1)
        logps, tokens = np.full(len(wanted), np.nan, np.float32), np.zeros(len(wanted), np.int32)
        if len(self._entries) and len(wanted):
            at = np.searchsorted(self._entries["digest"], wanted).clip(0, len(self._entries) - 1)
            known = self._entries["digest"][at] == wanted
            logps[known], tokens[known] = self._entries["logp"][at[known]], self._entries["tokens"][at[known]]
        return logps, tokens

    def add(self, digests: np.ndarray, logps: np.ndarray, tokens: np.ndarray, *, write: bool = True) -> None:
        """Adds entries, and a part file with them (`write`: on one process only)."""
        entries = np.empty(len(digests), _ENTRY)
        entries["digest"] = np.ascontiguousarray(digests).view("S16").reshape(-1)
        entries["logp"], entries["tokens"] = logps, tokens
        if not np.isfinite(entries["logp"]).all():
            raise UserError("reference: a log-prob is not finite; the reference weights are damaged")
        if write:
            buffer = io.BytesIO()
            np.save(buffer, entries, allow_pickle=False)
            name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
            write_atomic(self.folder / f"part-{name}.npy", buffer.getvalue())
        self._entries = _sorted(np.concatenate([self._entries, entries]))


def _sorted(entries: np.ndarray) -> np.ndarray:
    _, first = np.unique(entries["digest"], return_index=True)
    return entries[first]


def score_planned(
    program: Callable[..., tuple[jax.Array, jax.Array]],
    params: Any,
    feed: Feed,
    micro_batches: Iterator[MicroBatch],
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(response indices, summed log-probs, token counts) of each micro-batch, in order."""
    for micro, rows in prefetch(micro_batches, feed.rows):
        before_each()
        logps, tokens = jax.device_get(program(params, rows))
        n = len(micro.placements)
        yield np.array([p.response for p in micro.placements], np.int64), logps[:n], tokens[:n]


def planned(plan: EpochPlan, steps: int) -> Iterator[MicroBatch]:
    """The micro-batches of the first `steps` steps."""
    for k in range(steps):
        yield from plan.step(k).micro_batches


def fill_reference(
    cache: ReferenceCache,
    program: Callable[..., tuple[jax.Array, jax.Array]],
    params: Callable[[], Any],
    data: TokenizedData,
    plan: EpochPlan,
    feed: Feed,
    steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    before_each: Callable[[], None] = lambda: None,
    save_every_s: float = 30.0,
) -> np.ndarray:
    """Reference log-probs [R] of the responses that the first `steps` steps use; what the cache lacks is computed.

    Follows the training plan, in its rows and shapes: on a CPU in float32 the numbers are then bit-equal to the
    policy's at step 0, and CogPO starts at margins of exactly 0. `params()` loads the reference, only when needed.
    What `before_each` micro-batch raises ends the pass; what was computed until then is in the cache.
    """
    known, _ = cache.lookup(data.digests)
    if not np.isnan(known[plan.used]).any():  # planning an epoch only to find nothing missing would slow every resume
        return known
    missing = [m for m in planned(plan, steps) if any(np.isnan(known[p.response]) for p in m.placements)]
    if not missing:
        return known
    total, done, waiting, saved = sum(m.tokens for m in missing), 0, [], time.monotonic()
    scores = score_planned(program, params(), feed, iter(missing), before_each)
    try:
        for micro, scored in zip(missing, scores, strict=True):
            waiting.append(scored)
            done += micro.tokens
            progress(done, total)
            if time.monotonic() - saved > save_every_s:
                _flush(cache, data, waiting)
                waiting, saved = [], time.monotonic()
    finally:
        _flush(cache, data, waiting)
    return cache.lookup(data.digests)[0]


def _flush(
    cache: ReferenceCache, data: TokenizedData, waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    if not waiting:
        return
    responses, logps, tokens = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
    _, first = np.unique(responses, return_index=True)  # a split group repeats its shared responses
    cache.add(data.digests[responses[first]], logps[first], tokens[first], write=jax.process_index() == 0)


def drift(
    program: Callable[..., tuple[jax.Array, jax.Array]], params: Any, feed: Feed, plan: EpochPlan, reference: np.ndarray
) -> float:
    """Largest difference (nats) between a live and a cached reference log-prob over the first micro-batch."""
    first = plan.step(0).micro_batches[:1]
    responses, logps, _ = next(score_planned(program, params, feed, iter(first)))
    return float(np.abs(logps - reference[responses]).max())


def score_all(
    program: Callable[..., tuple[jax.Array, jax.Array]],
    params: Any,
    data: TokenizedData,
    plan: EpochPlan,
    feed: Feed,
    before_each: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(summed log-probs [R], NaN where not in the plan; token counts [R]) of a whole data set."""
    logps = np.full(len(data.digests), np.nan, np.float32)
    counts = np.zeros(len(data.digests), np.int32)
    micro_batches = planned(plan, plan.steps_per_epoch)
    for responses, values, tokens in score_planned(program, params, feed, micro_batches, before_each):
        logps[responses], counts[responses] = values, tokens
    return logps, counts


class ReferenceModel:
    """`digest` names the reference's weights; first_params(): the policy's, while it is the reference, else None.

    before_each is called at each micro-batch of a pass; what it raises ends the pass, whose results so far are kept.
    """

    def __init__(
        self, setup: Setup, digest: str, first_params: Callable[[], Any], before_each: Callable[[], None] = lambda: None
    ):
        self._setup, self._digest, self._first_params = setup, digest, first_params
        self._before_each = before_each

    def params(self) -> Any:
        """The reference's weights, loaded again where training has moved on; UserError where they have changed."""
        if (first := self._first_params()) is not None:
            return first
        params = self._setup.initial.load(self._setup.mesh)
        if tree_digest(params) != self._digest:
            raise UserError(f"init_from: {self._setup.config.init_from}: its weights changed since this run began")
        return params

    def live(self) -> Any:
        """Weights of its own to run beside the policy: the policy's buffers are donated by the first update."""
        return jax.tree.map(jnp.copy, self.params())

    def logps(self, data: TokenizedData, plan: EpochPlan, score: Any, steps: int, what: str) -> np.ndarray:
        """Summed log-probs [R] for the first `steps` steps of a plan, from the cache or computed into it by `score`."""
        setup = self._setup
        folder = setup.config.reference_cache.dir or setup.workdir / "reference_cache"
        key = reference_key(self._digest, setup.config.compute_dtype, setup.settings.forward.attention)
        cache = ReferenceCache(folder, key, say)
        # What is missing is scored by all hosts together: they must miss the same.
        known = hashlib.sha256(cache.lookup(data.digests)[0].tobytes()).hexdigest()
        hosts.check_same({f"reference cache in {folder}": known})
        feed = Feed(data, plan, setup.mesh, slots=plan.max_slots, pairs=False)
        with Bar(f"reference, {what}", 1, quiet=not setup.main) as bar:
            return fill_reference(cache, score, self.params, data, plan, feed, steps, bar.at, self._before_each)

    def check_drift(self, reference: np.ndarray) -> None:
        """Before the first step policy and reference are one model: cached and live log-probs must agree."""
        setup = self._setup
        most = setup.config.reference_cache.max_drift
        feed = Feed(setup.data, setup.plan, setup.mesh, slots=setup.plan.max_slots, pairs=False)
        found = drift(setup.programs.score, self.params(), feed, setup.plan, reference)
        say(f"reference: cached log-probs are within {found:.2g} nats of live ones (at most {most} accepted)")
        if not found <= most:
            raise UserError(
                f"reference_cache.max_drift: {most}: cached log-probs differ from live ones by {found:.3g} nats; "
                "raise the bound, or give an empty reference_cache.dir"
            )


def pair_rows(
    data: TokenizedData,
    logps: np.ndarray,
    reference: np.ndarray,
    tokens: np.ndarray,
) -> list[dict[str, Any]]:
    """One object per held-out pair whose responses were both scored: eval_pairs.jsonl (log-probs in nats).

    logps, reference, tokens [R]. The betas of `data` are resolved already (`settings.resolve_beta`), as in training.
    """
    group_of_pair = np.repeat(np.arange(len(data.names)), np.diff(data.pair_offsets))
    rows = []
    for pair, (chosen, rejected) in enumerate(zip(data.chosen, data.rejected, strict=True)):
        values = [float(a[i]) for a in (logps, reference) for i in (chosen, rejected)]
        if not np.isfinite(values).all():
            continue
        gap = GAPS[data.gaps[pair]]
        rows.append(
            {
                "problem_id": data.names[group_of_pair[pair]],
                "pair": int(pair - data.pair_offsets[group_of_pair[pair]]),
                "gap": gap,
                "beta": float(str(data.betas[pair])),  # 0.1, not the float32's 0.10000000149
                "chosen_tokens": int(tokens[chosen]),
                "rejected_tokens": int(tokens[rejected]),
                "chosen_logp": values[0],
                "rejected_logp": values[1],
                "chosen_ref_logp": values[2],
                "rejected_ref_logp": values[3],
            }
        )
    return rows


def pair_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss, accuracy (ties 0.5) and margin (nats) by gap over held-out pairs: a line of eval.jsonl."""
    out: dict[str, Any] = {"pairs": len(rows), "loss": {}, "accuracy": {}, "margin": {}}
    for gap in (*GAPS, "all"):
        members = [r for r in rows if gap in (r["gap"], "all")]
        if not members:
            continue
        margins = np.array(
            [r["chosen_logp"] - r["chosen_ref_logp"] - r["rejected_logp"] + r["rejected_ref_logp"] for r in members]
        )
        betas = np.array([r["beta"] for r in members])
        out["loss"][gap] = float(np.logaddexp(0.0, -betas * margins).mean())
        out["accuracy"][gap] = float(((margins > 0) + 0.5 * (margins == 0)).mean())
        out["margin"][gap] = float(margins.mean())
    return out


def sft_summary(logps: np.ndarray, tokens: np.ndarray, unigram: float) -> dict[str, Any]:
    """Mean NLL (nats per response token) over the scored responses, and the unigram model's beside it."""
    known = np.isfinite(logps)
    total = int(tokens[known].sum())
    return {
        "responses": int(known.sum()),
        "response_tokens": total,
        "heldout_nll": float(-logps[known].sum() / max(total, 1)),
        "unigram_nll": unigram,
    }


def unigram_nll(train: TokenizedData, heldout: TokenizedData, vocab_size: int, most: int = 2000) -> float:
    """NLL per token of held-out responses under add-one token frequencies of (at most `most`) training responses."""
    counts = np.ones(vocab_size)
    for r in range(min(most, len(train.digests))):
        ids, counted = train.sequence(r)
        np.add.at(counts, ids[counted], 1)
    logp = np.log(counts / counts.sum())
    parts = [heldout.sequence(r) for r in range(min(most, len(heldout.digests)))]
    values = np.concatenate([logp[ids[counted]] for ids, counted in parts])
    return float(-values.mean())
