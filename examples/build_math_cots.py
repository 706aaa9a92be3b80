"""Builds examples/math_cots out of MATH-train problems with chains of thought at six levels of detail.

    python examples/build_math_cots.py --raw=math_train_granularity.jsonl --tokenizer=QWEN_FOLDER

Writes problems.jsonl (what CRV reads) and recordings.jsonl (what the recorded pool answers). The recordings are made by
walking each problem through the real loop with a scripted pool, so they answer exactly the requests that CRV makes.
Labels come from level and measured length, correctness from regrading; see the README beside the files.
"""

import asyncio
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags
from wrong_by_rule import corrupt_by_rule

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from crv.agents import Agents
from crv.loop import run_problem
from crv.options import Options
from crv.pool.base import Answer, Request
from crv.problems import Problem
from crv.prompts import load_prompts
from crv.verify import algebra
from crv.verify.certificate import CORRECT, INCORRECT, certify, ladder
from crv.verify.extract import final_spans, speaks_of_answer

RAW = flags.DEFINE_string(
    "raw", None, "math_train_granularity.jsonl of EIT-NLP/Distilling-CoT-Reasoning.", required=True
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "A tokenizer folder: lengths are measured in its tokens.", required=True
)
OUTPUT = flags.DEFINE_string("output", "examples/math_cots", "Folder to write.")
CONFIG = cli.define_config("crv_recorded")

FITTING, TERSE, DETAILED = 3, (1, 2), (5, 6)
TERSE_AT_MOST, DETAILED_AT_LEAST, MIN_TOKENS = 0.83, 1.2, 20
MAX_TOKENS = 512  # of any text: a tiny student's row
MADE, MEDIUM, SPEAKING, FAILING, WRONG_ORIGINALS = 165, 12, 12, 4, 4
# Of made triangles. Three teachers' levels have little style in common: a tiny student, with about a hundred problems
# to learn from, learns one teacher's.
TEACHER = "llama-3-70b"
SOURCE = "MATH train (EIT-NLP/Distilling-CoT-Reasoning@cc33822e)"


@dataclass(frozen=True)
class Cot:
    """One teacher's text at one level, regraded."""

    teacher: str
    level: int
    text: str
    tokens: int
    verdict: str
    speaks: bool


@dataclass
class Case:
    """A problem of the fixture: its original, the critic's word, and what the other agents answer, in order."""

    row: dict[str, Any]
    original: Cot
    label: str
    rewrites: list[Cot] = field(default_factory=list)
    solutions: list[Cot] = field(default_factory=list)
    wrong: str = ""
    what: str = ""


class ScriptedPool:
    """Answers for one case and writes down every question it was asked."""

    def __init__(self, case: Case, recordings: dict[str, dict[str, Any]]):
        self.case, self.recordings = case, recordings

    async def generate(self, request: Request) -> Answer:
        """The scripted answer, recorded."""
        text, model, origin = self._say(request)
        row = {
            "question": request.question(),
            "agent": request.agent,
            "problem_id": request.problem_id,
            "attempt": request.attempt,
        }
        self.recordings[row["question"]] = {
            **row,
            "answer": text,
            "model": model,
            **({"origin": origin} if origin else {}),
        }
        return Answer(text, model=model, origin=origin)

    def _say(self, request: Request) -> tuple[str, str, str]:
        case, agent = self.case, request.agent
        if agent == "critic":
            reason = (
                f"Level {case.original.level} of 6, {case.original.tokens} tokens."
                if not case.solutions
                else "By level and length."
            )
            return json.dumps({"reason": reason, "label": case.label}), "derived:level-and-length", ""
        if agent == "verifier":
            source = next(
                c for c in case.rewrites if c.text.startswith(request.inputs["cot"][:40]) and c.verdict == CORRECT
            )
            return (
                f"The answer is \\boxed{{{final_spans(source.text)[-1].text.strip().strip('$')}}}",
                "derived:regrading",
                "",
            )
        if agent == "corrupter":
            return case.wrong, "rule:perturb-one-step-v1", "rule"
        cots = case.solutions if agent == "solver" else case.rewrites
        cot = cots[min(request.attempt, len(cots) - 1)]
        return cot.text, cot.teacher, ""


async def _compare(gold: str, answer: str) -> tuple[str, str]:
    return algebra.compare(gold, answer)


async def grade_all(raw: str, tokenizer: Any) -> list[tuple[dict[str, Any], dict[str, dict[int, Cot]]]]:
    """Every problem with its usable texts by teacher and level: regraded, long enough, no text twice."""
    graded = []
    for line in Path(raw).read_bytes().split(b"\n"):
        if not line:
            continue
        row, seen = json.loads(line), set()
        by_teacher: dict[str, dict[int, Cot]] = defaultdict(dict)
        for item in row["cots"]:
            text = item["text"].strip()
            tokens = len(tokenizer(text)["input_ids"])
            if (
                not MIN_TOKENS <= tokens <= MAX_TOKENS
                or text in seen
                or any(ord(c) < 32 and c not in "\n\t" for c in text)
            ):
                continue
            seen.add(text)
            verdict = (await certify(row["answer"], text, ladder(_compare))).verdict
            cot = Cot(item["teacher"], item["granularity"], text, tokens, verdict, bool(speaks_of_answer(text)))
            by_teacher[cot.teacher][cot.level] = cot
        graded.append((row, by_teacher))
    return graded


