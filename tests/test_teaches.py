"""The controlled world and its arms: texts are what they are said to be, intervals are of both seeds and problems."""

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples" / "arithmetic"), str(ROOT / "benchmarks")]
import arms  # noqa: E402
import arms_results  # noqa: E402
from world import Chain, World, chains, write_student  # noqa: E402

from cogpo_jax.errors import UserError  # noqa: E402
from cogpo_jax.evaluation.run import Evaluation, evaluate  # noqa: E402
from cogpo_jax.evaluation.tasks import Task  # noqa: E402
from cogpo_jax.text import load_tokenizer  # noqa: E402
from crv.verify import algebra  # noqa: E402
from crv.verify.certificate import certify, ladder  # noqa: E402

CHAIN = Chain(World(), 17, (3, -8, 5, -1, 9, 9, -2, -3))


def evaluate_texts(bench, arm, texts):
    """The evaluation of an arm that says these texts to problems whose answers are 3, 4 and so on."""
    bench.folder.mkdir(exist_ok=True)
    problems, said = bench.folder / "test.jsonl", bench.folder / f"{arm}.jsonl"
    rows = [{"id": str(i), "problem": f"{i} + 3 =", "answer": str(i + 3)} for i in range(len(texts))]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": str(i), "response": text, "tokens": 4} for i, text in enumerate(texts)]
    said.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task("test", "math", "{problem}", {name: [name] for name in ("id", "problem", "answer")})
    folder = arms.evaluation_folder(bench, arm, "test")
    evaluate(Evaluation(task, str(problems), str(folder), responses=str(said)))


async def _compare(gold, answer):
    return algebra.compare(gold, answer)


def verdict(text):
    return asyncio.run(certify(CHAIN.answer, text, ladder(_compare))).verdict


@pytest.mark.parametrize("kind", arms.KINDS)
def test_crv_proves_every_text_right_and_every_slip_wrong(kind):
    assert verdict(CHAIN.text(kind)) == "correct"
    assert all(verdict(CHAIN.wrong(kind, random.Random(i))) == "incorrect" for i in range(20))


def test_a_slip_is_carried_through_to_the_end():
    right, wrong = CHAIN.text("fitting").split(), CHAIN.text("fitting", slip=3, by=2).split()
    assert right[:11] == wrong[:11]  # four steps of three words, but for the last state
    moved = [(int(b) - int(a)) % 40 for a, b in zip(right, wrong, strict=True) if a != b]
    assert moved == [2] * 6


