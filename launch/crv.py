"""`cogpo crv`, typed in a checkout: `python launch/crv.py --help`."""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# Without this folder on the module path (-P), where crv.py would stand for the package crv; with the checkout on it.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "crv", *sys.argv[1:]])
