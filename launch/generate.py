"""`cogpo generate`, typed in a checkout: `python launch/generate.py --help`."""

import os
import sys

# Without this folder on the module path (-P): its crv.py would stand for the package crv.
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "generate", *sys.argv[1:]])
