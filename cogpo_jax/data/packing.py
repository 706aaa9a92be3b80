"""A planned micro-batch as arrays: rows of packed sequences, slots of responses, pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cogpo_jax.data.plan import MicroBatch
from cogpo_jax.records.schema import GAPS

ROW_FIELDS = ("tokens", "targets", "segment_ids", "positions", "slots")


def pack_rows(
    micro: MicroBatch, sequence: Callable[[int], tuple[np.ndarray, np.ndarray]], rows: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The row arrays [len(rows), length] int32 of a micro-batch; only the asked rows' tokens are read.

    sequence(response) -> (ids [L], counted [L]): a sequence takes L - 1 positions, its last token being a target only.
    tokens, targets: input and next token; segment_ids: 0 for padding, 1.. within a row; positions restart in each
    segment; slots: index of the response whose log-prob the target counts for, -1 where it counts for none.
    """
    wanted = range(micro.shape.rows) if rows is None else rows
    local = {row: i for i, row in enumerate(wanted)}
    out = {name: np.zeros((len(wanted), micro.shape.length), np.int32) for name in ROW_FIELDS}
    out["slots"] -= 1
    segments: dict[int, int] = {}
    for slot, placement in enumerate(micro.placements):
        if placement.row not in local:
            continue
        ids, counted = sequence(placement.response)
        i, n = local[placement.row], len(ids) - 1
        where = slice(placement.start, placement.start + n)
        segments[i] = segments.get(i, 0) + 1
        out["tokens"][i, where] = ids[:-1]
        out["targets"][i, where] = ids[1:]
        out["segment_ids"][i, where] = segments[i]
        out["positions"][i, where] = np.arange(n)
        out["slots"][i, where] = np.where(counted[1:], slot, -1)
    return out


def pack_pairs(
    micro: MicroBatch,
    max_slots: int,
    max_pairs: int,
    *,
    gaps: np.ndarray,
    betas: np.ndarray,
    weights: np.ndarray,
    beta_by_gap: Mapping[str, float],
    reference: Callable[[int], float] | None = None,
) -> dict[str, np.ndarray]:
    """Fixed-size arrays of a micro-batch's pairs [max_pairs] and slots [max_slots]; padding has weight 0.

    beta: the pair's own where it has one, else `beta_by_gap[gap]`. reference(response): summed reference log-prob.
    """
    out: dict[str, Any] = {
        "chosen": np.zeros(max_pairs, np.int32),
        "rejected": np.zeros(max_pairs, np.int32),
        "gap": np.full(max_pairs, len(GAPS) - 1, np.int32),
        "beta": np.ones(max_pairs, np.float32),
        "weight": np.zeros(max_pairs, np.float32),
        "reference_logps": np.zeros(max_slots, np.float32),
    }
    for i, (pair, chosen, rejected) in enumerate(micro.pairs):
        own = betas[pair]
        out["chosen"][i], out["rejected"][i] = chosen, rejected
        out["gap"][i], out["weight"][i] = gaps[pair], weights[pair]
        out["beta"][i] = beta_by_gap[GAPS[gaps[pair]]] if np.isnan(own) else own
    if reference:
        for slot, placement in enumerate(micro.placements):
            out["reference_logps"][slot] = reference(placement.response)
    return out
