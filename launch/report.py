"""`cogpo report`, typed in a checkout: `python launch/report.py --help`."""

import checkout

checkout.run("report")