def test_every_word_is_one_token_of_the_student(tmp_path):
    write_student(CHAIN.world, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in (CHAIN.problem, *(CHAIN.text(kind) for kind in arms.KINDS)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids).split() == text.split()


def test_problems_do_not_repeat_and_belong_to_their_seed():
    first, again, other = (chains(World(), 300, seed) for seed in ("0", "0", "1"))
    assert first == again != other
    assert len({chain.problem for chain in first}) == 300


def test_the_interval_is_of_seeds_and_problems():
    rng = np.random.default_rng(0)
    same = (rng.random((5, 400)) < 0.6).astype(float)
    apart = (rng.random((5, 400)) < np.array([0.2, 0.4, 0.6, 0.8, 1.0])[:, None]).astype(float)
    width = lambda values: np.subtract(*arms_results.interval(values, 500)[::-1])  # noqa: E731
    assert 0.03 < width(same) < 0.07
    assert width(apart) > 4 * width(same), "seeds that differ must widen it"


def test_a_difference_is_over_the_seeds_that_have_both_arms(tmp_path):
    """A seed that lacks an arm counts for the others, and an arm without any is left out."""
    benches = []
    for seed, said in enumerate(({"asis": [1, 1], "cogpo": [3, 1]}, {"asis": [3, 4]})):
        bench = arms.Bench(tmp_path / str(seed), seed, {}, lambda config: None, *[0] * 2, *[0.0] * 3, *[0] * 4)
        for arm, numbers in said.items():
            evaluate_texts(bench, arm, [f"The answer is {number}" for number in numbers])
        benches.append(bench)
    found = arms_results.results(benches, ["asis", "cogpo", "rewrites"], "test")
    assert found["arms"]["asis"]["by_seed"] == {"0": 0.0, "1": 1.0}
    assert found["differences"]["cogpo - asis"]["difference"] == 0.5
    assert found["differences"]["cogpo - asis"]["seeds"] == [0]
    assert found["differences"]["cogpo - asis"]["p"] == 1.0, "one seed: the paired comparison of `cogpo evaluate`"
    assert found["arms"]["cogpo"]["verdicts"] == {"0": "10"}
    assert "rewrites" not in found["arms"]
    assert arms_results.differences_table(found, {"asis": "", "cogpo": ""}).splitlines()[-1].endswith("| 1 |")


def test_an_unknown_verdict_is_not_right(tmp_path):
    bench = arms.Bench(tmp_path, 0, {}, lambda config: None, *[0] * 2, *[0.0] * 3, *[0] * 4)
    evaluate_texts(bench, "asis", ["The answer is 3", "I give up", "The answer is 9"])
    found = arms_results.results([bench], ["asis"], "test")["arms"]["asis"]
    assert found["verdicts"] == {"0": "100"}
    assert found["unknown"] == 1


ALONE = """
import sys
sys.path.insert(0, "benchmarks")
import arms
arms.alone([sys.executable, "-c", sys.argv[1]])
"""


def test_an_arm_of_its_own_process_fails_with_it_and_hears_sigterm(tmp_path):
    script = lambda child: [sys.executable, "-c", ALONE, child]  # noqa: E731
    failed = subprocess.run(script("raise SystemExit(3)"), capture_output=True, text=True, cwd=ROOT)
    assert "RunError" in failed.stderr
    assert "ended with 3" in failed.stderr
    said = tmp_path / "said"
    hears = (
        "import pathlib, signal, time\n"
        f"said = pathlib.Path({str(said)!r})\n"
        "def stop(*_):\n    said.write_text('stopped')\n    raise SystemExit(1)\n"
        "signal.signal(signal.SIGTERM, stop)\nsaid.write_text('ready')\ntime.sleep(60)"
    )
    with subprocess.Popen(script(hears), stderr=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        while not said.is_file() or not said.read_text():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.terminate()
        assert "ended with 1" in parent.communicate(timeout=30)[1]
    assert said.read_text() == "stopped"


@pytest.mark.parametrize(("dropped", "refused"), [(1, False), (2, True)])
def test_a_few_dropped_problems_are_told_and_many_refused(tmp_path, monkeypatch, capsys, dropped, refused):
    """A person's solution may speak of "the answer of the first problem"; a rule that fails would drop many."""
    summary = {"problems": {"dropped": dropped}, "drops": {"rewrite_unclear_answer": dropped}}
    monkeypatch.setattr(arms, "write_crv_files", lambda bench: None)
    monkeypatch.setattr("crv.driver.run", lambda options, folder: summary)
    item = arms.Item("1 + 1 = ?", "2", dict.fromkeys(arms.KINDS, "The answer is 2"), "The answer is 3")
    bench = arms.Bench(tmp_path, 0, {"train": [item] * 20}, lambda config: None, *[0] * 2, *[0.0] * 3, *[0] * 4)
    if refused:
        with pytest.raises(UserError, match="dropped 2 of 20"):
            arms.make_data(bench)
    else:
        arms.make_data(bench)
        assert (tmp_path / "as_it_came" / "manifest.json").is_file()
    assert f"CRV dropped {dropped} of 20" in capsys.readouterr().err


def test_problems_of_a_file_are_its_lines_and_a_wrong_file_gets_one_line(tmp_path: Path) -> None:
    """U+2028 ends no line of JSON."""
    path = tmp_path / "train.jsonl"
    answer = "She has 3 * 4 = <<3*4=12>>12 beans.\nWith 5 more she has 12 + 5 = <<12+5=17>>17.\n#### 17"
    row = {"question": "Ann has 3\u2028cups of 4 beans and gets 5 more. How many has she?", "answer": answer}

    def read(*rows: dict[str, str]) -> subprocess.CompletedProcess[str]:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        code = "import sys, real_student; print(len(list(real_student.items(sys.argv[1], 0))))"
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, cwd=arms.ROOT / "benchmarks", capture_output=True, text=True)

    assert read(row, row).stdout == "2\n"
    assert f"{path}:2: needs question and answer as texts" in read(row, {"question": "?"}).stderr
