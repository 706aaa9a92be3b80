"""From a response to a verdict: thoughts cut off, then math by `crv.verify`, choices, texts, or programs by tests.

correct and incorrect are shown; what can be neither is unknown, with the reason, and is never counted as incorrect.
"""

import asyncio
import base64
import contextlib
import json
import os
import pickletools
import re
import signal
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation import driver, sandbox
from cogpo_jax.evaluation.tasks import LETTERS, Problem
from cogpo_jax.records.texts import THOUGHT_CLOSES, THOUGHT_OPENS
from crv.verify import grade
from crv.verify.certificate import CORRECT, INCORRECT, UNKNOWN, certify, ladder
from crv.verify.extract import Span, final_spans
from crv.verify.spelling import spell
from crv.verify.workers import AlgebraWorkers

VERSION = 3  # of the rules here; with `crv.verify`'s own it says by which rules a folder was graded
_LAST_COUNTS = ("several final answers", "more than eight final answers")
_SOLUTION_TAGS = re.compile(r"<\|(?:begin|end)_of_solution\|>")
_FENCE = re.compile(r"(\s*)(`{3,}|~{3,})[ \t{.]*([A-Za-z0-9+.#-]*)[^`]*")
_PYTHON = re.compile(r"py(?:thon)?[\d.]*")
# A letter that is chosen without the word answer before it: "Option B is correct", "I choose B", "So B."
_CHOSEN = re.compile(
    r"(?:\b(?i:I(?: would| will)? (?:choose|pick|select|go with)|(?:choice|option|solution|letter|answer)(?: is|:| -)"
    r"|so|thus|hence|therefore,?|I (?:think|believe) it is)"
    r"|\"answer\": *\"|答案(?:是|为|：|:)?)[ ]*[*(\[]*(?P<after>[A-Z])[*)\]]*(?=[.,。\"}\s]*$)"
    r"|(?:\b(?:option|choice) )?[*(\[]*\b(?P<before>[A-Z])[*)\]]* is (?:the )?(?:correct|right|best|answer)",
    re.M,
)
_CONCLUSION = re.compile(r"(?:therefore|thus|hence|so|finally)\b[^=\n]*=\s*(?P<answer>[^=\n$]{1,80}?)[$.\s]*", re.I)
_LONE_LETTER = re.compile(r"[\s*_(\[-]*([A-Z])[\s*_)\]]*[.:),]?[\s*_]*(?:\s(.*))?", re.S)
_VERDICTS = {grade.SAME: CORRECT, grade.DIFFERENT: INCORRECT, grade.UNKNOWN: UNKNOWN}


@dataclass(frozen=True)
class Verdict:
    """What a response is worth. `extracted`: the final answer as stated (of a choice: its letter in the data's order).

    `thoughts`: none | closed | broken (begun and not ended, or ended twice); `repetition`: it runs in circles.
    """

    verdict: str
    extracted: str | None
    reason: str
    thoughts: str = "none"
    repetition: bool = False


