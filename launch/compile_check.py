"""`cogpo compile-check`, typed in a checkout: `python launch/compile_check.py --help`."""

import checkout

checkout.run("compile-check")
