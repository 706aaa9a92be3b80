"""`cogpo serve-pool`, typed in a checkout: `python launch/serve_pool.py --help`."""

import checkout

checkout.run("serve-pool")