class Grader:
    """Grades responses, `workers` at a time, each in processes that can be killed; use as `async with`."""

    def __init__(self, workers: int = 2, seconds: float = 5.0, allow_code: bool = False):
        self._algebra = AlgebraWorkers(workers, seconds)
        self._compare = ladder(self._algebra.compare)
        self._allow_code, self._turns = allow_code, asyncio.Semaphore(workers)

    async def __aenter__(self) -> "Grader":
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._algebra.__aexit__(kind, error, trace)

    async def grade(self, grader: str, problem: Problem, response: str | None, finish_reason: str = "") -> Verdict:
        """The verdict on one response by the task's `grader`; a missing response is unknown."""
        if response is None:
            return Verdict(UNKNOWN, None, f"no response: {finish_reason or 'the row has none'}")
        solution, thoughts = cut_thoughts(response)
        if grader == "math":
            verdict, extracted, reason = await self._math(problem.gold, solution)
        elif grader == "choice":
            verdict, extracted, reason = grade_choice(problem, solution)
        elif grader == "text":
            verdict, extracted, reason = grade_text(problem.gold, solution)
        else:
            verdict, extracted, reason = await self._code(problem, solution)
        if extracted is None and thoughts == "broken":
            reason = "thoughts that do not end"
        return Verdict(verdict, extracted, reason, thoughts, repeats(response))

    async def _math(self, gold: str, solution: str) -> tuple[str, str | None, str]:
        """As `certify`; but of several final answers the last one counts, as every benchmark has it."""
        certificate = await certify(gold, solution, self._compare)
        extracted, verdict, rule = (certificate.answers or (None,))[-1], certificate.verdict, certificate.rule
        closing = None if certificate.answers else _CONCLUSION.fullmatch(solution.strip().rpartition("\n")[2])
        if verdict == UNKNOWN and closing and not final_spans(solution):  # "Therefore, n = 3." at the very end
            extracted = closing["answer"].strip()
            decided, rule = await self._compare(gold, extracted)
            verdict, rule = _VERDICTS[decided], f"{rule}; the last sentence concludes it"
        elif verdict == UNKNOWN and rule in _LAST_COUNTS:
            extracted = final_spans(solution)[-1].text.strip()
            decided, rule = await self._compare(gold, extracted)
            verdict, rule = _VERDICTS[decided], f"{rule}; the last of several final answers"
        return verdict, extracted, rule

    async def _code(self, problem: Problem, solution: str) -> tuple[str, str | None, str]:
        if not self._allow_code:
            raise UserError("--allow_code: missing: grading this task runs programs that a model wrote")
        program = find_program(solution, problem.tests)
        if program is None:
            return UNKNOWN, None, "no code block"
        async with self._turns:
            verdict, reason = await _run_tests(program, problem.tests)
        return verdict, program, reason


def cut_thoughts(response: str) -> tuple[str, str]:
    """(what follows the thoughts, none | closed | broken). Thoughts that were begun in the prompt need only an end."""
    opens, closes = list(THOUGHT_OPENS.finditer(response)), list(THOUGHT_CLOSES.finditer(response))
    if not closes:
        return (response[: opens[0].start()], "broken") if opens else (response, "none")
    end = closes[-1].end()
    again = next((opening.start() for opening in opens if opening.start() >= end), len(response))
    good = len(closes) == 1 and len(opens) <= 1 and (not opens or opens[0].start() < closes[0].start())
    return _SOLUTION_TAGS.sub("", response[end:again]), "closed" if good else "broken"


def repeats(text: str, window: int = 2000) -> bool:
    """Whether a text runs in circles: its end is one piece four times over, or a fifth of it are repeated passages.

    Passages are 16 words long, numbers left out ("Step 101: ..."); fewer than 64 words never count as repeated.
    """
    tail = text.rstrip()[-window:]
    period = _period(tail[::-1][:400])
    if len(tail) >= 400 and period <= 100:
        return True
    words = [word for word in text.split() if any(map(str.isalpha, word))]
    passages = Counter(tuple(words[i : i + 16]) for i in range(len(words) - 15))
    repeated = sum(count - 1 for count in passages.values())
    return len(words) >= 64 and repeated > 0.2 * len(words)


def _period(text: str) -> int:
    """The shortest period of a whole text (by Knuth, Morris and Pratt's failure function)."""
    failure, k = [0] * len(text), 0
    for i in range(1, len(text)):
        while k and text[i] != text[k]:
            k = failure[k - 1]
        k += text[i] == text[k]
        failure[i] = k
    return len(text) - (failure[-1] if text else 0)


def grade_choice(problem: Problem, solution: str) -> tuple[str, str | None, str]:
    """(verdict, letter in the data's order, reason): the last stated answer, by letter or by an option's text.

    Without a stated answer a last line that is only a letter counts, or a letter with its option's text.
    """
    spans = final_spans(solution)
    stated = [option for span in spans if (option := _option(span.text, problem.choices, strict=False)) is not None]
    if not spans:
        lines = solution.strip().splitlines()[-1:]
        stated = [option for line in lines if (option := _option(line, problem.choices, strict=True)) is not None]
        chosen = [LETTERS.index(m["after"] or m["before"]) for m in _CHOSEN.finditer(solution)]
        stated = stated or [option for option in chosen if option < len(problem.choices)]
        if not stated:
            return UNKNOWN, None, "no final answer"
    if not stated:
        return UNKNOWN, spans[-1].text.strip(), "the final answer is none of the options"
    option = stated[-1]
    if option < 0:
        return UNKNOWN, spans[-1].text.strip() if spans else None, "letter and text are of two options"
    letter = LETTERS[problem.order[option]]
    return (CORRECT if letter == problem.gold else INCORRECT), letter, "choice"


