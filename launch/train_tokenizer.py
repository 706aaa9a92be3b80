"""`cogpo train-tokenizer`, typed in a checkout: `python launch/train_tokenizer.py --help`."""

import checkout

checkout.run("train-tokenizer")
