"""Does it teach? CRV + CogPO and what it is compared with, in a world where what a student can follow is known.

    python benchmarks/teaches.py --workdir=runs/teaches                 # five seeds of all arms
    python benchmarks/teaches.py --workdir=runs/teaches --seeds=1 --arms=asis,rewrites,dpo_0.1,cogpo
    python benchmarks/teaches.py --workdir=runs/teaches --collect --publish    # tables and plot of the docs

The world is examples/arithmetic/world.py, the arms are benchmarks/arms.py's. Each seed has its own problems, weights
and order; a third of the originals is fitting, a third terse, a third convoluted, and a wrong text alters one step of
the fitting one. `--split=dev` evaluates the development problems instead, the only ones by which a setting may be
chosen.

Resumable. Writes WORKDIR/results-SPLIT.json and report.html after each arm, and prints the results: for each arm the
accuracy (greedy), and paired differences, with 95% intervals over seeds and problems (bootstrap).
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import arms
import arms_results
from absl import flags

sys.path.insert(0, str(arms.ROOT / "examples" / "arithmetic"))

from world import Chain, World, chains, write_student

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.")
FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "The first of them.")
ARMS = flags.DEFINE_list("arms", list(arms.ARMS), "Which arms.")
SPLIT = flags.DEFINE_enum("split", "test", ["test", "dev"], "Which problems are evaluated.")
TRAIN = flags.DEFINE_integer("train", 3000, "Training problems.")
TEST = flags.DEFINE_integer("test", 1000, "Held-out problems; half as many for development.")
MODULUS = flags.DEFINE_integer("modulus", 40, "States of the world.")
SFT_STEPS = flags.DEFINE_integer("sft_steps", 300, "Steps of SFT, 64 examples each.")
PAIR_STEPS = flags.DEFINE_integer("pair_steps", 100, "Steps after it; of preference training 16 problems each.")
SFT_RATE = flags.DEFINE_float("sft_rate", 2e-3, "Learning rate of SFT.")
MORE_RATE = flags.DEFINE_float("more_rate", 5e-4, "Learning rate of the further SFT steps.")
PAIR_RATE = flags.DEFINE_float("pair_rate", 5e-5, "Learning rate of preference training.")
WRONG = flags.DEFINE_enum("wrong", "fitting", ["fitting", "original"], "The text that a wrong one is made from.")
COLLECT = flags.DEFINE_bool("collect", False, "Train nothing: the results of what is done.")
PUBLISH = flags.DEFINE_bool("publish", False, "Write docs/results/ and the tables of docs/results.md and README.md.")
_SETTINGS = ("train", "test", "modulus", "sft_steps", "pair_steps", "sft_rate", "more_rate", "pair_rate", "wrong")


def item(chain: Chain, kind: str, rng: random.Random) -> arms.Item:
    """A chain with its texts; kind: of its original."""
    texts = {kind: chain.text(kind) for kind in arms.KINDS}
    return arms.Item(
        chain.problem, chain.answer, texts, chain.wrong(kind if WRONG.value == "original" else "fitting", rng)
    )


def bench(seed: int, root: Path) -> arms.Bench:
    """A seed's problems (no two splits share one), student and settings."""
    world, folder, rng = World(modulus=MODULUS.value), root / f"seed-{seed}", random.Random(f"wrong {seed}")
    counts = {"train": TRAIN.value, "dev": TEST.value // 2, "test": TEST.value}
    every = iter(chains(world, sum(counts.values()), f"teaches {seed}"))
    problems = {
        split: [item(next(every), arms.original_kind(i), rng) for i in range(count)] for split, count in counts.items()
    }
    student = folder / "student"
    write_student(world, student)

    def configure(config: Any) -> None:
        config.model, config.tokenizer, config.text.prompt = str(student / "config.json"), str(student), "raw"
        config.rows.length, config.rows.per_device = 512, 8

    steps = (SFT_STEPS.value, PAIR_STEPS.value)
    rates = (SFT_RATE.value, MORE_RATE.value, PAIR_RATE.value)
    return arms.Bench(folder, seed, problems, configure, *steps, *rates, 64, 16, new_tokens=100, slots=250)


def names() -> dict[str, str]:
    """The runs as tables call them."""
    first, all_steps = SFT_STEPS.value, SFT_STEPS.value + PAIR_STEPS.value
    then = f"{PAIR_STEPS.value} steps of"
    return {
        "sft_asis": f"SFT on the texts as they came, {first} steps",
        "asis": f"SFT on the texts as they came, {all_steps} steps",
        "sft_rewrites": f"SFT on CRV's rewrites, {first} steps: where the next start",
        "rewrites": f"SFT on CRV's rewrites, {all_steps} steps",
        "cogpo": f"... then {then} CogPO (0.1 / 0.2 / 0.5)",
        **{f"dpo_{beta}": f"... then {then} DPO {beta}" for beta in arms.BETAS},
        "cogpo_reversed": f"... then {then} CogPO reversed (0.5 / 0.2 / 0.1)",
        "cogpo_student": f"... then {then} CogPO against the student's own mistakes",
        "cogpo_nll": f"... then {then} CogPO with the chosen side's NLL",
    }


def main() -> None:
    """All seeds and arms, then the results."""
    root, settings = Path(WORKDIR.value), {name: flags.FLAGS[name].value for name in _SETTINGS}
    known = root / "settings.json"
    if known.is_file() and json.loads(known.read_text()) != settings:
        raise UserError(f"workdir: {root}: belongs to other settings ({known}); give another folder")
    write_json(known, settings)
    benches = [bench(seed, root) for seed in range(FIRST_SEED.value, FIRST_SEED.value + SEEDS.value)]

    def write() -> dict[str, Any]:
        found = {**arms_results.results(benches, list(names()), SPLIT.value), "settings": settings}
        write_json(root / f"results-{SPLIT.value}.json", found)
        arms_results.write_page(found, root / "report.html")
        return found

    for one in [] if COLLECT.value else benches:
        arms.make_data(one)
        for arm in ARMS.value:
            there = arms.evaluation_folder(one, arm, SPLIT.value).is_dir()
            arms.run_arm(one, arm, SPLIT.value)
            arms.evaluated(one, arms.start_of(arm), SPLIT.value)
            if not there:  # five seeds of eleven arms take ten seconds to compare
                write()
    found = write()
    if PUBLISH.value:
        arms_results.publish(found, "teaches", names())
        write_atomic(arms.ROOT / "docs" / "results" / "teaches.svg", arms_results.bars(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(main)
