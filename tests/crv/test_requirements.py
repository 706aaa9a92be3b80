"""A machine with `pip install .[crv]`, or with requirements/crv.txt, has every package that the data half imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(ROOT / "crv").rglob("*.py"),
    *(ROOT / "cogpo_jax" / "records").glob("*.py"),
    *(ROOT / "cogpo_jax" / "report").glob("*.py"),
    *(ROOT / "cogpo_jax" / f"{name}.py" for name in ("atomic", "cli", "config_files", "errors", "text")),
    *(ROOT / "cogpo_jax" / "commands" / f"{name}.py" for name in ("data", "project")),
    *(ROOT / "configs").glob("*.py"),
]
# Known to the package's metadata, whatever is installed where the test runs.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "google_crc32c": "google-crc32c",
    "google": "protobuf",
    "markupsafe": "jinja2",
    "math_verify": "math-verify",
    "yaml": "PyYAML",
}


def imported():
    """Distributions that the sources import, anywhere in a module."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    names -= set(sys.stdlib_module_names) | {"crv", "cogpo_jax"}
    return {DISTRIBUTIONS.get(name, name) for name in names}


def plain(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {plain(line) for line in (*project["dependencies"], *project["optional-dependencies"]["crv"])}
    assert {"httpx", "datasets"} <= imported()
    assert {plain(name) for name in imported()} - declared == set()


@pytest.mark.parametrize("file", ["crv.txt", "dev.txt"])
def test_every_imported_package_is_pinned(file):
    pinned = {plain(line) for line in (ROOT / "requirements" / file).read_text().splitlines() if "==" in line}
    assert {plain(name) for name in imported()} - pinned == set()


def test_the_sets_agree():
    """Records must not depend on which machine wrote them; SGLang pins its own transformers and tokenizers."""

    def pins(file):
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        return dict(line.lower().split("==") for line in lines if "==" in line)

    server, dev = pins("crv.txt"), pins("dev.txt")
    differing = {name for name in server.keys() & dev.keys() if server[name] != dev[name]}
    assert differing <= {"tokenizers", "transformers"}
