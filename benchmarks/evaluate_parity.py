"""Our verdicts against lm-evaluation-harness 0.4.13 (GSM8K, minerva_math) and plain math-verify, on real responses.

    python -m venv parity
    parity/bin/pip install --no-deps lm_eval==0.4.13
    parity/bin/pip install sympy antlr4-python3-runtime==4.11 math-verify pyyaml
    python benchmarks/evaluate_parity.py --make=FOLDER --gsm8k=gsm8k_train_granularity.jsonl \\
        --math=math_train_granularity.jsonl
    cogpo evaluate --task=math --data=FOLDER/data.jsonl --responses=FOLDER/responses.jsonl --output=FOLDER/ours
    parity/bin/python benchmarks/evaluate_parity.py --check=FOLDER --output=disagreements.jsonl

The files are EIT-NLP/Distilling-CoT-Reasoning's: GSM8K and MATH problems with responses of three models. The harness
wants its own closing words, so each of its graders gets the response with its last statement in them ("#### X",
"Final Answer: The final answer is X. I hope it is correct."); flexible-extract and math-verify get it as it is. Each
disagreement is listed with who is right, by benchmarks/data/evaluate_parity.jsonl: read by a person, one line for each
pair of gold and stated answer (where none is stated: for each response). Prints the agreement with each grader as JSON.
"""

import argparse
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

ADJUDICATED = Path(__file__).parent / "data" / "evaluate_parity.jsonl"


def make(folder: Path, gsm8k: str, math: str, each: int) -> None:
    """Writes `each` problems' responses of both sets, those that state an answer after some reasoning."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "data.jsonl", "w") as data, open(folder / "responses.jsonl", "w") as responses:
        for path, column in ((gsm8k, "question"), (math, "problem")):
            count = 0
            for row in rows(Path(path)):
                texts = [cot["text"] for cot in row["cots"] if len(cot["text"].split()) >= 15]
                if count >= each or not texts:
                    continue
                data.write(json.dumps({"id": row["id"], "problem": row[column], "answer": row["answer"]}) + "\n")
                for sample, text in enumerate(texts[: each - count]):
                    responses.write(json.dumps({"id": row["id"], "sample": sample, "response": text}) + "\n")
                    count += 1


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def harness(name: str) -> Path:
    """A file of the installed lm_eval, whose package is not imported: it would want torch and datasets."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks" / name


def minerva() -> Any:
    """lm_eval/tasks/minerva_math/utils.py."""
    spec = importlib.util.spec_from_file_location("minerva", harness("minerva_math/utils.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gsm8k_graders() -> dict[str, Any]:
    """strict-match and flexible-extract of gsm8k-cot-zeroshot's kind, by gsm8k.yaml's own patterns."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    task = yaml.load(harness("gsm8k/gsm8k.yaml").read_text(), Loader)
    ignored = next(m for m in task["metric_list"] if m["metric"] == "exact_match")["regexes_to_ignore"]

    def clean(text: str) -> str:
        for pattern in ignored:
            text = re.sub(pattern, "", text)
        return text.lower()  # ignore_case

    def grader(filters: dict[str, Any]) -> Any:
        pattern, place = filters["regex_pattern"], filters.get("group_select", 0)

        def correct(gold: str, response: str) -> bool:
            found = re.findall(pattern, response)
            match = found[place] if found else "[invalid]"
            match = next((part for part in match if part), "") if isinstance(match, tuple) else match
            return clean(match.strip()) == clean(f"#### {gold}")

        return correct

    return {filters["name"]: grader(filters["filter"][0]) for filters in task["filter_list"]}


def restated(response: str, extracted: str | None, words: str) -> str:
    """The response with its last stated answer in a grader's own closing words."""
    return response if extracted is None else f"{response}\n{words.format(extracted.strip().strip('$'))}"


def check(folder: Path, output: Path) -> dict[str, Any]:
    """Compares; writes the disagreements; returns the agreement by grader."""
    from math_verify import parse, verify

    utils, gsm8k = minerva(), gsm8k_graders()
    problems = {row["id"]: row for row in rows(folder / "ours" / "problems.jsonl")}
    lines = rows(ADJUDICATED) if ADJUDICATED.is_file() else []
    judged = {(row["gold"], row["answer"], row.get("id"), row.get("sample")): row for row in lines}
    counts: dict[str, Counter[str]] = {}
    listed = []
    for row in rows(folder / "ours" / "samples.jsonl"):
        gold, text, answer = problems[row["id"]]["gold"], row["response"], row["extracted"]
        closing = restated(text, answer, "Final Answer: The final answer is ${}$. I hope it is correct.")
        doc = {"answer": utils.normalize_final_answer(gold), "solution": f"\\boxed{{{gold}}}"}
        theirs = {"math-verify": bool(verify(parse(f"\\boxed{{{gold}}}"), parse(text)))}
        if answer is not None:
            theirs["math-verify, our extraction"] = bool(
                verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
            )
        if row["id"].startswith("gsm8k"):
            theirs["lm-eval gsm8k strict-match"] = gsm8k["strict-match"](gold, restated(text, answer, "#### {}"))
            theirs["lm-eval gsm8k flexible-extract"] = gsm8k["flexible-extract"](gold, text)
        theirs["lm-eval minerva exact_match"] = bool(utils.process_results(doc, [closing])["exact_match"])
        for name, correct in theirs.items():
            tally = counts.setdefault(name, Counter())
            tally["responses"] += 1
            if correct == (row["verdict"] == "correct"):
                tally["agree"] += 1
                continue
            truth = judged.get((gold, answer, None, None)) or judged.get((gold, answer, row["id"], row["sample"]))
            right = "not judged yet" if truth is None else "ours" if truth["correct"] != correct else "theirs"
            if truth and row["verdict"] == "unknown" and truth["correct"]:
                right = "theirs (ours: unknown)"
            tally[right] += 1
            listed.append(
                {"grader": name, "id": row["id"], "sample": row["sample"], "gold": gold, "answer": answer}
                | {"ours": row["verdict"], "theirs": "correct" if correct else "incorrect", "right": right}
                | {"reason": row["reason"], "why": truth["why"] if truth else ""}
                | ({} if row["id"].startswith("math") else {"ending": text[-160:]})  # no MATH text in the repository
            )
    output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed))
    return {name: dict(tally) for name, tally in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--gsm8k")
    parser.add_argument("--math")
    parser.add_argument("--each", type=int, default=800, help="responses of each set")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--output", type=Path, default=Path("disagreements.jsonl"))
    given = parser.parse_args()
    if given.make:
        make(given.make, given.gsm8k, given.math, given.each)
    if given.check:
        print(json.dumps(check(given.check, given.output), indent=1))


if __name__ == "__main__":
    main()
