"""A run looked at by a person: one problem's story, the report's overview, and a sample to audit."""

import base64
import hashlib
import json
import textwrap
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.report.crv_section import REWRITES, AgentCost, CrvRun, FlowPath, ShownProblem
from cogpo_jax.report.crv_section import Text as ShownText
from cogpo_jax.report.page import render
from crv.ledger import Ledger

_PREVIEW_CHARACTERS = 1200  # of a text on the terminal
SHOWN = 100  # problems in the page's browser, unless told
_VERDICTS = {"correct": "right", "incorrect": "wrong", "unknown": "undecided"}


def read_overview(workdir: str | Path, shown: int = SHOWN) -> CrvRun:
    """The overview of a run, finished or not, with at most `shown` problems; UserError where there is no ledger.

    Every sort of problem (state, label, reason of its drop) gives the same number of shown ones as far as it has them:
    those whose ids hash lowest.
    """
    ledger = _open(workdir)
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
            ShownText(r["id"], r["parent"], r["kind"], r["origin"], r["model"], _text(r), json.loads(r["certificate"]))
            for r in row["responses"]
        )
        story = tuple(row["story"])
        yield ShownProblem(
            problem_id, problem["problem"], problem["answer"], state, reason, label, rounds, pairs, texts, story
        )


def _text(response: Mapping[str, Any]) -> str:
    return str(response["text"] or f"{response['thought']}\n\n{response['solution']}")


def _proof(response: Mapping[str, Any]) -> str:
    said = json.loads(response["certificate"])
    return json.dumps({name: value for name, value in said.items() if value not in (None, "", [])}, ensure_ascii=False)


_WIDTH = 110


def why(workdir: str | Path, problem_id: str) -> str:
    """The story as text; UserError where the ledger has no such problem."""
    ledger = _open(workdir)
    try:
        return "\n".join(_lines(ledger, problem_id))
    finally:
        ledger.release()


def _lines(ledger: Ledger, problem_id: str) -> Iterator[str]:
    listed = ledger.db.execute("SELECT dropped FROM problems WHERE problem_id=?", (problem_id,)).fetchone()
    if listed is None:
        raise UserError(
            f"why: {problem_id!r}: no such problem in {ledger.path}; ids are those of the input's problem_id"
        )
    if listed[0]:
        yield f"{problem_id}: dropped before any call: {listed[0]}"
        return
    row = next(ledger.outcomes("problem_id=?", (problem_id,)), None)
    if row is None:
        yield f"{problem_id}: not finished; calls so far:"
    else:
        _, body = row
        problem = body["problem"]
        yield f"{problem_id}  (gold answer: {problem['answer']})"
        yield from _indented(problem["problem"])
        yield ""
        for step in body["story"]:
            yield f"- {_step(step)}"
        for response in body["responses"]:
            yield ""
            made = f" from {response['parent']}" if response["parent"] else ""
            model = response["model"] or "unknown model"
            yield f"[{response['kind']}] {response['id']}: {response['origin']}{made}, {model}"
            yield from _indented(_text(response))
            yield f"    certificate: {_proof(response)}"
        yield ""
        yield "calls:"
    calls = ledger.db.execute(
        "SELECT agent, attempt, finish_reason, prompt_tokens, cached_tokens, output_tokens, model FROM calls"
        " WHERE problem_id=? ORDER BY rowid",
        (problem_id,),
    )
    for agent, attempt, reason, prompt, cached, output, model in calls:
        tokens = f"{prompt} tokens in ({cached} cached), {output} out"
        yield f"  {agent} attempt {attempt}: {reason}; {tokens}; {model}"


def print_problems(workdir: str | Path, count: int) -> None:
    """Prints `count` problems of a run on the terminal: original, rewrite and wrong text side by side."""
    console, ledger = Console(), _open(workdir)
    try:
        rows = ledger.db.execute(
            "SELECT problem_id, state, reason, label FROM outcomes ORDER BY place LIMIT ?", (count,)
        )
        for problem_id, state, reason, label in rows:
            (_, row) = next(ledger.outcomes("problem_id=?", (problem_id,)))
            ended = " ".join(filter(None, (state, reason, label and f"(the critic: {label})")))
            console.rule(Text(f"{problem_id}: {ended}"))
            console.print(Text(f"{row['problem']['problem']}\nGold answer: {row['problem']['answer']}\n"))
            table = Table(expand=True, show_lines=True)
            for response in row["responses"]:
                table.add_column(Text(f"{response['kind']}: {response['id']} ({response['origin']})"), ratio=1)
            if row["responses"]:
                table.add_row(*(Text(_shortened(_text(response))) for response in row["responses"]))
                console.print(table)
            for step in row["story"][:-1] if state == "dropped" else ():
                console.print(Text("- " + _step(step)))
    finally:
        ledger.release()


