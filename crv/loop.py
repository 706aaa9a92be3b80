"""One problem's way through CRV: verify, critique, rethink, verify again, corrupt.

A problem's outcome is a pure function of the answers to its asks: nothing here knows of time, of other problems, or of
where answers come from.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cogpo_jax.records import Response
from cogpo_jax.records.texts import split_thought
from crv.agents import Agents, Ask, UnusableError, read_answer
from crv.options import Options
from crv.pool.base import FOR_GOOD, Answer, Request
from crv.problems import Problem
from crv.verify import grade
from crv.verify.certificate import CORRECT, INCORRECT, RETRACTED, UNKNOWN, Certificate, Compare, certify
from crv.verify.extract import cut_final_statement, hide_final_answers, speaks_of_answer

T = TypeVar("T")
Generate = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a problem ended. `state`: rewritten | fitting | dropped; `reason` of a drop; `label`: the critic's word.

    `responses` hold every text whose kind was established (and the unknown ones); `story` is one dict a step.
    """

    problem_id: str
    state: str
    reason: str
    label: str
    rounds: int
    responses: tuple[Response, ...]
    story: tuple[dict[str, Any], ...]


class _DroppedError(Exception):
    """The problem ends here; the argument is the reason that is counted."""


@dataclass
class _Walk:
    """The state of one problem on its way."""

    problem: Problem
    agents: Agents
    generate: Generate
    compare: Compare
    options: Options
    label: str = ""
    rounds: int = 0
    responses: list[Response] = field(default_factory=list)
    story: list[dict[str, Any]] = field(default_factory=list)
    opinions: Counter[str] = field(default_factory=Counter)  # final answers of independent solutions
    failure: str = ""  # why the last question had no usable answer

    async def ask(self, ask: Ask[T]) -> tuple[T | None, Answer]:
        """The agent's reading, asked again a bounded number of times while unusable; None where it stays so."""
        longer, failure = False, ""
        for again in range(self.options.asks):
            asked = ask.again(again, longer) if again else ask
            answer = await self.generate(asked.request)
            try:
                return read_answer(asked, answer), answer
            except UnusableError as error:
                failure = str(error)
                longer = longer or failure == "length"
                said = answer.text[:300] if failure in FOR_GOOD else ""  # the server's words
                self.tell(asked.request.agent, attempt=asked.request.attempt, unusable=failure, said=said)
                if failure in FOR_GOOD:
                    break
        self.failure = failure.replace(" ", "_")
        return None, replace(answer, text="", finish_reason=failure)

    def has_wrong(self) -> bool:
        return any(response.kind == "incorrect" for response in self.responses)

    def tell(self, step: str, **what: Any) -> None:
        self.story.append({"step": step, **what})

    def keep(
        self, name: str, cot: str, kind: str, certificate: Certificate, origin: str, model: str, parent: str = ""
    ) -> None:
        thought, solution = split_cot(cot)
        text = "" if thought else solution
        self.responses.append(
            Response(name, parent, origin, model, thought, "" if text else solution, text, kind, certificate.to_json())
        )

    async def grade(self, cot: str) -> Certificate:
        """By the rules; where they cannot tell, by the judge if allowed: it may say "correct", never "wrong"."""
        proof = await certify(self.problem.answer, cot, self.compare, self.problem.choices)
        if not self.options.judge or proof.verdict != UNKNOWN or len(proof.answers) != 1 or proof.rule == RETRACTED:
            return proof
        problem = self.problem
        ask = self.agents.judge(problem.problem, problem.answer, proof.answers[0], problem.problem_id)
        verdict, _ = await self.ask(ask)
        self.tell("judge", answer=proof.answers[0], verdict=verdict)
        return replace(proof, verdict=CORRECT, rule=f"judge; by rule: {proof.rule}") if verdict == "same" else proof


def split_cot(text: str) -> tuple[str, str]:
    """(thought, solution): along the think tags of any family, else the final statement is the solution.

    ("", text) where nothing comes before the final statement, or none is made.
    """
    thought, solution = split_thought(text)
    if not thought:
        thought, solution = (part.strip() for part in cut_final_statement(solution))
    return (thought, solution) if thought and solution else ("", text.strip())


async def run_problem(
    problem: Problem, agents: Agents, generate: Generate, compare: Compare, options: Options
) -> Outcome:
    """Walks one problem to its end; raises only what `generate` raises (a pool that cannot answer)."""
    walk = _Walk(problem, agents, generate, compare, options)
    try:
        if not grade.readable(problem.answer) and not options.judge:
            raise _DroppedError("gold_unreadable")
        state = await _align(walk, await _find_original(walk))
        if options.asks_student():
            await _ask_for_wrong(walk, "student", range(options.student_attempts))
        if not walk.has_wrong():
            first = options.solver.attempts
            await _ask_for_wrong(walk, "solver", range(first, first + options.solver.for_wrong))
        if not walk.has_wrong():
            await _corrupt(walk)
        reason = ""
    except _DroppedError as dropped:
        state, reason = "dropped", str(dropped)
    walk.tell("end", state=state, reason=reason)
    return Outcome(problem.problem_id, state, reason, walk.label, walk.rounds, tuple(walk.responses), tuple(walk.story))


