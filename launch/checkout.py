"""Starts a command of this checkout, from any folder and whatever is installed."""

import os
import sys
from pathlib import Path


def run(command: str) -> None:
    """Becomes `cogpo COMMAND` with the arguments of this process."""
    # The checkout before all else on the module path, without this folder (-P), where crv.py would stand for a package.
    path = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", command, *sys.argv[1:]])