def _shortened(text: str) -> str:
    cut = len(text) - _PREVIEW_CHARACTERS
    return text if cut <= 0 else f"{text[:_PREVIEW_CHARACTERS]}\n[... {cut:,} characters more]"


def _step(step: Mapping[str, Any]) -> str:
    details = (f"{name} {value!r}" for name, value in step.items() if name != "step" and value not in ("", None))
    return f"{step['step']}: {', '.join(details)}"


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, _WIDTH, initial_indent="    ", subsequent_indent="    ") or [""]


_WORDS = ("accept", "reject")
_KINDS = {
    "suitable": "right, and fits the student",
    "easy": "right, too terse",
    "hard": "right, too long",
    "incorrect": "wrong",
}


def write_audit(workdir: str | Path, count: int) -> Path:
    """Writes `audit.html`: `count` finished problems (whose ids hash lowest), each text with its kind and proof.

    The page works from a file, without a network; it saves what was said as `audit.json`, for `take_audit`.
    """
    ledger = _open(workdir)
    try:
        rows = [row for _, row in zip(range(count), (r for _, r in ledger.outcomes("pairs != ''")), strict=False)]
    finally:
        ledger.release()
    if not rows:
        raise UserError(f"audit: {workdir}: no finished problem with pairs in it; run CRV first")
    path = Path(workdir) / "audit.html"
    write_atomic(path, audit_page(rows))
    return path


def audit_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of these outcomes, as the ledger holds them."""
    page = Path(__file__).with_name("audit_page.html").read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(page, script_digest=digest, rows=rows, kinds=_KINDS, text=_text, proof=_proof)


def take_audit(workdir: str | Path, file: str | Path) -> dict[str, Any]:
    """Takes what the page saved into the ledger, from where the next export puts its counts into the manifest."""
    try:
        said = json.loads(Path(file).read_text(encoding="utf-8"))
        verdicts = {str(name): str(word) for name, word in said["verdicts"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"audited: {file}: not what an audit page saves ({error})") from error
    if strange := sorted(set(verdicts.values()) - set(_WORDS)):
        raise UserError(f"audited: {file}: {strange[0]!r}: a verdict is accept or reject")
    ledger = Ledger(_ledger_path(workdir))
    try:
        kinds = _kinds_of(ledger, verdicts)
        counts = Counter((kinds[name], word) for name, word in verdicts.items())
        table = {kind: {word: counts[kind, word] for word in _WORDS} for kind in sorted(set(kinds.values()))}
        ledger.set_meta("audit", json.dumps(table, sort_keys=True))
    finally:
        ledger.release()
    return table


def _kinds_of(ledger: Ledger, verdicts: dict[str, str]) -> dict[str, str]:
    """name of a response (problem id, tab, response id) -> its kind."""
    kinds: dict[str, str] = {}
    for problem_id in {name.partition("\t")[0] for name in verdicts}:
        for _, row in ledger.outcomes("problem_id=?", (problem_id,)):
            kinds |= {f"{problem_id}\t{response['id']}": response["kind"] for response in row["responses"]}
    if unknown := sorted(verdicts.keys() - kinds.keys()):
        raise UserError(f"audited: {unknown[0]!r}: no such response in this workdir; is it the page of another run?")
    return kinds


def _ledger_path(workdir: str | Path) -> Path:
    path = Path(workdir) / "ledger.sqlite"
    if not path.is_file():
        raise UserError(f"workdir: {workdir}: no ledger in it; give the workdir of a CRV run")
    return path


def _open(workdir: str | Path) -> Ledger:
    return Ledger(_ledger_path(workdir), read_only=True)
