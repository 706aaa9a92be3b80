"""Held-out numbers: a line per pair for CogPO, the NLL beside a unigram's for SFT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.records.schema import GAPS


def pair_rows(
    data: TokenizedData,
    logps: np.ndarray,
    reference: np.ndarray,
    tokens: np.ndarray,
    beta_by_gap: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One object per held-out pair whose responses were both scored: eval_pairs.jsonl (log-probs in nats).

    beta: the pair's own where it has one, else `beta_by_gap[gap]`, as in training.
    """
    group_of_pair = np.repeat(np.arange(len(data.names)), np.diff(data.pair_offsets))
    rows = []
    for pair, (chosen, rejected) in enumerate(zip(data.chosen, data.rejected, strict=True)):
        values = [float(a[i]) for a in (logps, reference) for i in (chosen, rejected)]
        if not np.isfinite(values).all():
            continue
        gap, beta = GAPS[data.gaps[pair]], float(data.betas[pair])
        rows.append(
            {
                "problem_id": data.names[group_of_pair[pair]],
                "pair": int(pair - data.pair_offsets[group_of_pair[pair]]),
                "gap": gap,
                "beta": beta_by_gap[gap] if np.isnan(beta) else beta,
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
