"""`cogpo train`, typed in a checkout: `python launch/train.py --help`."""

import checkout

checkout.run("train")
