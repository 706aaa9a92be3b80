"""docs/design.md's layout names each module, and none that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_layout_names_every_module() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    layout = text[text.index("## Layout") : text.index("## Interfaces")]
    named = set(re.findall(r"[a-z0-9_]+\.py", layout))
    modules = {f.name for package in ("cogpo_jax", "crv") for f in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    assert named - {"__init__.py", "compile_check.py", "score.py", "generate.py"} == modules
