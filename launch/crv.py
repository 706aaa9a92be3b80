"""`cogpo crv`, typed in a checkout: `python launch/crv.py --help`."""

import checkout

checkout.run("crv")
