"""A run against unsteady_server.py that can be killed: python chaos_run.py WORKDIR PROBLEMS URL LOG."""

import sys

from cogpo_jax.configs import crv_recorded
from crv.driver import run
from crv.options import Options
from crv.pool.routing import RoutedPool


class LoggedPools(RoutedPool):
    """The real HTTP client; each request is noted when it is first sent."""

    def __init__(self, options, log):
        super().__init__(options)
        self.log = open(log, "a", buffering=1)  # noqa: SIM115

    async def generate(self, request):
        self.log.write(request.key().hex() + "\n")
        return await super().generate(request)


def options(problems, url, limit=0):
    config = crv_recorded.get_config()
    config.input, config.heldout, config.limit = str(problems), 0.1, limit
    config.pool.kind, config.pool.url, config.pool.model = "openai", url, "synthetic"
    config.pool.timeout, config.pool.retries, config.pool.concurrency = 1.0, 50, 64
    config.verifier.asked, config.verifier.needed, config.solver.attempts = 3, 2, 2
    return Options.from_config(config)


if __name__ == "__main__":
    workdir, problems, url, log = sys.argv[1:]
    run(options(problems, url), workdir, LoggedPools(options(problems, url), log))