def _option(answer: str, shown: Sequence[str], strict: bool) -> int | None:
    """Which of the options as shown an answer names: its place; -1 where letter and text contradict; None for none."""
    text = spell(answer).strip(" \"'{}\n")
    if re.fullmatch(r"[\s*_(\[]*[a-z][\s*_)\]]*[.:)]?", text) and text not in map(str.strip, shown):
        text = text.upper()
    text = re.sub(r"^([A-Z])[ ,]+(?:because|since|as)\b.*", r"\1", text, flags=re.S)
    same = [i for i, option in enumerate(shown) if _plain(option) == _plain(text)]
    letter = _LONE_LETTER.fullmatch(re.sub(r"^(?:option|choice|answer|letter)\s+(?=\(?[A-Z]\b)", "", text, flags=re.I))
    if len(same) == 1 and not (letter and not letter.group(2)):
        return same[0]
    if letter and LETTERS.index(letter.group(1)) < len(shown):
        place, rest = LETTERS.index(letter.group(1)), _plain(letter.group(2) or "")
        written = [i for i, option in enumerate(shown) if _plain(option) == rest]
        if rest and written and place not in written:
            return -1
        marked = re.match(r"[\s*_]*(?:[(\[][A-Z]|[A-Z][\s*_]*[.:)\]])", text)
        alone = not re.search(r"\b[A-Z]\b", letter.group(2) or "")  # (B) and (C) names two
        return place if not rest or place in written or (marked and alone and not strict) else None
    if same or strict:
        return same[0] if len(same) == 1 else None
    alike = [i for i, option in enumerate(shown) if grade.compare(option, answer)[0] == grade.SAME]
    return alike[0] if len(alike) == 1 else None


def grade_text(gold: str, solution: str) -> tuple[str, str | None, str]:
    """BIG-Bench Hard's exact match: the last stated answer and the gold one are the same words, case aside."""
    spans: list[Span] = final_spans(solution)
    if not spans:
        return UNKNOWN, None, "no final answer"
    answer = spans[-1].text.strip()
    letter = re.fullmatch(r"\(([A-Z])\)", gold.strip())
    stated = re.match(r"[\s*]*\(?([A-Z])\)?(?:[\s*.:]|$)", answer) if letter else None
    same = _plain(answer) == _plain(gold) or bool(letter and stated and stated.group(1) == letter.group(1))
    return (CORRECT if same else INCORRECT), answer, "exact match"


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\"'`*_.,;:()$]+", " ", spell(text)).lower().split())


def find_program(solution: str, tests: Sequence[Mapping[str, Any]]) -> str | None:
    """The last fenced block of Python that defines what the tests call; else the last one; None for none.

    Fences are CommonMark's: of ``` or ~~~, as long as one likes, indented, without an end where the text is cut off.
    Blocks without a language count where none says Python, and of these the ones that do something.
    """
    blocks, lines = list[tuple[str, str]](), iter(solution.replace("\r\n", "\n").split("\n"))
    for line in lines:
        if opening := _FENCE.fullmatch(line):
            indent, fence, language = opening.groups()
            end = re.compile(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}\s*")
            body = []
            for inside in lines:
                if end.fullmatch(inside):
                    break
                body.append(inside.removeprefix(indent))
            blocks.append((language.lower(), "\n".join(body)))
    plain = [text for language, text in blocks if not language]
    python = [text for language, text in blocks if _PYTHON.fullmatch(language)]
    python = python or [text for text in plain if re.search(r"\w\(|=", text)] or plain
    called = set(re.findall(r"\w+", " ".join(str(test.get("code") or test.get("function")) for test in tests)))
    defining = [text for text in python if called & set(re.findall(r"(?:def|class) +(\w+)", text))]
    return next(reversed(defining or python), None)


