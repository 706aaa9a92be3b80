"""Prompts are files: a preset is a folder, an agent's prompt a file in it, and its digest part of the ledger's keys."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cogpo_jax.errors import UserError

AGENTS = ("solver", "critic", "rethinker_expand", "rethinker_simplify", "verifier", "corrupter", "judge")
_FIELD = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One agent's prompt: system text (or none) and user text with `{{field}}` places; `digest` names it."""

    system: str
    user: str
    digest: str

    def render(self, inputs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """(role, text) messages. One pass: what stands in the inputs is never read as a place."""
        user = _FIELD.sub(lambda place: inputs[place.group(1)], self.user)
        return (("system", self.system), ("user", user)) if self.system else (("user", user),)


def load_prompts(preset: str) -> dict[str, Prompt]:
    """The prompts of a shipped preset (`default`, `authors`), or of a folder with the same files.

    `system.txt` and `shared.txt` (what `{{shared}}` stands for) are optional, a file per agent is not; lines that begin
    with `#:` are comments. Raises UserError naming the missing file.
    """
    folder = Path(preset) if Path(preset).is_dir() else Path(__file__).parent / preset
    if not folder.is_dir():
        raise UserError(f"prompts: {preset}: neither a shipped preset (default, authors) nor a folder of prompt files")
    system, shared = _read(folder / "system.txt", optional=True).strip(), _read(folder / "shared.txt", optional=True)
    prompts = {}
    for agent in AGENTS:
        user = _read(folder / f"{agent}.txt").replace("{{shared}}", shared).strip()
        prompts[agent] = _prompt(system, user)
    prompts["student"] = _prompt("", "{{problem}}")  # as it is trained: the problem and nothing else
    return prompts


def _prompt(system: str, user: str) -> Prompt:
    return Prompt(system, user, hashlib.sha256(f"{system}\0{user}".encode()).hexdigest())


def _read(path: Path, optional: bool = False) -> str:
    if not path.is_file():
        if optional:
            return ""
        raise UserError(f"prompts: {path}: no such file; a preset has one for each of {', '.join(AGENTS)}")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#:"))
