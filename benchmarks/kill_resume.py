"""Kills a training run again and again with SIGKILL, lets it go on, and compares it with a run that nobody touched.

    python benchmarks/kill_resume.py --kills=20 --steps=200

Trains a tiny student on made-up triangles (CPU, one device) twice: once in one piece, once killed at random moments,
in steps, in checkpoints, while it starts. Prints one JSON line; exit code 1 where parameters, optimizer state or
metrics (times aside) differ in a single bit. 20 kills take about 5 minutes on 2 free cores.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from cogpo_jax import cli
from cogpo_jax.records import Group, Pair, Response, write_data
from cogpo_jax.text import train_tokenizer

KILLS = flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 200, "Optimizer steps of the run.", lower_bound=8)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "tokens_per_second", "goodput", "memory_bytes", "mfu")
WORDS = "add the two numbers then half of them is a prime so we know that seven plus five makes twelve"
MODEL = {
    "model_type": "qwen2",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as temporary:
        folder = Path(temporary)
        _write_inputs(folder)
        started = time.monotonic()
        whole = subprocess.run(_command(folder, "whole"), env=_environment(folder), capture_output=True, text=True)
        if whole.returncode:
            print(whole.stderr, file=sys.stderr)
            return 1
        seconds = time.monotonic() - started
        moments = _killed_run(folder)
        same = _state(folder / "broken") == _state(folder / "whole")
        metrics = _metrics(folder / "broken") == _metrics(folder / "whole")
        print(
            json.dumps(
                {
                    "kills": len(moments),
                    "steps": STEPS.value,
                    "killed_after_steps": moments,
                    "parameters_and_optimizer_bit_equal": same,
                    "metrics_equal": metrics,
                    "seconds_in_one_piece": round(seconds, 1),
                }
            )
        )
        return 0 if same and metrics else 1


def _killed_run(folder: Path) -> list[int]:
    """Runs to the end through KILLS kills; returns how many steps were logged at each."""
    rng, moments = random.Random(SEED.value), []
    # Spread over the run, with jitter: a kill may fall into a start, a step or the writing of a checkpoint.
    targets = sorted(rng.randrange(0, STEPS.value - 4) for _ in range(KILLS.value))
    for target in targets:
        process = subprocess.Popen(
            _command(folder, "broken"),
            env=_environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while len(_lines(folder / "broken")) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        moments.append(len(_lines(folder / "broken")))
    last = subprocess.run(_command(folder, "broken"), env=_environment(folder), capture_output=True, text=True)
    if last.returncode:
        raise SystemExit(last.stderr)
    return moments


def _write_inputs(folder: Path) -> None:
    rng = random.Random(1)
    kinds = ("suitable", "hard", "incorrect")
    groups = []
    for i in range(24):
        texts = [" ".join(rng.choices(WORDS.split(), k=rng.randrange(3, 16))) for _ in kinds]
        responses = tuple(
            Response(f"{i}-{j}", "", "teacher", "", f"{text} {j}", f"The answer is {i}.", "", kind, "")
            for j, (kind, text) in enumerate(zip(kinds, texts, strict=True))
        )
        pairs = (Pair(0, 1, "small"), Pair(1, 2, "medium"), Pair(0, 2, "large"))
        groups.append(Group(f"p{i}", "", f"What is {i}?", str(i), responses, pairs))
    write_data(folder / "data", groups={"train": groups})
    train_tokenizer([f"{a} {b} The answer is" for a in WORDS.split() for b in WORDS.split()], folder / "tokenizer", 320)
    (folder / "model.json").write_text(json.dumps(MODEL))


def _command(folder: Path, run: str) -> list[str]:
    fields = {
        "data": folder / "data",
        "tokenizer": folder / "tokenizer",
        "model": folder / "model.json",
        "batch.groups": 6,
        "epochs": 0,
        "max_steps": STEPS.value,
        "rows.length": 192,
        "rows.shapes": 1,
        "optimizer.learning_rate": 1e-3,
        "checkpoint.every": 3,
        "log.tensorboard": False,
    }
    config = f"--config={ROOT / 'configs' / 'tiny_cpu.py'}"
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, str(ROOT / "launch" / "train.py"), config, f"--workdir={folder / run}", *settings]


def _environment(folder: Path) -> dict[str, str]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu"}


def _lines(workdir: Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in _lines(workdir)]


def _state(workdir: Path) -> dict[str, dict[str, str]]:
    """The checksums of the last checkpoint's arrays, computed again from the arrays themselves."""
    import jax

    from cogpo_jax.training.checkpoint import Checkpoints, array_checksums

    copy = workdir.with_name(f"{workdir.name}-copy")
    shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
    checkpoints = Checkpoints(copy, read_only=True)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        item: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), checkpoints.structure(item, STEPS.value)
        )
        for item in ("params", "opt_state")
    }
    _, items, _ = checkpoints.restore(abstract, STEPS.value)
    return {item: array_checksums(tree) for item, tree in items.items()}


if __name__ == "__main__":
    cli.run(main)
