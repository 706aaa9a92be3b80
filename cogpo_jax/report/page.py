"""report.html: one self-contained page about the data of a run, its training, and what the held-out pairs say."""

import base64
import hashlib
import json
import math
import statistics
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from cogpo_jax.records import Group, Response
from cogpo_jax.report import charts
from cogpo_jax.report.crv_section import KIND_WORDS, CrvRun, Text, columns, crv_section
from cogpo_jax.report.run_files import MINI_TASKS, Data, Table, Training, heldout_table, margins

SHOWN_PROBLEMS = 5


def build_page(
    data: Data | None = None,
    sft: Training | None = None,
    cogpo: Training | None = None,
    summary: Mapping[str, Any] | None = None,
    crv: CrvRun | None = None,
    evaluations: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML, with a section for each part that is given; `summary` is that of the quickstart,
    `evaluations` is `evaluations.evaluations_section`'s.

    Every text that came from a model is escaped, nothing is loaded from outside the page, and the page's policy lets
    no script run but its own.
    """
    script = _resource("browser.js")
    return render(
        _resource("template.html"),
        data=_data_section(data) if data else None,
        problems=shown_problems(data) if data and not crv else [],
        sft=_sft_section(sft) if sft else None,
        cogpo=_cogpo_section(cogpo) if cogpo else None,
        heldout=_heldout_section(cogpo.pairs) if cogpo and cogpo.pairs else None,
        crv=crv_section(crv) if crv else None,
        summary=summary,
        evaluations=evaluations,
        only_evaluations=not any((data, sft, cogpo, crv, summary)),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def render(source: str, **values: Any) -> str:
    """A Jinja template of this folder's kind as HTML: what it is given is escaped, a name it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(source).render(**values)


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def shown_problems(data: Data) -> list[dict[str, Any]]:
    """Five problems with all three kinds of response, held-out ones first, terse and convoluted originals in turn."""
    by_label: dict[str, list[Group]] = {"easy": [], "hard": []}
    for group in (group for split in ("validation", "train") for group in data.groups.get(split, ())):
        if {"small", "large"} <= {pair.gap for pair in group.pairs}:
            queue = by_label[next(r.kind for r in group.responses if r.kind in by_label)]
            if len(queue) < SHOWN_PROBLEMS:
                queue.append(group)
        if all(len(queue) == SHOWN_PROBLEMS for queue in by_label.values()):
            break
    turns = [queue[i] for i in range(SHOWN_PROBLEMS) for queue in by_label.values() if i < len(queue)]
    return [_card(group) for group in turns[:SHOWN_PROBLEMS]]


def honest_sentence(table: Table) -> str:
    """What the small-gap row says about length, in plain words, from the numbers alone."""
    row = table.get("small")
    if row is None or row["balanced_accuracy"] is None:
        return "The held-out pairs do not hold both lengths of small-gap pair, so nothing can be said about length."
    balanced, low = float(row["balanced_accuracy"]), float(row["balanced_low"] or 0)
    rule = max(float(row["shorter_wins"] or 0), float(row["longer_wins"] or 0))
    longer, shorter = float(row["accuracy_chosen_longer"] or 0), float(row["accuracy_chosen_shorter"] or 0)
    head = (
        f"On small-gap pairs the student is right on {_percent(row['accuracy'])} of all pairs; a rule that only looks "
        f"at which response is longer reaches {_percent(rule)}. It is right on {_percent(longer)} where the chosen "
        f"response is longer and {_percent(shorter)} where it is shorter, {_percent(balanced)} on average "
        f"(95% interval from {_percent(low)}). "
    )
    if low <= 0.5:
        return head + "That average cannot be told from chance: what it learned may be length and nothing else."
    if abs(longer - shorter) > 0.25:
        return head + "It learned more than length, but leans on length: the two figures differ by more than a quarter."
    return head + "Both figures stand together above one half, so length is not all that it learned."


def _data_section(data: Data) -> dict[str, Any]:
    info = data.info
    pairs, groups, origins = Counter[tuple[str, str]](), Counter[str](), Counter[str]()
    longer, ratios = Counter[str](), {gap: array("d") for gap in (*MINI_TASKS, "none")}
    for split, group in ((split, group) for split, some in data.groups.items() for group in some):
        groups[split] += 1
        origins.update(f"{KIND_WORDS[response.kind]}, {response.origin}" for response in group.responses)
        lengths = [len(response_words(response)) for response in group.responses]
        for pair in group.pairs:
            chosen, rejected = lengths[pair.chosen], lengths[pair.rejected]
            pairs[split, pair.gap] += 1
            longer[pair.gap] += chosen > rejected
            ratios[pair.gap].append(chosen / rejected)
    tasks = [
        {
            "gap": gap,
            **{split: pairs[split, gap] for split in data.groups},
            "chosen_longer": longer[gap] / len(ratios[gap]) if ratios[gap] else None,
            "ratio": float(np.median(ratios[gap])) if ratios[gap] else None,
        }
        for gap in MINI_TASKS
    ]
    return {
        "problems": info.get("problems", {}),
        "labels": info.get("labels", {}),
        "drops": info.get("drops", {}),
        "origins": origins,
        "calls": info.get("calls", {}),
        "groups": {split: groups[split] for split in data.groups},
        "tasks": tasks,
    }


def _sft_section(run: Training) -> dict[str, Any]:
    evaluations = [e for e in run.evaluations if _finite(e.get("heldout_nll"))]
    heldout = [(e["step"], e["heldout_nll"]) for e in evaluations]
    unigram = evaluations[-1]["unigram_nll"] if evaluations else None
    return {
        "chart": charts.lines(
            {"train": _series(run, "loss"), "held out": heldout}, "step", "NLL per token (nats)", unigram
        ),
        "has_unigram": unigram is not None,
        "answers": _answers(run),
        "facts": _facts(run),
    }


def _cogpo_section(run: Training) -> dict[str, Any]:
    return {
        "loss": charts.lines({"train": _series(run, "loss")}, "step", "loss", zero=math.log(2)),
        "margin": charts.lines(_by_gap(run, "margin"), "step", "margin in nats, without beta", zero=0.0),
        "accuracy": charts.lines(_by_gap(run, "accuracy"), "step", "accuracy on the step's pairs", zero=0.5),
        "ratios": charts.lines(
            {"chosen": _series(run, "chosen_logratio", "all"), "rejected": _series(run, "rejected_logratio", "all")},
            "step",
            "log-ratio to the SFT model (nats)",
            zero=0.0,
        ),
        "answers": _answers(run),
        "facts": _facts(run),
    }


def _answers(run: Training) -> list[charts.Plot]:
    """Accuracy (with its interval) and length of the answers that `eval.generate` let the student give, by step."""
    read = [(line["step"], line["generate"]) for line in run.evaluations if "generate" in line]
    rates = {"right": "accuracy", "95% from": "accuracy_low", "95% to": "accuracy_high", "cut off": "truncated"}
    sizes = {name: f"tokens_{name}" for name in ("mean", "median", "p90")}

    def curves(names: Mapping[str, str], scale: float) -> dict[str, list[charts.Point]]:
        return {name: [(n, scale * g[key]) for n, g in read if _finite(g.get(key))] for name, key in names.items()}

    some = [
        charts.lines(curves(rates, 100), "step", "problems answered (%)"),
        charts.lines(curves(sizes, 1), "step", "tokens of an answer"),
    ]
    return [plot for plot in some if plot is not None] if read else []


def _heldout_section(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    table = heldout_table(pairs)
    scatters = {}
    for i, gap in enumerate(table):
        rows = [row for row in pairs if row["gap"] == gap]
        lengths = [row["chosen_tokens"] - row["rejected_tokens"] for row in rows]
        points = list(zip(lengths, margins(rows).tolist(), strict=True))
        scatters[gap] = charts.scatter(points, "chosen minus rejected tokens", "margin (nats)", i)
    dots = {gap: _dots(row) for gap, row in table.items()}
    return {"table": table, "dots": dots, "scatters": scatters, "sentence": honest_sentence(table)}


def _dots(row: Mapping[str, Any]) -> list[tuple[str, float | None, float | None, float | None, bool]]:
    """(name, share, low, high, whether to look at it) of each line of a gap's picture."""
    balanced = row["balanced_accuracy"], row["balanced_low"], row["balanced_high"]
    return [
        ("all pairs", row["accuracy"], row["low"], row["high"], True),
        ("mean of the two lengths", *balanced, True),
        (f"chosen longer (n={row['n_chosen_longer']})", row["accuracy_chosen_longer"], None, None, False),
        (f"chosen shorter (n={row['n_chosen_shorter']})", row["accuracy_chosen_shorter"], None, None, False),
        ("rule: shorter wins", row["shorter_wins"], None, None, False),
        ("rule: longer wins", row["longer_wins"], None, None, False),
        ("SFT model, mean log-prob", row["sft_mean_logp_accuracy"], None, None, False),
    ]


def _card(group: Group) -> dict[str, Any]:
    """A problem with its original, its rewrite and its wrong text."""
    by_kind = {response.kind: response for response in group.responses}
    chosen = (by_kind.get("easy") or by_kind.get("hard"), by_kind.get("suitable"), by_kind.get("incorrect"))
    texts = [
        Text(r.id, r.parent, r.kind, r.origin, r.model, response_words(r), json.loads(r.certificate or "{}"))
        for r in chosen
        if r
    ]
    return {"id": group.problem_id, "problem": group.prompt, "answer": group.answer, "columns": columns(texts)}


def response_words(response: Response) -> str:
    """A response as it is read: its verbatim text, or thought and solution."""
    return response.text or f"{response.thought}\n\n{response.solution}"


def _series(run: Training, name: str, gap: str | None = None) -> list[charts.Point]:
    points = []
    for line in run.metrics:
        value = line.get(name) if gap is None else line.get(name, {}).get(gap)
        if value is not None and math.isfinite(value):
            points.append((line["step"], value))
    return points


def _by_gap(run: Training, name: str) -> dict[str, list[charts.Point]]:
    return {gap: _series(run, name, gap) for gap in MINI_TASKS}


def _facts(run: Training) -> dict[str, str]:
    last = run.metrics[-1] if run.metrics else {}
    seconds = [line["seconds"] for line in run.metrics if _finite(line.get("seconds"))]
    facts = {"steps": f"{len(run.metrics)}", "last loss": f"{last.get('loss', math.nan):.4f}"}
    if seconds:
        facts["median step"] = f"{statistics.median(seconds):.2f} s"
    optimizer = run.config.get("optimizer", {})
    if "learning_rate" in optimizer:
        facts["learning rate"] = f"{optimizer['learning_rate']:g}"
    return facts


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(value: Any) -> str:
    return f"{100 * float(value):.0f}%"
