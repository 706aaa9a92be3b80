"""Our micro-step against a 70-line sketch and against Tunix, through the same TPU compiler, one after the other.

    python benchmarks/tpu_compile.py [--tunix_python=.venv-tunix/bin/python] [--only=ours,sketch,tunix]

Qwen2.5-1.5B on v5e:4x4, full remat, float32 master weights: 2 rows of 4,096 and 1 row of 16,384 tokens a chip (Tunix:
one pair of 512 + 3,584 tokens). Peak HBM a chip is of the whole step: arguments (parameters, Adam moments, gradients),
results and temporaries; ours is the larger of micro-step and apply with what is resident beside them, and both compile
times. Compile seconds depend on what else the
machine does: compare within one run. One JSON line a program, the verdict last. For Tunix:

    python -m venv .venv-tunix && .venv-tunix/bin/pip install google-tunix==0.1.7 jax==0.10.2 'libtpu==0.0.42.*'
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from cogpo_jax import cli
from cogpo_jax.tpu.topology import ENVIRONMENT

ONLY = flags.DEFINE_list("only", "ours,sketch,tunix", "Which to compile.")
TUNIX_PYTHON = flags.DEFINE_string("tunix_python", ".venv-tunix/bin/python", "Python with Tunix and libtpu.")

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
SHAPES = {"2x4096": (2, 4096), "1x16384": (1, 16384)}  # rows a chip, tokens a row
CHIPS = 16


def run(name: str, shape: str, command: list[Any]) -> dict[str, Any]:
    """Runs one compilation in its own process; its last JSON object, or the error."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    found = [line[line.index("{") :] for line in done.stdout.splitlines() if line.rstrip().endswith("}")]
    if not found:
        return {"program": name, "shape": shape, "error": (done.stdout + done.stderr)[-300:]}
    return {"program": name, "shape": shape} | _figures(json.loads(found[0]))


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    if "programs" in found:  # compile_check
        step = [p for p in found["programs"] if p["name"] in ("micro-step", "apply")]
        return {
            "peak_gb": max(p["peak"] + p["beside"] for p in step) / 1e9,
            "compile_s": sum(p["compile_seconds"] for p in step),
        }
    return {"peak_gb": found["peak_GB"], "compile_s": found["compile_s"]}


def main() -> int:
    """Compiles each program for each shape and prints figures and verdicts."""
    results = {}
    for shape, (rows, length) in SHAPES.items():
        commands = {
            "ours": [
                *(sys.executable, "launch/compile_check.py", "--config=configs/cogpo_tpu.py:1.5b"),
                *("--topology=v5e:4x4", "--programs=micro-step,apply"),
                *(f"--config.rows.per_device={rows}", f"--config.rows.length={length}"),
            ],
            "sketch": [sys.executable, PEERS / "tpu_sketch.py", "v5e:4x4", CHIPS * rows, length, "1.5b", 1024],
        }
        if shape == "2x4096":
            commands["tunix"] = [TUNIX_PYTHON.value, PEERS / "tunix_tpu.py", "v5e:4x4", CHIPS, 512, 3584]
            commands["tunix"] += ["qwen2p5_1p5b", 1]
        for name, command in commands.items():
            if name in ONLY.value:
                results[name, shape] = run(name, shape, command)
                print(json.dumps(results[name, shape]), flush=True)
    verdict = {}
    for (name, shape), found in results.items():
        ours = results.get(("ours", shape), {})
        if name != "ours" and "peak_gb" in found and "peak_gb" in ours:
            verdict[f"peak_of_{name}_{shape}"] = round(ours["peak_gb"] / found["peak_gb"], 3)
            verdict[f"compile_of_{name}_{shape}"] = round(ours["compile_s"] / found["compile_s"], 3)
    print(json.dumps({"ours_divided_by": verdict}))
    return 1 if any("error" in found for found in results.values()) else 0


if __name__ == "__main__":
    cli.run(main)
