"""A sample for a person to audit: a page with accept and reject, and the count of what was said, in the manifest."""

import base64
import hashlib
import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from crv.ledger import Ledger

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
    page = Path(__file__).with_name("audit_page.html").read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("DIGEST", digest, 1).replace("<!--PROBLEMS-->", "\n".join(map(_problem, rows)))
    write_atomic(path, page)
    return path


def take_audit(workdir: str | Path, file: str | Path) -> dict[str, Any]:
    """Takes what the page saved into the ledger, from where the next export puts its counts into the manifest."""
    try:
        said = json.loads(Path(file).read_text(encoding="utf-8"))
        verdicts = {str(name): str(word) for name, word in said["verdicts"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"audited: {file}: not what an audit page saves ({error})") from error
    if strange := sorted(set(verdicts.values()) - set(_WORDS)):
        raise UserError(f"audited: {file}: {strange[0]!r}: a verdict is accept or reject")
    ledger = Ledger(_path(workdir))
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


def _path(workdir: str | Path) -> Path:
    path = Path(workdir) / "ledger.sqlite"
    if not path.is_file():
        raise UserError(f"workdir: {workdir}: no ledger in it; give the workdir of a CRV run")
    return path


def _open(workdir: str | Path) -> Ledger:
    return Ledger(_path(workdir), read_only=True)


def _problem(row: dict[str, Any]) -> str:
    problem, e = row["problem"], html.escape
    responses = "\n".join(_response(problem["problem_id"], r) for r in row["responses"] if r["kind"] in _KINDS)
    return (
        f"<section><h2>{e(problem['problem_id'])}</h2><p class=problem>{e(problem['problem'])}</p>"
        f"<p>Gold answer: <b>{e(problem['answer'])}</b></p><div class=row>{responses}</div></section>"
    )


def _response(problem_id: str, response: dict[str, Any]) -> str:
    e = html.escape
    name = e(f"{problem_id}\t{response['id']}", quote=True)
    text = e(response["text"] or f"{response['thought']}\n{response['solution']}")
    proof = {name: value for name, value in json.loads(response["certificate"]).items() if value not in (None, "", [])}
    buttons = "".join(f'<button type=button data-word="{word}">{word}</button>' for word in _WORDS)
    return (
        f'<article data-name="{name}"><h3>{response["kind"]}: {_KINDS[response["kind"]]}</h3>'
        f"<p class=from>{e(response['id'])}, {e(response['origin'])}, {e(response['model'])}</p><pre>{text}</pre>"
        f"<p class=from>{e(json.dumps(proof, ensure_ascii=False))}</p><div class=say>{buttons}</div></article>"
    )
