"""What a report shows of a run, read from its ledger in one pass: memory does not grow with the run."""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.report.crv_run import REWRITES, AgentCost, CrvRun, FlowPath, ShownProblem, Text
from crv.ledger import Ledger

SHOWN = 100  # problems in the page's browser, unless told
_VERDICTS = {"correct": "right", "incorrect": "wrong", "unknown": "undecided"}


def read_overview(workdir: str | Path, shown: int = SHOWN) -> CrvRun:
    """The overview of a run, finished or not, with at most `shown` problems; UserError where there is no ledger.

    Every sort of problem (state, label, reason of its drop) gives the same number of shown ones as far as it has them:
    those whose ids hash lowest.
    """
    path = Path(workdir) / "ledger.sqlite"
    if not path.is_file():
        raise UserError(f"workdir: {workdir}: no ledger in it; give the workdir of a CRV run")
    ledger = Ledger(path, read_only=True)
    try:
        return _overview(ledger, shown)
    finally:
        ledger.release()


def _overview(ledger: Ledger, shown: int) -> CrvRun:
    early = dict(ledger.db.execute("SELECT dropped, COUNT(*) FROM problems WHERE dropped != '' GROUP BY dropped"))
    tally = _Tally(shown)
    for row in ledger.db.execute(
        "SELECT problem_id, state, reason, label, rounds, pairs, body FROM outcomes ORDER BY place"
    ):
        tally.add(*row)
    if early:
        tally.flows[("not looked at", "", "", "dropped before any call")] += sum(early.values())
    (problems,) = ledger.db.execute("SELECT COUNT(*) FROM problems").fetchone()
    return CrvRun(
        problems=problems,
        walked=tally.states.total(),
        states=dict(tally.states + Counter({"dropped": sum(early.values())})),
        drops={**early, **tally.drops},
        pairs=dict(tally.pairs),
        flows=dict(tally.flows),
        words=dict(tally.words),
        rounds=dict(tally.rounds),
        unusable=dict(tally.unusable),
        cost=tuple(_cost(ledger)),
        shown=tuple(_shown(ledger, _in_turn(list(tally.sorts.values()), shown))),
    )


class _Tally:
    """The counts of a pass over the outcomes; `sorts`: the first ids of each sort of problem."""

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self.states, self.drops, self.pairs = Counter[str](), Counter[str](), Counter[str]()
        self.flows, self.rounds, self.unusable = Counter[FlowPath](), Counter[tuple[int, str]](), Counter[str]()
        self.words: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        self.sorts: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)

    def add(self, problem_id: str, state: str, reason: str, label: str, rounds: int, pairs: str, body: bytes) -> None:
        row = json.loads(zlib.decompress(body))
        self.states[state] += 1
        self.drops.update([reason] if reason else [])
        self.pairs.update(pairs.split())
        self.flows[_path(row["story"], state, reason, label, rounds)] += 1
        self.rounds.update([(rounds, state)] if rounds else [])
        self.unusable.update(f"{step['step']}: {step['unusable']}" for step in row["story"] if "unusable" in step)
        self._count_words(row["responses"], state, label)
        sort = self.sorts[state, label, reason]
        if len(sort) < self.shown:
            sort.append(problem_id)

    def _count_words(self, responses: Iterable[Mapping[str, Any]], state: str, label: str) -> None:
        for response in responses:
            kind, count = response["kind"], len(_text(response).split())
            if kind == "suitable":
                self.words["all", "suitable"][count] += 1
            elif kind == "incorrect":
                self.words["all", "wrong"][count] += 1
            # Originals whose rewrite failed have nothing to be compared with.
            if state == "rewritten" and kind in (label, "suitable"):
                self.words[label, "rewritten" if kind == "suitable" else "original"][count] += 1


def _path(story: Sequence[Mapping[str, Any]], state: str, reason: str, label: str, rounds: int) -> FlowPath:
    """The way that a problem took through the columns of the flow picture."""
    if reason == "gold_unreadable":
        return ("gold unreadable", "", "", "dropped before any call")
    verdicts = (step["verdict"] for step in story if step["step"] == "verify" and step["of"] == "original")
    original = _VERDICTS.get(next(verdicts, ""), "none given")
    if state == "fitting":
        return (original, label, REWRITES[0], "suitable as it was")
    if label:
        times = REWRITES[rounds] if rounds <= 3 else "more rounds"
        return (original, label, times, "suitable rewrite" if state == "rewritten" else "no rewrite passed")
    if reason.startswith("critic_"):
        return (original, "no label", "", "critic unusable")
    return (original, "", "", "no right original")


def _cost(ledger: Ledger) -> Iterator[AgentCost]:
    """Finished calls by agent and model, those of earlier prompts included: what the run has cost."""
    ends: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for agent, model, reason, count in ledger.db.execute(
        "SELECT agent, model, finish_reason, COUNT(*) FROM calls WHERE finish_reason != 'stop' GROUP BY 1, 2, 3"
    ):
        ends[agent, model][reason] = count
    rows = ledger.db.execute(
        "SELECT agent, model, COUNT(*), SUM(prompt_tokens), SUM(cached_tokens), SUM(output_tokens), SUM(seconds)"
        " FROM calls GROUP BY agent, model ORDER BY agent, model"
    )
    for agent, model, calls, prompt, cached, output, seconds in rows:
        yield AgentCost(agent, model, calls, prompt, cached, output, seconds, ends[agent, model])


def _in_turn(queues: Sequence[Sequence[str]], count: int) -> list[str]:
    turns = (queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue))
    return [problem_id for problem_id, _ in zip(turns, range(count), strict=False)]


def _shown(ledger: Ledger, ids: Iterable[str]) -> Iterator[ShownProblem]:
    for problem_id in ids:
        state, reason, label, rounds, pairs, body = ledger.db.execute(
            "SELECT state, reason, label, rounds, pairs, body FROM outcomes WHERE problem_id=?", (problem_id,)
        ).fetchone()
        row = json.loads(zlib.decompress(body))
        problem = row["problem"]
        texts = tuple(
            Text(r["id"], r["parent"], r["kind"], r["origin"], r["model"], _text(r), json.loads(r["certificate"]))
            for r in row["responses"]
        )
        story = tuple(row["story"])
        yield ShownProblem(
            problem_id, problem["problem"], problem["answer"], state, reason, label, rounds, pairs, texts, story
        )


def _text(response: Mapping[str, Any]) -> str:
    return str(response["text"] or f"{response['thought']}\n\n{response['solution']}")
