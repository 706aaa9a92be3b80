"""The data half runs on machines without jax: importing it loads no jax, torch or TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "jaxlib", "flax", "torch", "tensorflow", "tensorflow_datasets", "transformers", "datasets")


def _modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", ["cogpo_jax/records", "crv"])
def test_no_heavy_package_is_imported(package):
    modules = list(_modules(package))
    assert modules
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
