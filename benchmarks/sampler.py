"""The sampler on a real mix of lengths: its slots kept full, against static batches and transformers' generate.

    python benchmarks/sampler.py [--student=configs/models/qwen2.5-0.5b.json] [--slots=32] [--static=8] [--runs=1]

64 prompts with as many tokens as GSM8K's questions have, each continued greedily by exactly as many tokens as its
reference answer has (64 problems of the training split, drawn by seed 0, Qwen2.5's tokenizer; prompts sorted by length,
as `generate` once did, which helps those that wait for the longest of a batch). Random float32 weights. Everything runs
in turns in one process: the slots kept full; static batches (the sampler called once per batch) of --static rows, which
is what `generate` did; transformers with --static rows, left-padded, each row stopped at its own length. Ours after a
run that compiles. Prints one JSON object: seconds by the clock and of CPU (pin it to one core, with OMP_NUM_THREADS=1:
then other work on the machine does not change the latter), ratios, rows with equal tokens.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from cogpo_jax import cli
from cogpo_jax.student.attention import default_backend
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.decoding import Sampler
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.student.weights import to_hf

_CONFIG = flags.DEFINE_string("student", "configs/models/qwen2.5-0.5b.json", "config.json of the student.")
_SLOTS = flags.DEFINE_integer("slots", 32, "Rows decoded at a time.")
_STATIC = flags.DEFINE_integer("static", 8, "Rows of a static batch.")
_RUNS = flags.DEFINE_integer("runs", 1, "Timed runs of each; medians count.")
_ROWS = flags.DEFINE_integer("rows", 64, "Prompts.", lower_bound=1, upper_bound=64)

# GSM8K (Cobbe et al. 2021, MIT licence): tokens of (question, answer and end token).
# fmt: off
LENGTHS = [
    (43, 87), (47, 162), (69, 136), (41, 87), (73, 138), (47, 120), (35, 47), (40, 90),
    (25, 116), (66, 203), (55, 133), (56, 183), (69, 208), (45, 76), (61, 212), (47, 93),
    (147, 245), (53, 105), (102, 71), (36, 70), (50, 105), (81, 64), (73, 79), (74, 122),
    (43, 64), (84, 131), (46, 110), (28, 74), (40, 88), (79, 134), (47, 124), (51, 129),
    (78, 101), (48, 148), (78, 119), (63, 151), (60, 150), (70, 217), (46, 116), (58, 151),
    (35, 81), (85, 178), (69, 151), (47, 89), (91, 193), (36, 61), (98, 147), (44, 93),
    (73, 72), (49, 83), (52, 157), (93, 175), (89, 304), (68, 237), (38, 142), (39, 92),
    (92, 237), (73, 152), (39, 59), (59, 136), (50, 72), (46, 63), (98, 213), (67, 174),
]
# fmt: on
Run = Callable[[], list[list[int]]]


def ours(config: StudentConfig, sampler: Sampler, prompts: list[list[int]], lengths: list[int], batch: int) -> Run:
    def run() -> list[list[int]]:
        parts = [slice(i, i + batch) for i in range(0, len(prompts), batch)]
        return [one.tokens for part in parts for one in sampler.generate(prompts[part], lengths[part], [])]

    return run


def theirs(folder: Path, prompts: list[list[int]], lengths: list[int], batch: int) -> Run:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def one_batch(some: list[list[int]], limits: list[int]) -> list[list[int]]:
        width = max(map(len, some))
        tokens = torch.tensor([[0] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])

        class AtItsLength(transformers.StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
                return torch.tensor([input_ids.shape[1] - width >= limit for limit in limits])

        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=max(limits), do_sample=False, eos_token_id=None,
            pad_token_id=0, stopping_criteria=transformers.StoppingCriteriaList([AtItsLength()]),
        )  # fmt: skip
        return [row[width : width + limit].tolist() for row, limit in zip(out, limits, strict=True)]

    def run() -> list[list[int]]:
        parts = [slice(i, i + batch) for i in range(0, len(prompts), batch)]
        return [row for part in parts for row in one_batch(prompts[part], lengths[part])]

    return run


def main() -> None:
    import jax

    config = StudentConfig.from_hf(_CONFIG.value)
    rng, mix = np.random.default_rng(0), sorted(LENGTHS[: _ROWS.value])
    prompts = [rng.integers(0, config.vocab_size, question).tolist() for question, _ in mix]
    lengths = [answer for _, answer in mix]
    params, options = init_params(config, 0), ForwardOptions("float32", default_backend())
    wide, narrow = Sampler(config, params, options, _SLOTS.value), Sampler(config, params, options, _STATIC.value)
    narrow.rest, narrow.layers = wide.rest, wide.layers  # one copy of the weights
    runs = {
        "full slots": ours(config, wide, prompts, lengths, len(prompts)),
        f"static {_STATIC.value}": ours(config, narrow, prompts, lengths, _STATIC.value),
    }
    with tempfile.TemporaryDirectory() as temporary:
        to_hf(config, params, Path(temporary) / "hf", "float32")
        runs["transformers"] = theirs(Path(temporary) / "hf", prompts, lengths, _STATIC.value)
        results, seconds, cpu = {}, {name: [] for name in runs}, {name: [] for name in runs}
        for turn in range(_RUNS.value):
            for name, run in runs.items():
                if turn == 0 and name != "transformers":
                    run()  # compiles
                started, used = time.perf_counter(), time.process_time()
                results[name] = run()
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
                print(f"{name}: {seconds[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU", file=sys.stderr)
    middle, of_cpu = ({name: statistics.median(s) for name, s in times.items()} for times in (seconds, cpu))
    full = results["full slots"]
    report = {
        "device": jax.devices()[0].device_kind,
        "rows": len(prompts),
        "tokens": sum(lengths),
        "slots": _SLOTS.value,
        "seconds": {name: round(s, 2) for name, s in middle.items()},
        "cpu_seconds": {name: round(s, 2) for name, s in of_cpu.items()},
        "times_as_fast": {name: round(s / middle["full slots"], 3) for name, s in middle.items()},
        "times_as_fast_by_cpu": {name: round(s / of_cpu["full slots"], 3) for name, s in of_cpu.items()},
        "rows_with_equal_tokens": {
            name: sum(a == b for a, b in zip(full, other, strict=True)) for name, other in results.items()
        },
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
