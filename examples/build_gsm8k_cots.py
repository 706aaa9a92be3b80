"""Makes examples/gsm8k_cots: GSM8K problems with texts by rule, and a recorded run of CRV on a served model.

    python examples/build_gsm8k_cots.py --raw=train.jsonl --calls=calls.jsonl [--url=http://127.0.0.1:30000]

`--url`, an OpenAI-compatible server: asks it what `--calls` does not hold yet, and appends each answer as it comes.
Without it the fixture is written: problems.jsonl (what CRV reads) and recordings.jsonl (what the recorded pool
answers). Both are made by walking each problem through CRV's own loop, so they answer exactly the requests that CRV
makes. Labels are by rule; what the served model said as a critic stays beside its label.
"""

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from absl import flags
from gsm8k_texts import texts_by_rule
from wrong_by_rule import corrupt_by_rule

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from crv.agents import Agents
from crv.loop import Outcome, run_problem
from crv.options import Options
from crv.pool.base import Answer, PoolError, Request
from crv.problems import Problem
from crv.prompts import load_prompts
from crv.verify import algebra
from crv.verify.certificate import ladder
from crv.verify.extract import final_spans

RAW = flags.DEFINE_string("raw", None, "train.jsonl of openai/grade-school-math.", required=True)
CALLS = flags.DEFINE_string(
    "calls", None, "JSONL file of the served model's answers, read and added to.", required=True
)
URL = flags.DEFINE_string("url", "", "An OpenAI-compatible server; empty: writes the fixture from what is recorded.")
OUTPUT = flags.DEFINE_string("output", "examples/gsm8k_cots", "Folder to write.")
IN_FLIGHT = flags.DEFINE_integer("in_flight", 12, "Problems walked at a time with a server.")
CONFIG = cli.define_config("configs/crv_recorded.py")

MODEL = "qwen2.5-coder-1.5b-instruct"
SOURCE = "GSM8K train (openai/grade-school-math@3101c7d5)"
# Problems by the path they take; each takes as many as stand here, in the order of the shuffled file.
PATHS = {
    "made": 150,
    "wrong original": 25,
    "wrong rewrite": 13,
    "medium": 12,
    "failing": 4,
    "outvoted": 3,
    "speaking": 2,
}
SERVED = 400  # problems behind those that the served model may walk, as far as it comes
PERSON, RULE, MADE = "person (GSM8K)", "rule:gsm8k-texts-v1", "rule:perturb-one-step-v1"
_DETAILED = """{problem}

Solve it, and explain each step at length in plain words: say first what is known and what is asked, write each \
calculation as an equation with plain numbers, and check the result. No LaTeX, no code. \
The last line is: The answer is <number>"""


@dataclass
class Case:
    """A problem by rule: the path it takes, its original, and what the agents answer in order."""

    problem: Problem
    path: str
    label: str
    rewrites: list[tuple[str, str]] = field(default_factory=list)  # (text, who made it)
    solutions: list[tuple[str, str]] = field(default_factory=list)
    wrong: str = ""


class RulePool:
    """Answers for one case; `rows` are the recordings."""

    def __init__(self, case: Case):
        self.case, self.rows = case, []

    async def generate(self, request: Request) -> Answer:
        """The scripted answer, recorded."""
        text, model, origin = self._say(request)
        about = {"agent": request.agent, "problem_id": request.problem_id, "attempt": request.attempt}
        row = {"question": request.question(), **about, "answer": text, "model": model}
        self.rows.append({**row, **({"origin": origin} if origin else {})})
        return Answer(text, model=model, origin=origin)

    def _say(self, request: Request) -> tuple[str, str, str]:
        case = self.case
        if request.agent == "critic":
            return json.dumps({"reason": "By the rule that made the text.", "label": case.label}), RULE, ""
        if request.agent == "verifier":
            right = case.rewrites[-1][0]  # whatever was wrong before it was not worth a question
            return f"The answer is \\boxed{{{final_spans(right)[-1].text.strip()}}}", RULE, ""
        if request.agent == "corrupter":
            return case.wrong, MADE, "rule"
        texts = case.solutions if request.agent == "solver" else case.rewrites
        return *texts[min(request.attempt, len(texts) - 1)], ""


