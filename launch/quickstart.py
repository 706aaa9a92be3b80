"""`cogpo quickstart`, typed in a checkout: `python launch/quickstart.py --help`."""

import checkout

checkout.run("quickstart")
