"""What the page is made of: the files that CRV and the trainer leave, and the held-out table of a run's pairs.

The table says how often the chosen response gained on the rejected one, and whether length alone explains it.

Rows are those of `eval_pairs.jsonl`: {problem_id, gap, chosen_tokens, rejected_tokens, chosen_logp, rejected_logp,
chosen_ref_logp, rejected_ref_logp}, log-probs in nats summed over a response, the reference being the SFT model.

Intervals: pairs of one problem share responses, so they are no independent draws. The variance of a share is summed
over problems (linearised, as for survey clusters) and turned into an effective number of pairs, with which Wilson's
score interval is taken (Kott and Carr 1997; Dean and Pagano 2015, "Evaluating confidence interval methods for binomial
proportions in clustered surveys"). No random numbers, and no interval of width 0 where every pair is right.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation.statistics import wilson
from cogpo_jax.records import Group, read_groups, splits, verify_manifest

MINI_TASKS = ("small", "medium", "large")


@dataclass(frozen=True)
class Training:
    """One training run: its config, and the lines of its metrics, evaluations and held-out pairs."""

    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Data:
    """A folder of records: what its manifest tells, and its groups by split, read anew at each iteration."""

    info: Mapping[str, Any]
    groups: Mapping[str, Iterable[Group]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupFile:
    """The groups of one split of a verified folder: never all in memory."""

    folder: str | Path
    split: str

    def __iter__(self) -> Iterator[Group]:
        return read_groups(self.folder, self.split, verify=False)


def read_training(workdir: str | Path) -> Training:
    """Reads a workdir of `cogpo train`; raises UserError where it has no metrics yet."""
    workdir = Path(workdir)
    if not (workdir / "metrics.jsonl").is_file():
        raise UserError(f"{workdir}: has no metrics.jsonl: must be the workdir of `cogpo train`")
    config = workdir / "config.json"
    return Training(
        json.loads(config.read_text()) if config.is_file() else {},
        read_lines(workdir / "metrics.jsonl"),
        read_lines(workdir / "eval.jsonl"),
        read_lines(workdir / "eval_pairs.jsonl"),
    )


def read_data(folder: str | Path) -> Data:
    """Reads a folder of records with its groups; raises UserError where a shard does not match the manifest."""
    info = verify_manifest(folder)["info"]
    return Data(info, {split: GroupFile(folder, split) for split in splits(folder).get("groups", {})})


def read_lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The objects of a JSON-lines file, none where it is absent; a last line still being written is left out."""
    if not path.is_file():
        return ()
    text = path.read_text()
    return tuple(json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip())


GAP_ORDER = ("small", "medium", "large", "none")

Row = Mapping[str, Any]
Table = dict[str, dict[str, float | int | None]]


def heldout_table(rows: Iterable[Row]) -> Table:
    """{gap: columns} for the gaps that occur, in GAP_ORDER; see `gap_columns`."""
    rows = list(rows)
    present = [gap for gap in GAP_ORDER if any(row["gap"] == gap for row in rows)]
    return {gap: gap_columns([row for row in rows if row["gap"] == gap]) for gap in present}