class ServedPool:
    """One problem's pool on the served model: its own words, but for the critic's label and mistakes made by rule."""

    def __init__(self, server: "RecordedServer", problem: Problem, label: str):
        self.server, self.problem, self.label, self.rows = server, problem, label, []

    async def generate(self, request: Request) -> Answer:
        """The answer of the server or the rule, noted in `rows`."""
        about = {"agent": request.agent, "problem_id": request.problem_id, "attempt": request.attempt}
        if request.agent == "corrupter" and hashlib.sha256(request.problem_id.encode()).digest()[0] % 4:
            rng = random.Random(request.problem_id)
            made = corrupt_by_rule(self.problem.cot, rng) or corrupt_by_rule(request.inputs["cot"], rng)
            if made:
                row = {"question": request.question(), **about, "answer": made, "model": MADE, "origin": "rule"}
                self.rows.append(row)
                return Answer(made, model=MADE, origin="rule")
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in request.messages],
            "temperature": 0.0 if request.agent == "critic" else 0.7,
            "top_p": 0.95,
            "seed": request.seed,
            "max_tokens": {"critic": 110, "verifier": 40}.get(request.agent, 400),
        }
        if request.schema:
            schema = {"name": request.agent, "schema": json.loads(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        row = dict(await self.server.ask(request.question(), about, body))
        if request.agent == "critic":
            row = self._labelled(row)
        self.rows.append(row)
        return Answer(row["answer"], row["finish_reason"], model=row["model"])

    def _labelled(self, row: dict[str, Any]) -> dict[str, Any]:
        """The critic's reason with the label by rule; its own label stays beside it."""
        try:
            said = json.loads(row["answer"])
        except ValueError:
            said = {}
        answer = json.dumps({"reason": said.get("reason", ""), "label": self.label}, ensure_ascii=False)
        return {**row, "answer": answer, "finish_reason": "stop", "critic_said": said.get("label", "")}


class RecordedServer:
    """The served model's calls, each asked once and appended to a file."""

    def __init__(self, path: str, url: str):
        self.path, self.url = Path(path), url
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        self.known = {row["question"]: row for row in map(json.loads, lines)}
        self.client = httpx.AsyncClient(timeout=3600.0)

    async def ask(self, question: str, about: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """The recorded row of a question, asked now if there is a server; else PoolError."""
        if question not in self.known:
            if not self.url:
                raise PoolError(f"not recorded: {about}")
            reply = await self.client.post(f"{self.url}/v1/chat/completions", json={"model": MODEL, **body})
            reply.raise_for_status()
            choice = reply.json()["choices"][0]
            said = {"answer": choice["message"]["content"], "finish_reason": choice["finish_reason"], "model": MODEL}
            row = self.known[question] = {"question": question, **about, **said}
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        return self.known[question]


def problem_rows(path: str, seed: int) -> list[dict[str, str]]:
    """GSM8K's rows in a random order: id, question, annotated answer and gold."""
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines()):
        row = json.loads(line)
        gold = row["answer"].rpartition("#### ")[2].strip().replace(",", "")
        question = row["question"].strip()
        rows.append({"id": f"gsm8k_train/{number}", "problem": question, "answer": row["answer"], "gold": gold})
    random.Random(seed).shuffle(rows)
    return rows


def cases_by_rule(rows: list[dict[str, str]]) -> list[Case]:
    """The cases of PATHS, easy and hard in turn."""
    wanted, cases, turn = dict(PATHS), [], 0
    for row in rows:
        if not any(wanted.values()):
            break
        path = max(wanted, key=lambda path: wanted[path] / PATHS[path])
        rng = random.Random(row["id"])
        texts = texts_by_rule(row["problem"], row["answer"], rng)
        if texts is None:
            continue
        label, other = (("easy", texts.terse), ("hard", texts.convoluted))[turn % 2]
        made, made_fitting = corrupt_by_rule(other, rng), corrupt_by_rule(texts.fitting, rng)
        if not made or not made_fitting:
            continue
        right, rule = (texts.fitting, PERSON), (other, RULE)
        case = Case(Problem(row["id"], row["problem"], row["gold"], other, RULE, SOURCE), path, label, [right])
        case.wrong = made
        cot, who = other, RULE
        if path == "medium":
            cot, who, case.label, case.wrong = texts.fitting, PERSON, "medium", made_fitting
        elif path == "wrong original":
            cot, who, case.solutions = made, MADE, [rule]
        elif path == "outvoted":
            cot, who, case.solutions = made, MADE, [(made, MADE)]
        elif path == "wrong rewrite":
            case.rewrites = [(made_fitting, MADE), right]
        elif path == "failing":
            case.rewrites = [(made_fitting, MADE)]
        elif path == "speaking":
            case.rewrites = [(f"The given answer is {row['gold']}, so it must come out.\n{texts.fitting}", RULE), right]
        case.problem = Problem(row["id"], row["problem"], row["gold"], cot, who, SOURCE)
        cases.append(case)
        wanted[path] -= 1
        turn += 1
    return cases


async def original(server: RecordedServer, row: dict[str, str], number: int) -> tuple[str, str, str]:
    """(text, who wrote it, label by rule) for the served model: a person's terse solution, or its own long one."""
    if number % 2 == 0:
        body = re.sub(r"<<[^>]*>>", "", row["answer"].rpartition("#### ")[0]).strip()
        return f"{body}\nThe answer is {row['answer'].rpartition('#### ')[2].strip()}", PERSON, "easy"
    prompt = _DETAILED.format(problem=row["problem"])
    asked = {"messages": [{"role": "user", "content": prompt}], "temperature": 0.7, "top_p": 0.95}
    question = hashlib.sha256(f"original\0{prompt}".encode()).hexdigest()
    about = {"agent": "original", "problem_id": row["id"], "attempt": 0}
    said = await server.ask(question, about, {**asked, "seed": number, "max_tokens": 450})
    return said["answer"].strip() if said["finish_reason"] == "stop" else "", MODEL, "hard"


async def _compare(gold: str, answer: str) -> tuple[str, str]:
    return algebra.compare(gold, answer)


async def walk_served(
    agents: Agents, rows: list[dict[str, str]], options: Options
) -> list[tuple[Problem, Outcome, list[dict[str, Any]]]]:
    """Walks problems with the served model; without a server, those that are not recorded whole are left out."""
    server, numbered, done = RecordedServer(CALLS.value, URL.value), iter(list(enumerate(rows))), []

    async def walk_on() -> None:
        for number, row in numbered:
            try:
                cot, model, label = await original(server, row, number)
                problem = Problem(row["id"], row["problem"], row["gold"], cot, model, SOURCE)
                pool = ServedPool(server, problem, label)
                outcome = await run_problem(problem, agents, pool.generate, ladder(_compare), options)
            except PoolError:
                continue
            done.append((problem, outcome, pool.rows))
            if URL.value:
                print(len(done), row["id"], outcome.state, outcome.reason or outcome.label, flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT.value):
            group.create_task(walk_on())
    return done


async def walk_by_rule(
    agents: Agents, cases: list[Case], options: Options
) -> list[tuple[Problem, Outcome, list[dict[str, Any]]]]:
    """Walks the cases; those whose made mistake is not proved wrong are left out."""
    done = []
    for case in cases:
        pool = RulePool(case)
        outcome = await run_problem(case.problem, agents, pool.generate, ladder(_compare), options)
        if case.path == "outvoted" or any(response.kind == "incorrect" for response in outcome.responses):
            done.append((case.problem, outcome, pool.rows))
    return done


def main() -> None:
    """Asks the served model (with --url), or writes both files."""
    config = cli.load_config(CONFIG)
    options = Options.from_config(config)
    config.asks = 1
    served_options = Options.from_config(config)
    agents, rows = Agents(load_prompts(options.prompts), options), problem_rows(RAW.value, options.seed)
    served = asyncio.run(walk_served(agents, rows[:SERVED], served_options))
    if URL.value:
        return
    done = asyncio.run(walk_by_rule(agents, cases_by_rule(rows[SERVED:]), options))
    problems, recordings, ends = [], [], Counter()
    for who, walked in (("served", served), ("rule", done)):
        for problem, outcome, answers in walked:
            problems.append({name: getattr(problem, name) for name in Problem.__dataclass_fields__})
            recordings += answers
            ends[f"{who}: {outcome.state} {outcome.reason or outcome.label}"] += 1
    problems.sort(key=lambda row: hashlib.sha256(row["problem_id"].encode()).digest())
    recordings.sort(key=lambda row: (row["problem_id"], row["agent"], row["attempt"]))
    for name, lines in (("problems.jsonl", problems), ("recordings.jsonl", recordings)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        write_atomic(Path(OUTPUT.value) / name, text)
    print(json.dumps({"problems": len(problems), "recordings": len(recordings), "ends": dict(sorted(ends.items()))}))


if __name__ == "__main__":
    cli.run(main)