@dataclass(frozen=True, slots=True)
class _Solution:
    """A graded chain of thought: the given one (`original`) or a solver's."""

    name: str
    cot: str
    origin: str
    model: str
    proof: Certificate

    @property
    def who(self) -> str:
        return "solver" if self.origin == "solver" else "original"


async def _find_original(walk: _Walk) -> _Solution:
    """A right chain of thought: the given one, else a solver's. Wrong ones on the way are kept as wrong.

    A wrong proof needs a gold answer that independent solutions do not outvote.
    """
    right, failure = None, "no_solution"
    wrong: list[_Solution] = []
    for attempt in range(-1, walk.options.solver.attempts):
        solution = await _solution(walk, attempt)
        if solution is None:
            failure = f"solver_{walk.failure}" if attempt >= 0 else failure
            continue
        verdict, speech = solution.proof.verdict, ""
        walk.opinions.update(solution.proof.answers[-1:])
        if verdict == CORRECT and not (speech := speaks_of_answer(solution.cot)):
            right = solution
        failure = f"{solution.who}_{'speaks_of_answer' if speech else _FAILURES[verdict]}"
        walk.tell("verify", of=solution.name, verdict=verdict, rule=solution.proof.rule, speaks=speech)
        if verdict == INCORRECT:
            wrong.append(solution)
        if right:
            break
    await _keep_wrong(walk, wrong)
    if right is None:
        raise _DroppedError(failure)
    return right


async def _ask_for_wrong(walk: _Walk, origin: str, attempts: range) -> None:
    """Asks the solver or the student until it goes wrong by itself: a natural mistake is worth more than a made one.

    The student, which is to be trained, has no vote on gold answers: a weak model's mistakes agree.
    """
    for attempt in attempts:
        solution = await _solution(walk, attempt, origin)
        if solution is None:
            continue
        if origin == "solver":
            walk.opinions.update(solution.proof.answers[-1:])
        walk.tell("verify", of=solution.name, verdict=solution.proof.verdict, rule=solution.proof.rule)
        if solution.proof.verdict == INCORRECT:
            await _keep_wrong(walk, [solution])
            return


async def _keep_wrong(walk: _Walk, wrong: Sequence[_Solution]) -> None:
    """Keeps solutions as wrong; where independent solutions outvote gold, as unknown, dropping the problem."""
    outvoted = await _outvoted(walk)
    for solution in wrong:
        proof = solution.proof
        if outvoted:
            proof = replace(proof, verdict=UNKNOWN, rule="gold outvoted by independent solutions", votes=outvoted)
        kind = "unknown" if outvoted else "incorrect"
        walk.keep(solution.name, solution.cot, kind, proof, solution.origin, solution.model)
    if outvoted:
        raise _DroppedError("gold_outvoted")


_FAILURES = {CORRECT: "correct", INCORRECT: "wrong", UNKNOWN: "unknown"}


async def _solution(walk: _Walk, attempt: int, origin: str = "solver") -> _Solution | None:
    """The given chain of thought (attempt -1), or the solver's or student's; None where there is none."""
    problem = walk.problem
    if attempt < 0:
        if not problem.cot.strip():
            return None
        return _Solution("original", problem.cot, "teacher", problem.model, await walk.grade(problem.cot))
    text, answer = await walk.ask(walk.agents.solve(problem.problem, problem.problem_id, attempt, origin))
    if text is None:
        return None
    return _Solution(f"{origin}-{attempt}", text, origin, answer.model, await walk.grade(text))


async def _outvoted(walk: _Walk) -> tuple[int, int] | None:
    """(votes for gold, votes for the other) where independent solutions agree on another answer than gold."""
    votes: list[tuple[str, int]] = []
    gold_votes = 0
    for answer, count in walk.opinions.items():
        if (await walk.compare(walk.problem.answer, answer))[0] == grade.SAME:
            gold_votes += count
            continue
        for i, (known, known_count) in enumerate(votes):
            if (await walk.compare(known, answer))[0] == grade.SAME:
                votes[i] = (known, known_count + count)
                break
        else:
            votes.append((answer, count))
    most = max((count for _, count in votes), default=0)
    return (gold_votes, most) if most >= 2 and most > gold_votes else None


