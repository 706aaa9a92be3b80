"""Decode speed of the sampler against transformers' generate: same weights, same prompts, same machine, one run.

    python benchmarks/decode.py [--student=configs/models/qwen2.5-0.5b.json] [--batch=8] [--prompt=64] [--new=64]

Random float32 weights of a 0.5B student (needs 6 GB of memory). Both continue the same prompts greedily by exactly
`--new` tokens, in turns, `--runs` times after a warm-up that compiles; the medians count, prefill included. On a GPU
the sampler runs alone (torch on the CPU is no peer) in bfloat16. Prints one JSON object.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from cogpo_jax import cli
from cogpo_jax.student.attention import default_backend
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.decoding import Sampler
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.student.weights import to_hf

_CONFIG = flags.DEFINE_string("student", "configs/models/qwen2.5-0.5b.json", "config.json of the student.")
_BATCH = flags.DEFINE_integer("batch", 8, "Prompts at a time.")
_PROMPT = flags.DEFINE_integer("prompt", 64, "Tokens of each prompt.")
_NEW = flags.DEFINE_integer("new", 64, "Tokens of each continuation.")
_RUNS = flags.DEFINE_integer("runs", 3, "Timed runs of each.")


def ours(config: StudentConfig, prompts: np.ndarray, dtype: str) -> Callable[[], list[list[int]]]:
    options = ForwardOptions(dtype, default_backend())
    sampler = Sampler(config, init_params(config, 0, dtype), options)
    return lambda: [one.tokens for one in sampler.generate(prompts.tolist(), _NEW.value, [])]


def theirs(folder: Path, prompts: np.ndarray) -> Callable[[], list[list[int]]]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts)

    def run() -> list[list[int]]:
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=_NEW.value, min_new_tokens=_NEW.value,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return out[:, tokens.shape[1] :].tolist()

    return run


def main() -> None:
    config = StudentConfig.from_hf(_CONFIG.value)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (_BATCH.value, _PROMPT.value))
    on_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    runs = {"cogpo-jax": ours(config, prompts, dtype)}
    with tempfile.TemporaryDirectory() as temporary:
        if on_cpu:
            to_hf(config, init_params(config, 0), Path(temporary) / "hf", "float32")
            runs["transformers"] = theirs(Path(temporary) / "hf", prompts)
        results = {name: run() for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_RUNS.value):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    rate = {name: _BATCH.value * _NEW.value / statistics.median(s) for name, s in seconds.items()}
    report = {
        "device": jax.devices()[0].device_kind,
        "dtype": dtype,
        "batch": _BATCH.value,
        "prompt": _PROMPT.value,
        "new": _NEW.value,
        "tokens_per_second": rate,
        "load_average": os.getloadavg()[0],
    }
    if "transformers" in rate:
        same = sum(a == b for a, b in zip(*results.values(), strict=True))
        report |= {"ratio": rate["cogpo-jax"] / rate["transformers"], "rows_with_equal_tokens": same}
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
