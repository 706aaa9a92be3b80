"""`cogpo generate`, typed in a checkout: `python launch/generate.py --help`."""

import checkout

checkout.run("generate")