def gap_columns(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """The columns of one gap; None where a column has no pairs to speak of.

    n, problems: pairs and problems. accuracy: share of pairs whose log-ratio margin is positive, ties 0.5, so 0.5
    before training; low, high: its 95% interval. accuracy_chosen_longer / _shorter: the same where the chosen response
    has more / fewer tokens (n_chosen_longer / _shorter pairs; equal lengths are in neither). balanced_accuracy: their
    plain mean, 0.5 for "shorter wins" and for "longer wins"; balanced_low, balanced_high: its interval.
    shorter_wins, longer_wins: accuracy of those rules. sft_mean_logp_accuracy: share of pairs that the SFT model
    already ranks rightly by log-prob per token. margin_nats: mean margin, without beta. chosen_logratio,
    rejected_logratio: mean log-ratios in nats. reward_length_corr: Pearson's correlation of the margin with chosen
    minus rejected tokens.
    """
    right, margin, longer = right_answers(rows), margins(rows), np.sign(_column(rows, "length_difference"))
    problems = [str(row["problem_id"]) for row in rows]
    everything = np.ones(len(rows), bool)
    strata = [longer > 0, longer < 0]
    low, high = mean_interval(right, problems, [everything])
    balanced_low, balanced_high = mean_interval(right, problems, strata)
    sft_margin = _column(rows, "chosen_ref_logp") / _column(rows, "chosen_tokens") - _column(
        rows, "rejected_ref_logp"
    ) / _column(rows, "rejected_tokens")
    return {
        "n": len(rows),
        "problems": len(set(problems)),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "n_chosen_longer": int(strata[0].sum()),
        "n_chosen_shorter": int(strata[1].sum()),
        "accuracy_chosen_longer": _mean(right[strata[0]]),
        "accuracy_chosen_shorter": _mean(right[strata[1]]),
        "balanced_accuracy": _balanced(right, strata),
        "balanced_low": balanced_low,
        "balanced_high": balanced_high,
        "shorter_wins": float(_score(-longer).mean()),
        "longer_wins": float(_score(longer).mean()),
        "sft_mean_logp_accuracy": float(_score(sft_margin).mean()),
        "margin_nats": float(margin.mean()),
        "chosen_logratio": float((_column(rows, "chosen_logp") - _column(rows, "chosen_ref_logp")).mean()),
        "rejected_logratio": float((_column(rows, "rejected_logp") - _column(rows, "rejected_ref_logp")).mean()),
        "reward_length_corr": _correlation(margin, _column(rows, "length_difference")),
    }


def margins(rows: Sequence[Row]) -> np.ndarray:
    """Per pair, log-ratio of the chosen minus log-ratio of the rejected response, in nats, without beta."""
    chosen = _column(rows, "chosen_logp") - _column(rows, "chosen_ref_logp")
    return chosen - (_column(rows, "rejected_logp") - _column(rows, "rejected_ref_logp"))


def right_answers(rows: Sequence[Row]) -> np.ndarray:
    """Per pair, 1 where the margin is positive, 0 where it is negative, 0.5 where it is exactly 0."""
    return _score(margins(rows))


def mean_interval(
    right: np.ndarray, problems: Sequence[str], strata: Sequence[np.ndarray]
) -> tuple[float | None, float | None]:
    """95% interval of the mean over strata of the mean of `right` in each stratum, problems being the clusters.

    right: [P] in 0..1; problems: [P] names; strata: boolean masks [P]. (None, None) where a stratum is empty.
    """
    if not strata or not all(mask.any() for mask in strata):
        return None, None
    estimate = _balanced(right, strata)
    assert estimate is not None  # every stratum has pairs
    # A problem's influence: how far the estimate moves with it (first order).
    influence: dict[str, float] = {}
    for mask in strata:
        share = 1 / (len(strata) * mask.sum())
        for problem, value in zip(np.asarray(problems)[mask], right[mask] - right[mask].mean(), strict=True):
            influence[str(problem)] = influence.get(str(problem), 0.0) + share * float(value)
    clusters = len(influence)
    pairs = int(np.any(strata, axis=0).sum())
    variance = sum(z * z for z in influence.values()) * clusters / max(clusters - 1, 1)
    # No spread between problems says nothing about the variance: each problem then counts as one draw.
    effective = min(estimate * (1 - estimate) / variance, pairs) if variance > 1e-12 else clusters
    return wilson(estimate * effective, effective)


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    if name == "length_difference":
        return _column(rows, "chosen_tokens") - _column(rows, "rejected_tokens")
    return np.asarray([row[name] for row in rows], np.float64)


def _score(margin: np.ndarray) -> np.ndarray:
    return (np.sign(margin) + 1) / 2


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _balanced(right: np.ndarray, strata: Sequence[np.ndarray]) -> float | None:
    if not all(mask.any() for mask in strata):
        return None
    return float(np.mean([right[mask].mean() for mask in strata]))


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # a constant has no correlation
        return None
    return float(np.corrcoef(x, y)[0, 1])
