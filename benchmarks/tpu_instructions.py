"""What the TPU compiler spends its time on: the instructions of each kernel of a program, largest first.

    .venv-tpu/bin/python benchmarks/tpu_instructions.py --topology=v5e:4x4 --config=configs/cogpo_tpu.py:1.5b \
        [--program=micro-step] [--top=40] [--config.rows.length=4096 ...]

libtpu unrolls loops over registers, and its back end then takes some 6 microseconds for each low-level instruction
(LLO), nine tenths of a compilation. The counts are exact, and the same on any machine; seconds are not. Prints a line
for each kernel (instructions, result, where in the JAX program it comes from), and one JSON object.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.tpu.topology import ENVIRONMENT

TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "As compile_check's.")
PROGRAM = flags.DEFINE_enum("program", "micro-step", ["micro-step", "apply", "reference"], "Which program.")
TOP = flags.DEFINE_integer("top", 40, "How many kernels to print.")
cli.define_config("cogpo_tpu:1.5b")  # for --help and to check it; compile_check reads it itself

ROOT = Path(__file__).parents[1]
LOGGING = {"TPU_STDERR_LOG_LEVEL": "0", "TPU_MIN_LOG_LEVEL": "0", "TPU_VMODULE": "*deepsea_compiler*=1"}


def kernels(log: str) -> dict[str, int]:
    """Instructions by kernel; one that was compiled twice (it did not fit at first) counts twice."""
    found: dict[str, int] = {}
    for name, count in re.findall(r"\[(\S+)\] LLO optimizing ([\d,]+) instructions", log):
        found[name] = found.get(name, 0) + int(count.replace(",", ""))
    return found


def origins(hlo: str) -> dict[str, tuple[str, str]]:
    """(Result, place in the JAX program) of each instruction of the optimised HLO."""
    found = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%(\S+) = (.*)$", hlo, re.MULTILINE):
        place = re.search(r'op_name="([^"]*)"', rest)
        shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", rest.split(" fusion(")[0])
        found[name] = shape, place[1].removeprefix("jit(micro_step)/") if place else ""
    return found


def main() -> int:
    """Compiles the program with the compiler's log on, and reads log and dump."""
    if loose := [a for a in sys.argv[1:] if a.startswith("--config") and "=" not in a]:
        raise UserError(f"{loose[0]}: give it as {loose[0]}=VALUE: it is handed on to compile_check")
    passed = [a for a in sys.argv[1:] if a.startswith("--config")] or ["--config=configs/cogpo_tpu.py:1.5b"]
    with tempfile.TemporaryDirectory() as dump:
        done = subprocess.run(
            [
                *(sys.executable, "launch/compile_check.py", f"--topology={TOPOLOGY.value}"),
                *(f"--programs={PROGRAM.value}", *passed),
            ],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | LOGGING | {"XLA_FLAGS": f"--xla_dump_to={dump}"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        texts = [p.read_text() for p in Path(dump).glob("*after_codegen.txt")]
    counts = kernels(done.stderr)
    if not counts:
        raise RunError(f"compile_check: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    where = origins("\n".join(texts))
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[: TOP.value]:
        shape, place = where.get(name, ("", ""))
        print(f"{count:>9,}  {name:32}  {shape[:60]:60}  {place[-90:]}")
    check = json.loads(done.stdout.splitlines()[-1])
    seconds = check["programs"][0]["compile_seconds"]
    print(json.dumps({"instructions": sum(counts.values()), "kernels": len(counts), "compile_seconds": seconds}))
    return 0


if __name__ == "__main__":
    cli.run(main)
