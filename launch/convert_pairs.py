"""`cogpo convert`, typed in a checkout: `python launch/convert_pairs.py --help`."""

import checkout

checkout.run("convert")
