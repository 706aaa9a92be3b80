"""Serves a model for CRV: SGLang workers behind sglang-router, watched and restarted, until Ctrl-C.

    python launch/serve_pool.py --config=configs/serve_pool.py --config.model=MODEL_FOLDER --config.workers=8

Writes pool.json (url, workers, health, restarts) and the logs under config.output; prints one JSON line when ready.
"""

import sys

sys.path.pop(0)  # this folder, in which crv.py would stand for the package crv

from cogpo_jax import cli

_CONFIG = cli.define_config("configs/serve_pool.py")


def main() -> None:
    """Serves until a signal."""
    from crv.serve import PoolServer, ServeOptions

    PoolServer(ServeOptions.from_config(cli.load_config(_CONFIG))).run()


if __name__ == "__main__":
    cli.run(main)
