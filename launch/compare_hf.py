"""`cogpo compare-hf`, typed in a checkout: `python launch/compare_hf.py --help`."""

import os
import sys

# Without this folder on the module path (-P): its crv.py would stand for the package crv.
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "compare-hf", *sys.argv[1:]])
