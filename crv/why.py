"""A problem's whole story, from the ledger: what was asked, answered and found, and how each text was judged."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from cogpo_jax.errors import UserError
from crv.ledger import Ledger

_WIDTH = 110


def why(workdir: str | Path, problem_id: str) -> str:
    """The story as text; UserError where the ledger has no such problem."""
    path = Path(workdir) / "ledger.sqlite"
    if not path.is_file():
        raise UserError(f"workdir: {workdir}: no ledger in it; give the workdir of a CRV run")
    ledger = Ledger(path, read_only=True)
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
            details = ", ".join(
                f"{name} {value!r}" for name, value in step.items() if name != "step" and value not in ("", None)
            )
            yield f"- {step['step']}: {details}"
        for response in body["responses"]:
            yield ""
            made = f" from {response['parent']}" if response["parent"] else ""
            model = response["model"] or "unknown model"
            yield f"[{response['kind']}] {response['id']}: {response['origin']}{made}, {model}"
            yield from _indented(response["text"] or f"{response['thought']}\n{response['solution']}")
            proof = json.loads(response["certificate"])
            proof = {name: value for name, value in proof.items() if value not in (None, "", [])}
            yield f"    certificate: {json.dumps(proof, ensure_ascii=False)}"
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


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, _WIDTH, initial_indent="    ", subsequent_indent="    ") or [""]
