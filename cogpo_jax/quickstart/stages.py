"""Stages as subprocesses, each run once: finished ones are skipped, interrupted ones go on, stale ones start anew."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crv
from cogpo_jax import config_files
from cogpo_jax.atomic import write_json
from cogpo_jax.errors import RunError

# cogpo_jax/configs and cogpo_jax/examples/gsm8k_cots are links in a checkout: a search from cogpo_jax would not enter.
_CODE = (
    config_files.PACKAGE,
    config_files.CONFIGS,
    config_files.PACKAGE / "examples" / "gsm8k_cots",
    Path(crv.__path__[0]),
)
_SUFFIXES = (".py", ".json", ".jsonl", ".txt", ".md", ".html")


@dataclass(frozen=True)
class Stage:
    """A command of `cogpo` with its flags, and the folder or file below the run that it writes (None: only prints).

    `salt` adds to what makes it stale.
    """

    name: str
    command: tuple[str, ...]
    output: str | None
    salt: str = ""


@dataclass(frozen=True)
class Finished:
    """What a stage left: its seconds, the last JSON line on its stdout, and whether it had been done before."""

    seconds: float
    result: dict[str, Any]
    skipped: bool


def run_stage(stage: Stage, run: Path, before: str) -> tuple[Finished, str]:
    """Runs a stage from the working folder unless it is done; returns what it left and its key.

    The key hashes the command, the project's code and the stages before (`before` is the last one's key). Output of
    another key is removed first; that of the same key is what the command goes on from. Raises RunError where it fails.
    """
    digest = hashlib.sha256(json.dumps([stage.name, stage.command, stage.salt, before]).encode())
    key = digest.hexdigest()
    marker = run / ".stages" / f"{stage.name}.json"
    old = json.loads(marker.read_text()) if marker.is_file() else {}
    output = run / stage.output if stage.output else None
    same = old.get("key") == key
    if same and old["done"] and (output is None or output.exists()):
        return Finished(old["seconds"], old["result"], skipped=True), key
    if output and not same:
        _remove(output)
    spent = old["seconds"] if same and not old["done"] else 0.0
    write_json(marker, {"key": key, "done": False, "seconds": spent, "result": {}})
    began = time.monotonic()
    try:
        result = _run(stage)
    finally:  # an interrupted stage goes on from here: its time counts
        seconds = spent + time.monotonic() - began
        write_json(marker, {"key": key, "done": False, "seconds": seconds, "result": {}})
    write_json(marker, {"key": key, "done": True, "seconds": seconds, "result": result})
    return Finished(seconds, result, skipped=False), key


def shown_command(stage: Stage) -> str:
    """The command as a person types it."""
    return shlex.join(("cogpo", *stage.command))


def code_digest(folders: Sequence[Path] = _CODE) -> str:
    """SHA-256 of the project's own files that decide what a stage computes."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SUFFIXES):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(stage: Stage) -> dict[str, Any]:
    environment = {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    # stderr, with its progress bars, goes straight to the terminal.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cogpo_jax", *stage.command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"stage {stage.name} failed with exit code {done.returncode}: {shown_command(stage)}")
    return _last_object(done.stdout.splitlines())


def _last_object(lines: Sequence[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            value = json.loads(line)
            return value if isinstance(value, dict) else {}
    return {}


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
