"""The arms of teaches.py with real weights: a Qwen student on GSM8K, evaluated on problems that it never saw.

    python benchmarks/real_student.py --model=HF_FOLDER --raw=train.jsonl --workdir=runs/real [--size=gpu]

Texts are by rule (examples/gsm8k_texts.py): fitting is the person's own solution, terse its bare calculations,
convoluted goes through all twice, wrong alters one step. `--size`: tiny (a rehearsal with a tiny student), cpu (a 0.5B
student on two cores: two hours, 20 GB), gpu (one device of 80 GB), pod (as gpu, with larger batches). `--test` takes a
file of GSM8K's test set; without it the end of `--raw` is held out, which training never sees.

Resumable. Writes WORKDIR/results-test.json and report.html: accuracy (greedy) by arm and paired differences with 95%
intervals; the evaluations lie beside the runs.
"""

import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arms
import arms_results
from absl import flags

sys.path.insert(0, str(arms.ROOT / "examples"))

from gsm8k_texts import texts_by_rule
from wrong_by_rule import corrupt_by_rule

from cogpo_jax import cli
from cogpo_jax.atomic import write_json
from cogpo_jax.errors import UserError
from cogpo_jax.records.reader import read_rows

MODEL = flags.DEFINE_string("model", None, "The student: a Hugging Face folder.", required=True)
RAW = flags.DEFINE_string("raw", None, "GSM8K's train.jsonl.", required=True)
TEST = flags.DEFINE_string("test", "", "GSM8K's test.jsonl; empty: the last problems of --raw.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
SIZE = flags.DEFINE_enum("size", "cpu", ["tiny", "cpu", "gpu", "pod"], "How much of everything.")
SEED = flags.DEFINE_integer("seed", 0, "Of the problems' order and the training.")
ARMS = flags.DEFINE_list("arms", ["asis", "rewrites", "dpo_0.1", "cogpo"], "Which arms.")
SFT_RATE = flags.DEFINE_float("sft_rate", 1e-5, "Learning rate of SFT.")
PUBLISH = flags.DEFINE_bool("publish", False, "Write the results into docs/, as a maintainer does.")
PAIR_RATE = flags.DEFINE_float("pair_rate", 1e-6, "Learning rate of preference training.")


@dataclasses.dataclass(frozen=True)
class Size:
    """Problems, steps, batches (examples, groups), row tokens, rows of a device, new tokens and decoded rows.

    shapes: shapes of a micro-batch (rows.shapes): more fit a small batch better, each is one more compilation.
    """

    train: int
    test: int
    sft_steps: int
    pair_steps: int
    sft_batch: int
    pair_batch: int
    length: int
    rows: int
    shapes: int
    new_tokens: int
    slots: int
    compute_dtype: str
    remat: str


SIZES = {
    "tiny": Size(12, 8, 2, 2, 4, 4, 1024, 2, 1, 16, 8, "float32", "none"),
    "cpu": Size(96, 100, 16, 8, 4, 2, 1024, 1, 2, 320, 50, "float32", "dots"),
    "gpu": Size(4000, 600, 120, 60, 64, 32, 8192, 2, 1, 320, 128, "bfloat16", "dots"),
    "pod": Size(6000, 1000, 200, 100, 128, 64, 8192, 4, 1, 320, 128, "bfloat16", "dots"),
}


def items(path: str, seed: int) -> Iterator[arms.Item]:
    """The problems of a GSM8K file in a random order, those that the rules can make all texts of."""
    rows = list(read_rows(path))
    random.Random(seed).shuffle(rows)
    for place, row in rows:
        if not all(isinstance(row.get(field), str) for field in ("question", "answer")):
            raise UserError(f"{place}: needs question and answer as texts, as GSM8K's rows have; has {', '.join(row)}")
        rng = random.Random(row["question"])
        texts = texts_by_rule(row["question"], row["answer"], rng)
        wrong = corrupt_by_rule(texts.fitting, rng) if texts else ""
        if texts and wrong:
            gold = row["answer"].rpartition("#### ")[2].strip().replace(",", "")
            by_kind = {"fitting": texts.fitting, "terse": texts.terse, "convoluted": texts.convoluted}
            yield arms.Item(row["question"].strip(), gold, by_kind, wrong)


def bench(size: Size, folder: Path) -> arms.Bench:
    """The problems (none of train is in test), the student and the settings."""
    every = list(items(RAW.value, SEED.value))
    test = list(items(TEST.value, SEED.value)) if TEST.value else every[::-1]
    if len(every) < size.train + (0 if TEST.value else size.test) or len(test) < size.test:
        raise UserError(f"--raw: {RAW.value}: too few problems for --size={SIZE.value}")
    problems = {"train": every[: size.train], "test": test[: size.test]}

    def configure(config: Any) -> None:
        config.init_from = MODEL.value
        config.rows.length, config.rows.per_device, config.rows.shapes = size.length, size.rows, size.shapes
        config.compute_dtype, config.remat = size.compute_dtype, size.remat

    steps, rates = (size.sft_steps, size.pair_steps), (SFT_RATE.value, SFT_RATE.value / 4, PAIR_RATE.value)
    batches = {"sft_batch": size.sft_batch, "pair_batch": size.pair_batch}
    said = {"new_tokens": size.new_tokens, "slots": size.slots, "compute_dtype": size.compute_dtype, "chat": True}
    return arms.Bench(folder, SEED.value, problems, configure, *steps, *rates, **batches, **said)


def names(size: Size) -> dict[str, str]:
    """The runs as tables call them."""
    every, then = size.sft_steps + size.pair_steps, f"SFT on CRV's rewrites, then {size.pair_steps} steps of"
    return {
        "asis": f"SFT on the texts as they came, {every} steps",
        "rewrites": f"SFT on CRV's rewrites, {every} steps",
        **{f"dpo_{beta}": f"{then} DPO {beta}" for beta in arms.BETAS},
        "cogpo": f"{then} CogPO",
    }


def main() -> None:
    """All arms, then the results; results so far are written after each arm."""
    root, size = Path(WORKDIR.value), SIZES[SIZE.value]
    settings = {"size": SIZE.value, **dataclasses.asdict(size), "model": Path(MODEL.value).name}
    settings |= {"sft_rate": SFT_RATE.value, "pair_rate": PAIR_RATE.value}
    known = root / "settings.json"
    if known.is_file() and json.loads(known.read_text()) != settings:
        raise UserError(f"workdir: {root}: belongs to other settings ({known}); give another folder")
    write_json(known, settings)
    one = bench(size, root / f"seed-{SEED.value}")
    arms.make_data(one)
    done: list[str] = []
    for arm in ARMS.value:
        if len(ARMS.value) == 1:
            arms.run_arm(one, arm, "test")
        else:
            arms.alone([sys.executable, *sys.argv, f"--arms={arm}", "--nopublish"])
        done.append(arm)
        found = {**arms_results.results([one], done, "test"), "settings": settings}
        write_json(root / "results-test.json", found)
        arms_results.write_page(found, root / "report.html")
    if PUBLISH.value:
        arms_results.publish(found, "real_student", names(size))
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(main)
