"""`cogpo score`, typed in a checkout: `python launch/score.py --help`."""

import checkout

checkout.run("score")
