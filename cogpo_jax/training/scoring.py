"""Log-probs of many responses through the training rows: the reference pass, evaluation and launch/score.py."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cogpo_jax.data.feed import Feed, prefetch
from cogpo_jax.data.plan import EpochPlan, MicroBatch
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.training.reference import ReferenceCache


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
