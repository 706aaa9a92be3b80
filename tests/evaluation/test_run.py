"""One evaluation in one folder: graded, resumed, regraded, compared; bad input is refused before any work."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation import grading
from cogpo_jax.evaluation.engines import PoolEngine
from cogpo_jax.evaluation.run import Evaluation, evaluate, regrade
from cogpo_jax.evaluation.summary import compare
from cogpo_jax.evaluation.tasks import load_task
from crv.options import PoolOptions

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "launch" / "evaluate.py")]
PROBLEMS = [{"id": f"p{i}", "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def responses(texts: list[list[str]]) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "sample": k, "response": t} for i, row in enumerate(texts) for k, t in enumerate(row)]


def run(folder: Path, name: str, texts: list[list[str]], problems: list[dict[str, Any]] = PROBLEMS) -> dict[str, Any]:
    data = write(folder / f"{name}-data.jsonl", problems)
    given = write(folder / f"{name}.jsonl", responses(texts))
    return evaluate(Evaluation(load_task("math"), data, str(folder / name), responses=given))


def boxes(*answers: Any) -> list[str]:
    return [f"So it is \\boxed{{{answer}}}." for answer in answers]


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_the_command_grades_texts_from_elsewhere(tmp_path: Path) -> None:
    texts = [boxes(0), boxes(3), ["Who knows?"], boxes(6), boxes(8), boxes(10)]
    data, given = write(tmp_path / "data.jsonl", PROBLEMS), write(tmp_path / "texts.jsonl", responses(texts))
    command = [*COMMAND, f"--responses={given}", "--task=math", f"--data={data}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "smallest difference seen with 80% power" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["verdicts"] == {"correct": 4, "incorrect": 1, "unknown": 1}
    assert summary["accuracy"]["value"] == pytest.approx(4 / 6)
    assert summary["accuracy_if_unknown_correct"] == pytest.approx(5 / 6)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    fields = "id sample prompt_digest response tokens finish_reason extracted verdict reason"
    rows = samples(tmp_path / "out")
    assert set(fields.split()) <= set(rows[0])
    assert [row["verdict"] for row in rows[:3]] == ["correct", "incorrect", "unknown"]
    assert "What is 1 + 1?" in (tmp_path / "out" / "report.html").read_text()


def test_importing_the_evaluation_needs_no_jax() -> None:
    code = "import sys, cogpo_jax.evaluation.run, cogpo_jax.report.evaluations; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_several_samples_give_pass_and_majority_at_k(tmp_path: Path) -> None:
    texts = [
        boxes(0, 0, 1, 2),
        boxes(2, 3, 3, 3),
        boxes(5, 5, 5, 5),
        boxes(6, 6, 6, 6),
        boxes(8, 9, 8, 9),
        boxes(*"1234"),
    ]
    summary = run(tmp_path, "run", texts)
    assert summary["accuracy"]["method"] == "bootstrap over problems"
    assert summary["accuracy"]["value"] == pytest.approx((0.5 + 0.25 + 0 + 1 + 0.5 + 0) / 6)
    assert summary["pass_at_k"]["4"]["value"] == pytest.approx(4 / 6)
    assert summary["majority_at_k"]["4"]["value"] == pytest.approx((1 + 0 + 0 + 1 + 0.5 + 0) / 6)


def test_tokens_and_truncation_are_told_by_verdict(tmp_path: Path) -> None:
    rows = responses([boxes(0), boxes(3)])
    rows[0] |= {"tokens": 10, "finish_reason": "stop"}
    rows[1] |= {"tokens": 30, "finish_reason": "length"}
    data, given = write(tmp_path / "data.jsonl", PROBLEMS[:2]), write(tmp_path / "texts.jsonl", rows)
    summary = evaluate(Evaluation(load_task("math"), data, str(tmp_path / "out"), responses=given))
    assert summary["shares"]["truncated"] == 0.5
    assert summary["tokens"]["correct"] == {"count": 1, "mean": 10, "median": 10, "p90": 10}
    assert summary["tokens"]["incorrect"]["mean"] == 30


def test_new_rules_regrade_without_the_texts_being_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "run", [boxes(0), boxes(2)])
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()

    async def other(*_: Any) -> tuple[str, None, str]:
        return "unknown", None, "other rules"

    monkeypatch.setattr(grading.Grader, "_math", other)
    assert regrade(str(tmp_path / "run"))["changed"] == 2
    monkeypatch.undo()
    assert regrade(str(tmp_path / "run"))["changed"] == 2
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


def test_problems_without_samples_are_named(tmp_path: Path) -> None:
    assert run(tmp_path, "run", [boxes(0), boxes(2)])["problems_without_samples"] == ["p2", "p3", "p4", "p5"]


def test_runs_are_paired_by_problem(tmp_path: Path) -> None:
    run(tmp_path, "a", [boxes(0), boxes(9), boxes(9), boxes(9), boxes(8), boxes(10)])
    run(tmp_path, "b", [boxes(9), boxes(2), boxes(4), boxes(6), boxes(8), boxes(9)])
    result = compare(tmp_path / "a", tmp_path / "b")["tasks"]["math"]
    assert (result["better_with_b"], result["worse_with_b"]) == (3, 2)
    assert result["difference"] == pytest.approx(1 / 6)
    assert (result["test"], result["p"]) == ("exact McNemar", pytest.approx(1.0))
    assert [row["id"] for row in result["changed"]] == ["p1", "p2", "p3", "p0", "p5"]
    assert result["problems_needed"] > 6


def test_runs_of_other_problems_or_prompts_are_only_compared_when_told_to(tmp_path: Path) -> None:
    run(tmp_path, "a", [boxes(2 * i) for i in range(6)])
    run(tmp_path, "fewer", [boxes(2 * i) for i in range(4)], PROBLEMS[:4])
    asked = [{**p, "problem": p["problem"].replace("What is", "Compute")} for p in PROBLEMS]
    run(tmp_path, "asked", [boxes(2 * i) for i in range(6)], asked)
    with pytest.raises(UserError, match=r"2 problems are only in .*say --common"):
        compare(tmp_path / "a", tmp_path / "fewer")
    with pytest.raises(UserError, match="6 of 6 problems were asked with other prompts"):
        compare(tmp_path / "a", tmp_path / "asked")
    assert compare(tmp_path / "a", tmp_path / "fewer", common=True)["overall"]["problems"] == 4
    assert compare(tmp_path / "a", tmp_path / "asked", common=True)["tasks"]["math"]["other_prompts"] == 6


def test_a_folder_of_another_evaluation_is_not_written_into(tmp_path: Path) -> None:
    run(tmp_path, "run", [boxes(0)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="holds an evaluation with file"):
        run(tmp_path, "run", [boxes(1)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


BAD_RESPONSES = [
    ([{"sample": 0, "response": "x"}], "texts.jsonl:1: id: missing"),
    ([{"id": "p0"}], "texts.jsonl:1: response: missing"),
    ([{"id": "zz", "response": "x"}], "texts.jsonl:1: id: 'zz': no such problem"),
    ([{"id": "p0", "sample": 0, "response": "x"}] * 2, "texts.jsonl:2: sample: 0: problem 'p0' has it already"),
    ([{"id": "p0", "response": 7}], "texts.jsonl:1: response must be a text"),
    ([], "empty: no rows in it"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_RESPONSES)
def test_responses_that_do_not_fit_are_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    data, given = write(tmp_path / "data.jsonl", PROBLEMS), write(tmp_path / "texts.jsonl", rows)
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(Evaluation(load_task("math"), data, str(tmp_path / "out"), responses=given))
    assert not (tmp_path / "out").exists()


def test_half_a_surrogate_pair_in_any_text_is_replaced_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = "\ud83d"
    data = write(tmp_path / "data.jsonl", [{"id": f"a{half}", "problem": f"q{half}", "answer": "7"}])
    given = write(tmp_path / "texts.jsonl", [{"id": f"a{half}", "response": f"{half} \\boxed{{7}}"}])
    summary = evaluate(Evaluation(load_task("math"), data, str(tmp_path / "out"), responses=given))
    assert summary["verdicts"]["correct"] == 1
    assert "\ufffd" in (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert "data.jsonl: 2 halves of surrogate pairs" in said
    assert "texts.jsonl: 2 halves of surrogate pairs" in said


def test_problems_without_a_response_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, given = write(tmp_path / "data.jsonl", PROBLEMS), write(tmp_path / "texts.jsonl", responses([boxes(0)]))
    evaluate(Evaluation(load_task("math"), data, str(tmp_path / "out"), responses=given))
    assert f"{len(PROBLEMS) - 1} of {len(PROBLEMS)} problems have no response" in capsys.readouterr().err


def test_a_task_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data: missing"):
        evaluate(Evaluation(load_task("aime24"), "", str(tmp_path / "out"), responses="x"))


class Server:
    """An OpenAI-compatible server whose answers depend on the question and the seed alone."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self.at: dict[int, Callable[[], None]] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply({"data": [{"id": "student"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question, seed = body["messages"][-1]["content"], body["seed"]
                with outer.lock:
                    outer.asked[question, seed] += 1
                    act = outer.at.pop(outer.asked.total(), None)
                if act:
                    act()
                number = int(re.findall(r"\d+", question)[0])
                message = {"content": f"It is \\boxed{{{2 * number + (seed % 3 == 0)}}}."}
                choice = {"message": message, "finish_reason": "stop"}
                self.reply({"choices": [choice], "usage": {"completion_tokens": 7, "prompt_tokens": 9}})

            def reply(self, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a request that a kill cut off
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_killed_run_goes_on_and_ends_with_the_same_samples(server: Server, tmp_path: Path) -> None:
    """50 samples killed three times: benchmarks/evaluate_kill.py does 500, killed ten times."""
    data = write(tmp_path / "data.jsonl", [{"id": i, "problem": f"{i} + {i}?", "answer": 2 * i} for i in range(10)])
    options = ["--task=math", f"--data={data}", "--samples=5", "--temperature=1", f"--pool.url={server.url}"]
    options += ["--pool.concurrency=2"]

    def start(output: Path) -> int:
        process = subprocess.Popen([*COMMAND, *options, f"--output={output}"], stderr=subprocess.PIPE, stdout=-1)
        pids.append(process.pid)
        process.communicate()
        return process.returncode

    pids: list[int] = []
    assert start(tmp_path / "whole") == 0
    whole = server.asked.copy()
    assert set(whole.values()) == {1}
    server.asked.clear()
    for kill_at in (9, 25, 41):
        server.at = {kill_at: lambda: os.kill(pids[-1], signal.SIGKILL)}
        assert start(tmp_path / "killed") == -signal.SIGKILL
    with open(tmp_path / "killed" / "generated.jsonl", "ab") as f:
        f.write(b'{"id": "9", "sam')  # as a kill within a write leaves it
    assert start(tmp_path / "killed") == 0
    assert (tmp_path / "killed" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert set(server.asked) == set(whole)
    assert server.asked.total() <= 50 + 3 * 2  # what was in flight when the kill came, and no more
    asked = server.asked.total()
    assert start(tmp_path / "killed") == 0
    assert server.asked.total() == asked


def test_a_server_of_another_model_is_refused_before_any_question(server: Server, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", PROBLEMS)
    engine = PoolEngine(PoolOptions("openai", server.url, model="teacher"))
    with pytest.raises(UserError, match=r"pool.model: 'teacher': .* serves 'student'"):
        evaluate(Evaluation(load_task("math"), data, str(tmp_path / "out"), engine))
    assert not server.asked


def test_samples_at_temperature_zero_are_one_and_that_is_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", PROBLEMS)
    summary = evaluate(
        Evaluation(
            load_task("math", samples=4, temperature=0.0),
            data,
            str(tmp_path / "out"),
            PoolEngine(PoolOptions("openai", server.url, model="student")),
        )
    )
    assert summary["samples"] == 6
    assert "4 at temperature 0" in capsys.readouterr().err


def test_a_task_with_worked_examples_asks_for_them(server: Server, tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["x", "y"], "answer": "A"}
    data = write(tmp_path / "data.jsonl", [row])
    with pytest.raises(UserError, match="--few_shot: missing"):
        evaluate(
            Evaluation(
                load_task("mmlu"),
                data,
                str(tmp_path / "out"),
                PoolEngine(PoolOptions("openai", server.url, model="student")),
            )
        )
