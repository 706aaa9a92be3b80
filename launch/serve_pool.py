"""`cogpo serve-pool`, typed in a checkout: `python launch/serve_pool.py --help`."""

import os
import sys

# Without this folder on the module path (-P): its crv.py would stand for the package crv.
os.execv(sys.executable, [sys.executable, "-P", "-m", "cogpo_jax", "serve-pool", *sys.argv[1:]])
