"""How often the verifier is right, on real model texts with adjudicated labels.

    python benchmarks/crv_verifier.py                                  # on the shipped set: the figures
    python benchmarks/crv_verifier.py --raw=A.jsonl,B.jsonl --write    # makes the set anew from EIT-NLP's files
    python benchmarks/crv_verifier.py --write                          # labels the shipped texts anew
    python benchmarks/crv_verifier.py --cases=CASES.jsonl              # labelled facts, beside plain math-verify

The source's `correct` labels come from an automatic grader, and are noisy. Where they and the verifier disagree, it is
adjudicated by a rule, written down as `why` (see `adjudicate`); what no rule decides is `unclear` and counts for no
side. The shipped set holds every text whose source label is not "correct", every text the verifier does not call
correct, and a sample of the rest.

Cases are rows of {gold, candidate, equal (true, false; null is left out), suite}, as in
tests/data/verifier/equivalence.jsonl. Each verdict is timed in a worker process, as in a run; math-verify runs with its
own time limits.
"""

import asyncio
import hashlib
import json
import lzma
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from crv.verify import algebra
from crv.verify.certificate import CORRECT, INCORRECT, UNKNOWN, Certificate, certify, ladder
from crv.verify.extract import final_spans
from crv.verify.workers import AlgebraWorkers

SET = Path(__file__).parents[1] / "tests" / "data" / "verifier" / "adjudicated.jsonl.xz"
_RAW = flags.DEFINE_list("raw", [], "EIT-NLP granularity files; none: the shipped set.")
_WRITE = flags.DEFINE_bool("write", False, "Write the shipped set anew.")
_CASES = flags.DEFINE_string("cases", None, "Labelled facts: figures by suite, beside math-verify's.")
_SAMPLE = 40  # one in so many of the texts on which source and verifier agree that they are right

_UNIT = re.compile(r"(?<=[\d}])\s*(?:\\(?:text|mbox)\{[^}]*\}|hours|feet|cm)(?:\^2|²)?\.?")


def _plain_degrees(text: str) -> str:
    return text.replace("°", r"^\circ").replace(r"\text{ degrees}", r"^\circ").replace(r"^{\circ}", r"^\circ")


def _plain_spacing(text: str) -> str:
    return re.sub(r"[\s$]|\\\\?!|\{,\}", "", text).replace(",", "") if re.search(r"\d", text) else text


# Spellings of one answer that the source's grader calls wrong: rewriting checked by hand, the verifier not consulted.
_SAME_SPELLING = (
    ("degree sign", _plain_degrees),
    ("root sign", lambda text: re.sub(r"√(\d+)", r"\\sqrt{\1}", text)),
    ("one half", lambda text: text.replace("½", r"\frac{1}{2}")),
    ("lost form feed", lambda text: text.replace("\x0crac", r"\frac").replace(r"\dfrac", r"\frac")),
    ("unit", lambda text: _UNIT.sub("", text)),
    ("right side of a true equation", lambda text: text.split("=")[-1]),
    ("spacing and dollars", _plain_spacing),
    ("spacing in text", lambda text: re.sub(r"\\text\{([^}]*)\}", r"\1", text).replace(" ", "")),
)


# Read by hand: their right sides are the gold answer, but nothing says that it was reached.
_FALSE_EQUATIONS = frozenset({"64 + 64 = 126", "80 * (24/24) = 120", "85 - 15 = 15"})


def adjudicate(gold: str, text: str, source: bool | None) -> tuple[str, str]:
    """(correct | incorrect | unclear, why) of a text, from the source's label and hand-checked rules alone."""
    spans = final_spans(text)
    said = spans[-1].text if spans else ""
    if source:
        return CORRECT, "source"
    if said in _FALSE_EQUATIONS:
        return "unclear", "a false equation"
    mine, its, used = said, gold, []
    for name, spell in _SAME_SPELLING:
        spelled = spell(mine), spell(its)
        used += [name] if spelled != (mine, its) else []
        mine, its = spelled
        if mine.strip(" .") == its.strip(" ."):
            return CORRECT, f"the same but for: {', '.join(used) or 'nothing'}"
    if not spans or len({span.text for span in spans}) > 1:
        return "unclear", "no final answer, or several"
    return INCORRECT, "source, and no spelling of the gold answer"


def rows_of(paths: list[str]) -> Iterator[dict[str, Any]]:
    """{id, gold, text, source, label, why} of every text of the raw files."""
    for path in paths:
        for line in Path(path).read_bytes().split(b"\n"):
            row = json.loads(line) if line else {"cots": []}
            for cot in row["cots"]:
                label, why = adjudicate(row["answer"], cot["text"], cot["correct"])
                name = f"{row['id']} {cot['teacher']} {cot['granularity']}"
                yield {
                    "id": name,
                    "gold": row["answer"],
                    "text": cot["text"],
                    "source": cot["correct"],
                    "label": label,
                    "why": why,
                }


def _relabelled() -> Iterator[dict[str, Any]]:
    for row in shipped():
        label, why = adjudicate(row["gold"], row["text"], row["source"])
        yield {**row, "label": label, "why": why}