async def _align(walk: _Walk, solution: _Solution) -> str:
    """Critique and, where it does not fit, rethink: leaves a suitable response, or drops the problem."""
    problem, options, cot = walk.problem, walk.options, solution.cot
    critique, _ = await walk.ask(walk.agents.critique(problem.problem, cot, problem.problem_id))
    if critique is None:
        raise _DroppedError(f"critic_{walk.failure}")
    walk.label = critique.label
    walk.tell("critique", label=critique.label, reason=critique.reason)
    if critique.label == "medium":
        walk.keep(solution.name, cot, "suitable", solution.proof, solution.origin, solution.model)
        return "fitting"
    walk.keep(solution.name, cot, critique.label, solution.proof, solution.origin, solution.model)
    reason, failure = "", "rewrite_none"
    for walk.rounds in range(1, options.max_rounds + 1):
        ask = walk.agents.rethink(
            critique.label, problem.problem, problem.answer, cot, reason, problem.problem_id, walk.rounds - 1
        )
        rewrite, answer = await walk.ask(ask)
        if rewrite is None:
            failure, reason = f"rewrite_{walk.failure}", "An earlier rewrite was empty or cut off: be shorter."
            if answer.finish_reason in FOR_GOOD:
                break
            continue
        proof, failure, reason = await _verify_rewrite(walk, rewrite, cot)
        walk.tell("verify", of=f"rewrite-{walk.rounds}", verdict=proof.verdict, rule=proof.rule, failure=failure)
        if not failure:
            walk.keep(f"rewrite-{walk.rounds}", rewrite, "suitable", proof, "rewrite", answer.model, solution.name)
            return "rewritten"
        if proof.verdict == INCORRECT:  # a wrong chain of thought for free
            walk.keep(f"rewrite-{walk.rounds}", rewrite, "incorrect", proof, "rewrite", answer.model, solution.name)
    raise _DroppedError(failure)


async def _verify_rewrite(walk: _Walk, rewrite: str, original: str) -> tuple[Certificate, str, str]:
    """(certificate, failure or "", the reason told to the next round)."""
    problem, options = walk.problem, walk.options
    proof = await walk.grade(rewrite)
    if rewrite.strip() == original.strip():
        return replace(proof, verdict=UNKNOWN), "rewrite_unchanged", "An earlier rewrite changed nothing."
    if proof.verdict != CORRECT:
        told = (
            f"An earlier rewrite failed: it ended in {proof.answers[-1]!r}."
            if proof.answers
            else "An earlier rewrite stated no final answer."
        )
        return proof, "rewrite_wrong_answer" if proof.verdict == INCORRECT else "rewrite_unclear_answer", told
    if speech := speaks_of_answer(rewrite):
        return (
            proof,
            "rewrite_speaks_of_answer",
            f"An earlier rewrite spoke of the answer that you were told ({speech!r}): never do.",
        )
    proof = await _resolve_blind(walk, rewrite, proof)
    if proof.verdict != CORRECT:
        told = "An earlier rewrite did not lead to the answer by itself: every step must follow from the ones before."
        return proof, "rewrite_not_reaching_answer", told
    if options.recritique:
        critique, _ = await walk.ask(walk.agents.critique(problem.problem, rewrite, problem.problem_id))
        label = critique.label if critique else "none"
        walk.tell("recritique", label=label)
        if label != "medium":
            return proof, f"rewrite_still_{label}", f"An earlier rewrite was judged {label!r} for the student."
    return proof, "", ""


async def _resolve_blind(walk: _Walk, cot: str, proof: Certificate) -> Certificate:
    """The certificate with its `blind` count: the answer is hidden, and the model must reach it k of n times."""
    asked = agreed = 0
    needed, most = walk.options.verifier.needed, walk.options.verifier.asked
    body = hide_final_answers(cot, walk.problem.answer)
    while asked < most and agreed < needed and agreed + most - asked >= needed:
        text, _ = await walk.ask(walk.agents.resolve(walk.problem.problem, body, walk.problem.problem_id, asked))
        asked += 1
        agreed += text is not None and (await walk.grade(text)).verdict == CORRECT
    walk.tell("blind", asked=asked, agreed=agreed)
    verdict, rule = (CORRECT, proof.rule) if agreed >= needed else (UNKNOWN, "not reached without being told")
    return replace(proof, verdict=verdict, rule=rule, blind=(agreed, asked))


async def _corrupt(walk: _Walk) -> None:
    """Adds a chain of thought that is proved wrong, made from the suitable one; else as unknown."""
    problem = walk.problem
    suitable = next(response for response in walk.responses if response.kind == "suitable")
    source = suitable.text or f"{suitable.thought}\n{suitable.solution}"
    for attempt in range(walk.options.corrupter.attempts):
        text, answer = await walk.ask(
            walk.agents.corrupt(problem.problem, problem.answer, source, problem.problem_id, attempt)
        )
        if text is None:
            continue
        proof = await walk.grade(text)
        walk.tell("corrupt", verdict=proof.verdict, rule=proof.rule)
        if proof.verdict == CORRECT:  # not a mistake at all: of no use, and not an unknown either
            continue
        kind = "incorrect" if proof.verdict == INCORRECT else "unknown"
        walk.keep(f"wrong-{attempt}", text, kind, proof, answer.origin or "rewrite", answer.model, suitable.id)
        if kind == "incorrect":
            return
