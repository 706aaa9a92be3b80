"""CRV's own speed and memory: synthetic problems against an in-memory pool.

    python benchmarks/crv_scale.py --problems=100000

Prints one JSON object: problems, calls, calls a second (from the first to the last, without intake and export), seconds
of each part, and the peak memory of the process. A busy machine shows in the calls a second, not in
those a CPU second (all threads of this process). Run it with 10000 and 100000: the memory should be the same.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from absl import flags
from synthetic import SyntheticPool, problems

from cogpo_jax import cli
from crv import driver
from crv.options import Options

_PROBLEMS = flags.DEFINE_integer("problems", 10_000, "How many.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 512, "Problems walked at a time.")
_CONFIG = cli.define_config("crv_recorded")


class _TimedPool(SyntheticPool):
    """Notes when the first and the last call came, and the process's CPU time then."""

    first = last = 0.0
    first_cpu = last_cpu = 0.0

    async def generate(self, request):
        self.last = time.monotonic()
        self.last_cpu = time.process_time()
        self.first, self.first_cpu = self.first or self.last, self.first_cpu or self.last_cpu
        return await super().generate(request)


def main() -> None:
    """Runs once and prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "problems.jsonl"
        with source.open("w") as f:
            f.writelines(json.dumps(row) + "\n" for row in problems(_PROBLEMS.value))
        config = cli.load_config(_CONFIG)
        config.input, config.problems_in_flight, config.shards = str(source), _IN_FLIGHT.value, 8
        config.heldout = 0.02
        pool = _TimedPool()
        start = time.monotonic()
        summary = driver.run(Options.from_config(config), Path(folder) / "run", pool)
        end = time.monotonic()
        ledger = (Path(folder) / "run" / "ledger.sqlite").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    figures = {
        "problems": summary["problems"]["total"],
        "calls": pool.sent,
        "calls_per_second": round(pool.sent / (pool.last - pool.first)),
        "calls_per_cpu_second": round(pool.sent / (pool.last_cpu - pool.first_cpu)),
        "seconds": {
            "intake": round(pool.first - start, 1),
            "calls": round(pool.last - pool.first, 1),
            "export": round(end - pool.last, 1),
        },
        "peak_megabytes": round(peak),
        "ledger_megabytes": round(ledger / 2**20),
        "problems_by_state": summary["problems"],
        "drops": summary["drops"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    cli.run(main)
