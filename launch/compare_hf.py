"""`cogpo compare-hf`, typed in a checkout: `python launch/compare_hf.py --help`."""

import checkout

checkout.run("compare-hf")
