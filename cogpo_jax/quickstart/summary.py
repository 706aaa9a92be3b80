"""summary.json of the quickstart: what every stage reached, and whether that is what it should."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogpo_jax.report.heldout import heldout_table
from cogpo_jax.report.run_files import MINI_TASKS, Training, read_training

LN2 = math.log(2)


def summarise(run: Path, results: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The summary of the run folder, from its files and from what each stage printed; `checks` say what passed."""
    sft, cogpo = read_training(run / "sft"), read_training(run / "cogpo")
    heldout = sft.evaluations[-1]
    summary = {
        "problems": {**results["crv"]["problems"], **_problems(cogpo, results)},
        "pairs": {gap: results["crv"]["pairs"].get(gap, 0) for gap in MINI_TASKS},
        "student": {"parameters": results["export"]["parameters"]},
        "sft": {
            **_losses(sft),
            "heldout_nll": heldout["heldout_nll"],
            "unigram_nll": heldout["unigram_nll"],
        },
        "cogpo": _losses(cogpo),
        "heldout": heldout_table(cogpo.pairs),
        "hf_max_logit_diff": results["compare"].get("max_logit_diff"),
        "seconds": {**seconds, "total": sum(seconds.values())},
    }
    summary["checks"] = checks(summary, cogpo.metrics[0], (run / "hf" / "chat_template.jinja").is_file())
    return summary


def checks(summary: Mapping[str, Any], first: Mapping[str, Any], chat_template: bool) -> list[dict[str, Any]]:
    """[{name, value, passed}], passed None where a check was skipped; `first` is the metrics line of CogPO's step 1."""
    sft, small = summary["sft"], summary["heldout"]["small"]
    margins = [abs(value) for value in first.get("margin", {}).values()]
    difference = summary["hf_max_logit_diff"]
    balanced, low = small["balanced_accuracy"], small["balanced_low"]
    seen = balanced is not None and low is not None
    return [
        _check("CogPO starts at loss ln 2", f"{first['loss']:.6f}", abs(first["loss"] - LN2) <= 1e-3),
        _check("CogPO starts with every margin 0", f"{max(margins, default=math.nan):g}", max(margins, default=1) == 0),
        _check(
            "SFT: held-out NLL at least 0.5 nats below the unigram's",
            f"{sft['heldout_nll']:.2f} against {sft['unigram_nll']:.2f}",
            sft["heldout_nll"] <= sft["unigram_nll"] - 0.5,
        ),
        _check(
            "at least 40 problems held out", str(summary["problems"]["heldout"]), summary["problems"]["heldout"] >= 40
        ),
        _check(
            "small gap: accuracy averaged over the two lengths at least 0.60, interval above 0.5",
            f"{balanced:.2f}, from {low:.2f}" if seen else "none",
            seen and balanced >= 0.6 and low > 0.5,
        ),
        _check("small gap: mean margin above 0.1 nats", f"{small['margin_nats']:.2f}", small["margin_nats"] > 0.1),
        _check(
            "transformers gives the same logits (at most 2e-4 apart)",
            "skipped: torch is not installed" if difference is None else f"{difference:.2g}",
            None if difference is None else difference <= 2e-4,
        ),
        _check("the exported tokenizer has its chat template", "yes" if chat_template else "no", chat_template),
    ]


def _check(name: str, value: str, passed: bool | None) -> dict[str, Any]:
    return {"name": name, "value": value, "passed": None if passed is None else bool(passed)}


def _losses(run: Training) -> dict[str, float]:
    return {"loss_first": run.metrics[0]["loss"], "loss_last": run.metrics[-1]["loss"]}


def _problems(cogpo: Training, results: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    heldout = {row["problem_id"] for row in cogpo.pairs}
    kept = results["crv"]["problems"]["total"] - results["crv"]["problems"].get("dropped", 0)
    return {"train": kept - len(heldout), "heldout": len(heldout)}
