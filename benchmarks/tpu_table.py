"""The table of docs/tpu.md: every shipped size on its slice, through the real TPU compiler, one after the other.

    .venv-tpu/bin/python benchmarks/tpu_table.py --folder=SCRATCH [--only=1.5b,7b-32k]

Runs launch/compile_check.py once for each line and keeps its JSON in `--folder`, where a later call finds it: delete a
file to compile it again. Prints Markdown. About an hour on two idle cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.progress import say

_FOLDER = flags.DEFINE_string("folder", None, "Where compile_check's JSON is kept.")
_ONLY = flags.DEFINE_list("only", "", "Some of the lines, by name; default: all.")

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
# name: (size, topology, slices, more flags)
CHECKS: dict[str, tuple[str, str, int, tuple[str, ...]]] = {
    "0.5b": ("0.5b", "v5e:4x4", 1, ()),
    "1.5b": ("1.5b", "v5e:4x4", 1, ()),
    "1.5b-32k": ("1.5b", "v5e:4x4", 1, ("--config.rows.length=32768",)),
    "1.5b-64k": ("1.5b", "v5e:4x4", 1, ("--config.rows.length=65536",)),
    "1.5b-128k": ("1.5b", "v5e:4x4", 1, ("--config.rows.length=131072",)),
    "1.5b-2slices": ("1.5b", "v5e:4x4", 2, ()),
    "3b-v5p": ("3b", "v5p:2x2x4", 1, ()),
    "3b-v6e": ("3b", "v6e:4x8", 1, ()),
    "7b-v5p": ("7b", "v5p:2x2x4", 1, ()),
    "7b-v6e": ("7b", "v6e:4x8", 1, ()),
    "7b-32k": ("7b", "v5p:2x2x4", 1, ("--config.rows.length=32768",)),
    "14b-fsdp": ("14b", "v5p:4x4x4", 1, ("--config.mesh.tensor=1",)),
    "14b-tensor": ("14b", "v5p:4x4x4", 1, ()),
}
HEAD = (
    "student",
    "slice",
    "mesh",
    "row",
    "micro-step peak + resident",
    "apply",
    "reference",
    "of HBM",
    "GFLOP/token (of model; attention)",
    "a chip sends per micro-step",
    "compile",
)


def compile_check(name: str, folder: Path) -> dict[str, Any]:
    """compile_check's JSON for a line of the table, from the folder where it is there."""
    kept = folder / f"{name}.json"
    if not kept.is_file():
        size, topology, slices, more = CHECKS[name]
        say(f"{name}: {size} on {slices} x {topology}")
        command = [
            *(sys.executable, "launch/compile_check.py", f"--config=configs/cogpo_tpu.py:{size}"),
            *(f"--topology={topology}", f"--num_slices={slices}", *more),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        if done.returncode not in (0, 1) or not done.stdout.strip():  # 1: it does not fit
            raise UserError(f"{name}: compile_check ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        write_atomic(kept, done.stdout.strip().splitlines()[-1] + "\n")
    return dict(json.loads(kept.read_text()))


def line(size: str, check: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one line."""
    programs = {p["name"]: p for p in check["programs"]}
    micro, apply = programs["micro-step"], programs["apply"]
    slices = f"{check['num_slices']} x " if check["num_slices"] > 1 else ""
    worst = max(p["peak"] + p["beside"] for p in programs.values())
    fits = "" if check["fits"] else f" - **refused**, over by {check['over'] / GIB:.2f} GiB"
    return (
        size.upper(),
        slices + check["topology"],
        " x ".join(f"{axis}={n}" for axis, n in check["mesh"].items() if n > 1),
        f"{check['rows']['per_device']} x {check['rows']['length']:,}",
        f"{micro['peak'] / GIB:.2f} + {micro['beside'] / GIB:.2f} GiB",
        f"{apply['peak'] / GIB:.2f} GiB",
        programs["reference"]["refused"] or f"{programs['reference']['peak'] / GIB:.2f} GiB",
        f"{worst / GIB:.1f} of {check['hbm'] / GIB:.2f} GiB{fits}",
        f"{sum(micro['flops_per_token'].values()) / 1e9:.1f}",
        _sent(micro, apply) if micro["compiled"] else "-",
        ", ".join(f"{p['compile_seconds']:.0f}" for p in check["programs"]) + " s",
    )


def _sent(micro: dict[str, Any], apply: dict[str, Any]) -> str:
    over = lambda program, network: sum(c["bytes"] for c in program["collectives"] if c["network"] == network)  # noqa: E731
    text = f"{over(micro, 'ici') / 1e9:.1f} GB ICI"
    if over(apply, "dcn"):
        text += f", {over(micro, 'dcn') / 1e3:.0f} KB DCN (apply: {over(apply, 'dcn') / 1e9:.2f} GB)"
    return text


def main() -> None:
    names = [name for name in _ONLY.value if name] or list(CHECKS)
    if unknown := sorted(set(names) - set(CHECKS)):
        raise UserError(f"--only: {unknown[0]}: known are {', '.join(CHECKS)}")
    if not _FOLDER.value:
        raise UserError("--folder: missing; give a folder that keeps what was compiled")
    folder = Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [line(CHECKS[name][0], compile_check(name, folder)) for name in names]
    for cells in (HEAD, ("---",) * len(HEAD), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    cli.run(main)