def shipped() -> list[dict[str, Any]]:
    """The rows of the shipped set."""
    return [json.loads(line) for line in lzma.decompress(SET.read_bytes()).split(b"\n") if line]


async def _algebra(gold: str, answer: str) -> tuple[str, str]:
    return algebra.compare(gold, answer)


def judge(row: dict[str, Any]) -> Certificate:
    """The verifier's certificate on a row (algebra in this process: the set holds nothing hostile)."""
    return asyncio.run(certify(row["gold"], row["text"], ladder(_algebra)))


def figures(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Precision and recall of "correct", false "proved wrong", and the table of label and verdict."""
    said = {
        verdict: sum(n for (label, v), n in counts.items() if v == verdict and label != "unclear")
        for verdict in (CORRECT, INCORRECT)
    }
    right = sum(n for (label, _), n in counts.items() if label == CORRECT)
    return {
        "texts": sum(counts.values()),
        "precision_of_correct": round(counts[CORRECT, CORRECT] / max(said[CORRECT], 1), 5),
        "recall_of_correct": round(counts[CORRECT, CORRECT] / max(right, 1), 5),
        "proved_wrong": said[INCORRECT],
        "false_proved_wrong": counts[CORRECT, INCORRECT],
        "table": {f"{label} called {verdict}": n for (label, verdict), n in sorted(counts.items())},
    }


def wilson(hits: int, of: int, z: float = 1.96) -> list[float]:
    """The 95% interval of a share (Wilson, 1927)."""
    if not of:
        return [0.0, 1.0]
    share, spread = hits / of, z * z / of
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return [round((middle - half) / (1 + spread), 3), round((middle + half) / (1 + spread), 3)]


def peer(gold: str, candidate: str) -> str:
    """What plain math-verify says: correct, or incorrect for "not shown equal" (it has no proof of difference)."""
    from math_verify import parse, verify

    try:
        return CORRECT if verify(parse(f"${gold}$"), parse(candidate)) else INCORRECT
    except Exception:  # it raises on some texts; a user's run would have to go on
        return INCORRECT


async def _timed(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    async with AlgebraWorkers(1, seconds=5.0) as workers:
        compare = ladder(workers.compare)
        await certify(r"\sqrt{2}", r"The answer is $\sqrt{3}$", compare)  # starts the worker
        out = []
        for row in rows:
            start = time.perf_counter()
            verdict = (await certify(row["gold"], row["candidate"], compare)).verdict
            out.append((verdict, time.perf_counter() - start))
        return out


def cases(path: Path) -> None:
    """Prints a line for each suite and one for all: verdicts by label, ours and math-verify's, intervals, times."""
    rows = [row for row in map(json.loads, path.read_bytes().splitlines()) if row["equal"] is not None]
    ours = asyncio.run(_timed(rows))
    start = time.perf_counter()
    theirs = [peer(row["gold"], row["candidate"]) for row in rows]
    seconds = time.perf_counter() - start
    for suite in [*sorted({row["suite"] for row in rows}), ""]:
        chosen = [k for k, row in enumerate(rows) if suite in ("", row["suite"])]
        line: dict[str, Any] = {"suite": suite or "all", "rows": len(chosen)}
        for label, equal in (("equal", True), ("unequal", False)):
            side = [k for k in chosen if rows[k]["equal"] is equal]
            said = Counter(ours[k][0] for k in side)
            right = said[CORRECT if equal else INCORRECT]
            line[label] = {v: said[v] for v in (CORRECT, INCORRECT, UNKNOWN)}
            line[f"recall_{label}"] = [round(right / max(len(side), 1), 3), wilson(right, len(side))]
            line[f"math_verify_{label}"] = dict(Counter(theirs[k] for k in side))
        print(json.dumps(line))
    times = sorted(t for _, t in ours)
    print(
        json.dumps(
            {
                "median_ms": round(1e3 * statistics.median(times), 2),
                "max_s": round(times[-1], 2),
                "math_verify_mean_ms": round(1e3 * seconds / len(rows), 2),
            }
        )
    )


def main() -> None:
    """Prints the figures; with --write, makes the set."""
    if _CASES.value:
        return cases(Path(_CASES.value))
    counts: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows_of(_RAW.value) if _RAW.value else _relabelled() if _WRITE.value else shipped():
        verdict = judge(row).verdict
        counts[row["label"], verdict] += 1
        agreed = _RAW.value and row["source"] and verdict == CORRECT
        if not agreed or hashlib.sha256(row["id"].encode()).digest()[0] % _SAMPLE == 0:
            kept.append(row)
        if row["label"] != "unclear" and verdict != UNKNOWN and verdict != row["label"]:
            print(
                json.dumps({"disagreement": row["id"], "gold": row["gold"], "label": row["label"], "verdict": verdict})
            )
    if _WRITE.value:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_atomic(SET, lzma.compress(lines.encode(), preset=9))
    print(json.dumps({**figures(counts), "kept": len(kept)}))


if __name__ == "__main__":
    cli.run(main)
