"""`cogpo export`, typed in a checkout: `python launch/export_hf.py --help`."""

import checkout

checkout.run("export")
