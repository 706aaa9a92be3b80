"""Peak anonymous memory and time of importing and exporting a large Hugging Face folder.

    python benchmarks/weights_memory.py --folder=SCRATCH [--student=model_config.json] [--dtype=float32] [--keep]

Writes a folder of random bfloat16 weights (default: the shape of Qwen2.5-1.5B), imports it in `--dtype` and exports it
again, each in a process of its own, sampling RssAnon of /proc/self/status every 5 ms. Import: peak above the baseline
before it, over the model's size in `--dtype`. Export: peak above what the imported model holds, over the same size.
Checks that the second folder is bit-equal to the first, tensor by tensor. Needs disk for two copies (6.2 GB) and memory
for one in `--dtype`. Prints one JSON object.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError

_FOLDER = flags.DEFINE_string("folder", None, "Scratch folder on a disk with room.")
_CONFIG = flags.DEFINE_string("student", "configs/models/qwen2.5-1.5b.json", "config.json of the architecture.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the parameters are imported as.")
_KEEP = flags.DEFINE_boolean("keep", False, "Leave the folders there.")
_PART = flags.DEFINE_enum("part", "all", ["all", "write", "measure"], "Used by the script itself.")


def anonymous_bytes() -> int:
    """Anonymous memory of this process: what is its own, mapped files not among it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * 1024


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    """Fills {before, peak, after} of anonymous memory around the block."""
    found = {"before": anonymous_bytes(), "peak": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            found["peak"] = max(found["peak"], anonymous_bytes())
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["after"] = anonymous_bytes()


def write(folder: Path) -> None:
    """Random weights, layer by layer: numpy arrays that share one layer's memory."""
    import jax
    import ml_dtypes

    from cogpo_jax.student.config import StudentConfig
    from cogpo_jax.student.model import abstract_params
    from cogpo_jax.student.weights import to_hf

    config = StudentConfig.from_hf(_CONFIG.value)
    rng = np.random.default_rng(0)

    def random(x: jax.ShapeDtypeStruct) -> np.ndarray:
        out = np.empty(x.shape, ml_dtypes.bfloat16)
        for row in out.reshape(-1, x.shape[-1]):
            row[:] = rng.standard_normal(x.shape[-1], np.float32) * 0.02
        return out

    to_hf(config, jax.tree.map(random, abstract_params(config)), folder, "bfloat16", overwrite=True)


def measure(source: Path, target: Path) -> dict[str, Any]:
    """Imports, exports, and compares."""
    import jax

    from cogpo_jax.student.weights import from_hf, to_hf

    jax.devices()
    started = time.monotonic()
    with peak() as importing:
        config, _, params = from_hf(source, param_dtype=_DTYPE.value)
        jax.block_until_ready(params)
    imported = time.monotonic()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    with peak() as exporting:
        to_hf(config, params, target, "bfloat16", overwrite=True)
    exported = time.monotonic()
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "dtype": _DTYPE.value,
        "model_gb": size / 1e9,
        "import_peak_over_model": (importing["peak"] - importing["before"]) / size,
        "export_peak_over_model": 1 + (exporting["peak"] - exporting["before"]) / size,
        "import_seconds": imported - started,
        "export_seconds": exported - imported,
        "bit_equal": _equal(source, target),
    }


def _equal(source: Path, target: Path) -> bool:
    from cogpo_jax.student.hf_folder import find_tensors

    a, b = find_tensors(source), find_tensors(target)
    return set(a) == set(b) and all(
        a[n].shape == b[n].shape and np.array_equal(a[n].array().view(np.uint16), b[n].array().view(np.uint16))
        for n in a
    )


def main() -> None:
    if not _FOLDER.value:
        raise UserError("--folder: missing; give a scratch folder on a disk with room")
    folder = Path(_FOLDER.value)
    source, target = folder / "random", folder / "exported"
    if _PART.value == "write":
        write(source)
    elif _PART.value == "measure":
        print(json.dumps(measure(source, target)))
    else:
        for part in ("write", "measure"):
            subprocess.run([sys.executable, *sys.argv, f"--part={part}"], check=True)
        if not _KEEP.value:
            shutil.rmtree(source)
            shutil.rmtree(target)


if __name__ == "__main__":
    cli.run(main)
