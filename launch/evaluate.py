"""`cogpo evaluate`, typed in a checkout: `python launch/evaluate.py --help`."""

import checkout

checkout.run("evaluate")
