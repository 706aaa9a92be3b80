"""Makes the preference rows that the benchmarks run on, from the real data that README.md names.

    python benchmarks/data/build.py --rule=gsm8k --input=train.jsonl --output=gsm8k_pairs.jsonl.xz
    python benchmarks/data/build.py --rule=long_cot --input=long_cot.jsonl --output=long_cot_pairs.jsonl

gsm8k: `--groups` problems with the texts by rule of examples/gsm8k_texts.py: suitable (the person's solution),
unsuitable (with detours, or its bare calculations), wrong (one step altered). Three rows each: small, medium, large.
long_cot: problems with two or more long thoughts of at most `--max_tokens` tokens (prompt and response, Qwen2.5's
tokenizer); up to three of them as a triangle, best score first, gap none. For their lengths, not for training: a higher
score is all that makes a response the chosen one.
"""

import itertools
import json
import lzma
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tokenizers import Tokenizer

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError

RULE = flags.DEFINE_enum("rule", "gsm8k", ["gsm8k", "long_cot"], "Which rule of the module's docstring.")
INPUT = flags.DEFINE_string("input", None, "JSONL file with problems and their CoTs.")
OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write; compressed where its name ends in .xz.")
GROUPS = flags.DEFINE_integer("groups", 64, "How many problems.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 4096, "long_cot: longer ones are left out.")

_TOKENIZER = Path(__file__).parents[2] / "tests" / "data" / "qwen2.5" / "tokenizer.json.xz"
_TEMPLATE_TOKENS = 40  # what the chat template adds, and some
_TRIANGLE = ((0, 1, "small"), (1, 2, "medium"), (0, 2, "large"))


def gsm8k_triangles(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """(problem, [suitable, unsuitable, wrong]) of each problem that the rules can make all three of."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from gsm8k_texts import texts_by_rule
    from wrong_by_rule import corrupt_by_rule

    for number, row in enumerate(rows):
        rng = random.Random(number)
        texts = texts_by_rule(row["question"], row["answer"], rng)
        if texts:
            unsuitable = texts.convoluted if number % 2 else texts.terse
            wrong = corrupt_by_rule(unsuitable, rng)
            if wrong:
                yield row["question"], [texts.fitting, unsuitable, wrong]


def long_thoughts(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """(problem, two or three long responses, best score first)."""
    tokenizer = Tokenizer.from_str(lzma.decompress(_TOKENIZER.read_bytes()).decode())
    by_problem: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        text = f"<think>\n{row['cot']}\n</think>\n\n{row['response'] or ''}"
        if len(tokenizer.encode(row["problem"] + text).ids) + _TEMPLATE_TOKENS <= MAX_TOKENS.value:
            by_problem.setdefault(row["problem"], []).append((float(row["score"] or 0), text))
    for problem, scored in by_problem.items():
        responses = list(dict.fromkeys(text for _, text in sorted(scored, key=lambda s: -s[0])))[:3]
        if len(responses) > 1:
            yield problem, responses


def flat_rows(groups: Iterator[tuple[str, list[str]]], gaps: bool) -> Iterator[dict[str, str]]:
    """A row per pair."""
    for problem, responses in groups:
        for chosen, rejected, gap in _TRIANGLE:
            if max(chosen, rejected) < len(responses):
                pair = {"prompt": problem, "chosen": responses[chosen], "rejected": responses[rejected]}
                yield pair | ({"gap": gap} if gaps else {})


def main() -> None:
    if not INPUT.value or not Path(INPUT.value).is_file():
        raise UserError(f"--input: {INPUT.value}: no such file; README.md names the sources")
    if not OUTPUT.value:
        raise UserError("--output: missing; give the JSONL file to write")
    with open(INPUT.value) as f:
        rows = (json.loads(line) for line in f)
        groups = gsm8k_triangles(rows) if RULE.value == "gsm8k" else long_thoughts(rows)
        chosen = list(flat_rows(itertools.islice(groups, GROUPS.value), gaps=RULE.value == "gsm8k"))
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen).encode()
    write_atomic(OUTPUT.value, lzma.compress(data, preset=9) if OUTPUT.value.endswith(".xz") else data)
    print(json.dumps({"output": OUTPUT.value, "problems": len({row["prompt"] for row in chosen}), "rows": len(chosen)}))


if __name__ == "__main__":
    cli.run(main)