async def _run_tests(program: str, tests: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(verdict, reason) of a program: all tests pass, or the first that does not and why."""
    done = 0
    for kind in ("code", "function", ""):
        some = [test for test in tests if _kind(test) == kind]
        if not some:
            continue
        token = base64.b32encode(os.urandom(10)).decode()
        outcomes = await run_program(*_job(program, some, kind, token))
        if outcomes is None:
            return UNKNOWN, "the sandbox did not answer"
        for test, outcome in zip(some, outcomes, strict=False):
            done += 1
            if outcome["error"]:
                return INCORRECT, f"test {done}: {outcome['error']}"
            if not _passes(test, outcome["stdout"], kind, token):
                return INCORRECT, f"test {done}: wrong output"
    return CORRECT, f"{done} tests passed"


def _kind(test: Mapping[str, Any]) -> str:
    return "code" if "code" in test else "function" if test["function"] else ""


def _job(program: str, tests: Sequence[Mapping[str, Any]], kind: str, token: str) -> tuple[str, list[str]]:
    """(what runs in the sandbox, its inputs): the program itself, or `driver` on the program and what calls it."""
    if not kind:
        return program, [str(test.get("input", "")) for test in tests]
    job = {"program": program, "token": token}
    if kind == "code":
        calls: list[dict[str, Any]] = [{"code": "\n".join(str(test["code"]) for test in tests)}]
    else:
        lines = [[line for line in str(test["input"]).splitlines() if line.strip()] for test in tests]
        calls = [{"function": str(t["function"]), "arguments": a} for t, a in zip(tests, lines, strict=True)]
    return Path(driver.__file__).read_text(encoding="utf-8"), [json.dumps({**job, **call}) for call in calls]


def _passes(test: Mapping[str, Any], stdout: str, kind: str, token: str) -> bool:
    if kind == "code":
        return token in stdout
    if kind == "function":
        expected = test["output"] if not isinstance(test["output"], str) else json.loads(test["output"])
        try:
            return token in stdout and _same_value(json.loads(stdout.rpartition(token)[2]), expected)
        except ValueError:
            return False
    return _same_lines(stdout, str(test["output"]))


def _same_value(got: Any, wanted: Any) -> bool:
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_same_value, got, wanted))
    floats = isinstance(got, int | float) and isinstance(wanted, int | float)
    return got == wanted or (floats and _close(str(got), str(wanted)))


def _same_lines(got: str, wanted: str) -> bool:
    """Equal words line by line; numbers may differ in their writing (1.0 and 1, 9 digits)."""
    a, b = ([line.split() for line in text.strip().splitlines() if line.strip()] for text in (got, wanted))
    if [len(line) for line in a] != [len(line) for line in b]:
        return False
    return all(x == y or _close(x, y) for got_, line in zip(a, b, strict=True) for x, y in zip(got_, line, strict=True))


def _close(x: str, y: str) -> bool:
    try:
        return "." in x + y and abs(float(x) - float(y)) <= 1e-9 * max(1.0, abs(float(y)))
    except ValueError:
        return False


async def run_program(
    program: str, inputs: Sequence[str], seconds: float = 6.0, megabytes: int = 1024
) -> list[dict[str, str]] | None:
    """`sandbox` on a program: {stdout, error} for each input until one fails; None where the sandbox itself failed."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as root:
        job = {"program": program, "inputs": list(inputs), "seconds": seconds, "megabytes": megabytes, "root": root}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(Path(sandbox.__file__)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True, env={},
        )  # fmt: skip
        try:
            limit = 30 + len(inputs) * (sandbox.WALL * seconds + 3)
            out, _ = await asyncio.wait_for(process.communicate(json.dumps(job).encode()), limit)
            return list(json.loads(out))
        except (TimeoutError, ValueError):
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def check_sandbox() -> None:
    """Raises UserError where this machine cannot keep a program in."""
    if not sys.platform.startswith("linux") or await run_program("print(6 * 7)", [""]) != [
        {"stdout": "42\n", "error": ""}
    ]:
        raise UserError(
            "--allow_code: this machine offers no namespaces to keep programs in (Linux as root, or with user "
            "namespaces): grade the responses where they are, with --responses"
        )


def packed_json(text: str, where: str) -> Any:
    """JSON, or LiveCodeBench's private tests: JSON in a pickled string, deflated, base64. Nothing is unpickled."""
    try:
        if text.lstrip()[:1] in ("[", "{"):
            return json.loads(text)
        inflated = zlib.decompressobj().decompress(base64.b64decode(text), 1 << 28)
        strings = [value for _, value, _ in pickletools.genops(inflated) if isinstance(value, str)]
        return json.loads(strings[0])
    except (ValueError, zlib.error, IndexError) as error:
        raise UserError(f"{where}: tests: neither JSON nor LiveCodeBench's packed JSON: {error}") from None
