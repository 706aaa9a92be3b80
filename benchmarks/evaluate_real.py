"""Two evaluations of one model by two engines: how many responses are equal; and ours against transformers' own.

    cogpo evaluate --task=gsm8k --data=FILE --limit=200 --model=HF --max_new_tokens=320 --output=student
    llama-server -m MODEL.gguf --host 127.0.0.1 --port 31600 -np 8 -c 8192 --alias student
    cogpo evaluate --task=gsm8k --data=FILE --limit=200 --max_new_tokens=320 --output=pool \\
        --pool.url=http://127.0.0.1:31600
    python benchmarks/evaluate_real.py student pool --model=HF --transformers=20

Prints one JSON object: both accuracies with intervals, the share of equal responses, and for the first problems whether
transformers' greedy tokens (float32) are ours, token for token. Needs torch.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of samples.jsonl by problem."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return {row["id"]: row for row in map(json.loads, filter(None, lines))}


def same_as_transformers(folder: Path, model: str, count: int) -> dict[str, Any]:
    """Of the first `count` problems: how many greedy responses are transformers' to the last token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    limit = json.loads((folder / "evaluation.json").read_text())["task"]["max_new_tokens"]
    lines = (folder / "problems.jsonl").read_text(encoding="utf-8").split("\n")
    ours, equal, others = samples(folder), 0, []
    for problem in map(json.loads, lines[:count]):
        turns = [{"role": role, "content": text} for role, text in problem["messages"]]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
        with torch.no_grad():
            out = student.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **greedy)
        theirs = out[0, ids.shape[1] :].tolist()
        row = ours[problem["id"]]
        cut = theirs[: row["tokens"]]  # the end token is not among ours
        same = tokenizer.decode(cut) == row["response"] and len(theirs) - len(cut) == (row["finish_reason"] == "stop")
        equal += same
        others += [] if same else [problem["id"]]
    return {"problems": count, "equal": equal, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--transformers", type=int, default=0)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, folder in (("student", given.student), ("pool", given.pool)):
        if folder:
            summary = json.loads((folder / "summary.json").read_text())
            found[name] = {key: summary[key] for key in ("model", "accuracy", "verdicts", "shares", "tokens")}
    if given.pool:
        ours, theirs = samples(given.student), samples(given.pool)
        both = [name for name in ours if name in theirs]
        equal = sum(ours[name]["response"] == theirs[name]["response"] for name in both)
        verdicts = sum(ours[name]["verdict"] == theirs[name]["verdict"] for name in both)
        found["both"] = {"problems": len(both), "equal_responses": equal, "equal_verdicts": verdicts}
    if given.transformers:
        found["transformers"] = same_as_transformers(given.student, given.model, given.transformers)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
