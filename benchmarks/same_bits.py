"""Whether two versions of the code train the same bits: the same pairs, tokenizer, start and steps by each.

    git worktree add OLD 4b69ca0
    python benchmarks/same_bits.py --old=OLD --tokenizer=runs/quickstart/tokenizer --model=runs/quickstart/hf

Converts benchmarks/data/gsm8k_pairs.jsonl.xz, trains one epoch of CogPO by configs/tiny_cpu.py and exports, with each
version's own code. Prints the SHA-256 of each model.safetensors; exit code 1 where they differ. Attention's blocks have
128 tokens in both, as in the old one: another size adds in another order.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import shipped

_WITH_BLOCKS = (
    "import runpy, sys; import cogpo_jax.student.attention as attention; attention.BLOCK = 128; "
    "sys.argv[0] = 'cogpo'; runpy.run_module('cogpo_jax', run_name='__main__')"
)


def trained(code: Path, folder: Path, tokenizer: Path, model: Path) -> str:
    """The digest of the weights that a version's code ends with."""

    def run(command: str, script: str, *arguments: str) -> None:
        cogpo = (code / "cogpo_jax" / "__main__.py").is_file()  # versions before 0.2 have scripts, and blocks of 128
        subprocess.run(
            [sys.executable, *(("-c", _WITH_BLOCKS, command) if cogpo else (f"launch/{script}.py",)), *arguments],
            cwd=code,
            env=os.environ | {"PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    data, workdir, output = (str(folder / name) for name in ("data", "run", "hf"))
    run("convert", "convert_pairs", f"--input={folder.parent / 'pairs.jsonl'}", f"--output={data}")
    fields = {"data": data, "tokenizer": tokenizer, "init_from": model, "rows.length": 512, "objective": "cogpo"}
    given = [f"--config.{name}={value}" for name, value in (fields | {"optimizer.learning_rate": 1e-4}).items()]
    run("train", "train", "--config=configs/tiny_cpu.py", *given, f"--workdir={workdir}")
    run("export", "export_hf", f"--workdir={workdir}", f"--output={output}")
    return hashlib.sha256(Path(output, "model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "tokenizer", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary:
        shipped.unpack(shipped.PAIRS, Path(temporary) / "pairs.jsonl")
        versions = {"old": given.old, "present": shipped.ROOT}
        digests = {
            name: trained(code.resolve(), Path(temporary) / name, given.tokenizer.resolve(), given.model.resolve())
            for name, code in versions.items()
        }
    print(digests)
    return len(set(digests.values())) - 1


if __name__ == "__main__":
    sys.exit(main())
