"""`cogpo score`, typed in a checkout: `python launch/score.py --help`."""

import os
import sys

# Without this folder on the module path (-P): its crv.py would stand for the package crv.
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "score", *sys.argv[1:]])
