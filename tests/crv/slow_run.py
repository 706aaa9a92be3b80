"""A run that can be killed: python slow_run.py WORKDIR SECONDS LOG; each call is noted in LOG at its start."""

import asyncio
import os
import random
import sys
from pathlib import Path

from cogpo_jax.configs import crv_recorded
from crv.driver import run
from crv.options import Options
from crv.pool.base import RecordedPool

ROOT = Path(__file__).parents[2]


class SlowPool(RecordedPool):
    """The recorded pool with delays, so that answers arrive in another order every time."""

    def __init__(self, path, seconds, log):
        super().__init__(path)
        self.seconds, self.log = seconds, log

    async def generate(self, request):
        with open(self.log, "a") as log:
            log.write(request.key().hex() + "\n")
        await asyncio.sleep(random.random() * self.seconds)
        return await super().generate(request)


def options(limit=40):
    config = crv_recorded.get_config()
    config.limit, config.heldout = limit, 8.0
    return Options.from_config(config)


if __name__ == "__main__":
    os.chdir(ROOT)
    workdir, seconds, log = sys.argv[1:]
    run(options(), workdir, SlowPool(options().pool.recordings, float(seconds), log))