def triangles(by_teacher: dict[str, dict[int, Cot]]) -> Iterator[tuple[Cot, Cot, str, list[Cot]]]:
    """(fitting, unsuitable, its label, the same teacher's wrong texts) of each way to see a problem."""
    for cots in by_teacher.values():
        fit = cots.get(FITTING)
        if not fit or fit.verdict != CORRECT or fit.speaks:
            continue
        wrong = [c for c in cots.values() if c.verdict == INCORRECT]
        for level in (*TERSE, *DETAILED):
            other = cots.get(level)
            if other and other.verdict == CORRECT and not other.speaks:
                if level in TERSE and other.tokens <= TERSE_AT_MOST * fit.tokens:
                    yield fit, other, "easy", wrong
                if level in DETAILED and other.tokens >= DETAILED_AT_LEAST * fit.tokens:
                    yield fit, other, "hard", wrong


def choose(graded: list[tuple[dict[str, Any], dict[str, dict[int, Cot]]]], rng: random.Random) -> list[Case]:
    """About 200 cases: natural triangles, made ones, easy and hard in balance, and some of each other path."""
    cases: list[Case] = []
    labels: Counter[str] = Counter()
    wanted = {"made": MADE, "medium": MEDIUM, "speaking": SPEAKING, "failing": FAILING, "wrong": WRONG_ORIGINALS}
    rng.shuffle(graded)

    def pick(options: list[Any]) -> Any:
        rarer = min(("easy", "hard"), key=lambda label: labels[label])
        options = [o for o in options if o[2] == rarer] or options
        return rng.choice(options)

    rest = []
    for row, by_teacher in graded:
        natural = [t for t in triangles(by_teacher) if t[3]]
        if not natural:
            rest.append((row, by_teacher))
            continue
        fit, other, label, wrong = pick(natural)
        labels[label] += 1
        mistake = min(wrong, key=lambda c: abs(c.tokens - fit.tokens))
        if len(cases) % 3 == 0:  # the Rethinker slips once, and the Verifier catches it
            cases.append(Case(row, other, label, rewrites=[mistake, fit], what="natural, wrong rewrite"))
        else:  # a wrong original, and a solver who gets it right
            cases.append(Case(row, mistake, label, rewrites=[fit], solutions=[other], what="natural, wrong original"))
    for row, by_teacher in rest:
        case = _case_without_mistake(row, by_teacher, wanted, pick, rng)
        if case is not None:
            cases.append(case)
            wanted[case.what] -= 1
            labels[case.label] += case.label in ("easy", "hard")
    rng.shuffle(cases)
    return cases


def _case_without_mistake(row: Any, by_teacher: Any, wanted: Any, pick: Any, rng: random.Random) -> Case | None:
    every = [c for cots in by_teacher.values() for c in cots.values()]
    wrong = [c for c in every if c.verdict == INCORRECT]
    if wanted["wrong"] > 0 and len(wrong) >= 2:
        return Case(row, wrong[0], "", solutions=[wrong[1]], what="wrong")
    options = [triangle for triangle in triangles(by_teacher) if triangle[0].teacher == TEACHER]
    if not options:
        return None
    fit, other, label, _ = pick(options)
    if wanted["failing"] > 0 and wrong:
        return Case(row, other, label, rewrites=wrong[:1], what="failing")
    # Made from the unsuitable text where it can be: were every mistake made from a fitting one, style alone would tell
    # right from wrong in the medium pairs, and teach a student that sees only style the reverse of the small pairs.
    made = corrupt_by_rule(other.text, rng) or corrupt_by_rule(fit.text, rng)
    if not made or wrong:
        return None
    speaking = [c for c in every if c.speaks and c.verdict == CORRECT]
    if wanted["speaking"] > 0 and speaking:
        return Case(row, other, label, rewrites=[speaking[0], fit], wrong=made, what="speaking")
    if wanted["made"] > 0:
        return Case(row, other, label, rewrites=[fit], wrong=made, what="made")
    made = corrupt_by_rule(fit.text, rng)
    if wanted["medium"] > 0 and made:
        return Case(row, fit, "medium", wrong=made, what="medium")
    return None


def main() -> None:
    """Chooses the cases, walks them through the loop, and writes both files."""
    from transformers import AutoTokenizer

    options = Options.from_config(cli.load_config(CONFIG))
    graded = asyncio.run(grade_all(RAW.value, AutoTokenizer.from_pretrained(TOKENIZER.value)))
    recordings: dict[str, dict[str, Any]] = {}
    problems, ends = [], Counter()
    agents = Agents(load_prompts(options.prompts), options)
    for case in choose(graded, random.Random(options.seed)):
        row = case.row
        problem = Problem(
            row["id"], row["problem"], row["answer"], case.original.text, case.original.teacher, SOURCE, row["level"]
        )
        kept: dict[str, dict[str, Any]] = {}
        outcome = asyncio.run(
            run_problem(problem, agents, ScriptedPool(case, kept).generate, ladder(_compare), options)
        )
        if case.wrong and not any(r.kind == "incorrect" for r in outcome.responses):
            ends["left out: the made mistake is not proved wrong"] += 1
            continue
        recordings |= kept
        problems.append({**{k: getattr(problem, k) for k in Problem.__dataclass_fields__}, "type": row["type"]})
        ends[f"{case.what}: {outcome.state} {outcome.reason or outcome.label}"] += 1
    problems.sort(key=lambda row: hashlib.sha256(row["problem_id"].encode()).digest())
    _write("problems.jsonl", problems)
    _write("recordings.jsonl", sorted(recordings.values(), key=lambda r: (r["problem_id"], r["agent"], r["attempt"])))
    print(
        json.dumps(
            {"problems": len(problems), "recordings": len(recordings), "cases": dict(sorted(ends.items()))}, indent=2
        )
    )


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    write_atomic(Path(OUTPUT.value) / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    cli.run(main)
