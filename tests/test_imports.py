"""Every name that the code imports from itself is there: imports inside functions are found by no other fast test."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("cogpo_jax", "crv", "configs", "examples", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "peers" not in path.parts]


def missing(path):
    """Imports of our own modules in a file whose module or name does not exist."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or node.module.split(".")[0] not in ("cogpo_jax", "crv"):
            continue
        module = importlib.import_module(node.module)
        for name in node.names:
            if not hasattr(module, name.name):
                try:
                    importlib.import_module(f"{node.module}.{name.name}")
                except ModuleNotFoundError:
                    yield f"{path.name}:{node.lineno}: {node.module} has no {name.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_there(path):
    assert not list(missing(path))
