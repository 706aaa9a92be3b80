"""`cogpo evaluate`, typed in a checkout: `python launch/evaluate.py --help`."""

import os
import sys

# Without this folder on the module path (-P): its crv.py would stand for the package crv.
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "evaluate", *sys.argv[1:]])
