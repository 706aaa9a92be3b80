"""The child process of `workers`: reads {gold, answer} lines, writes [verdict, rule] lines, under hard limits.

Run as `python -m crv.verify.worker MEGABYTES SECONDS`; it ends with its standard input. The seconds are CPU time of one
comparison, so that a busy machine does not change verdicts: when they are up, the kernel ends the process.
"""

import json
import os
import resource
import signal
import sys


def main() -> None:
    """Serves comparisons until end of input."""
    limit, seconds = int(sys.argv[1]) << 20, float(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not become a verdict
    import sympy  # noqa: F401 - the import is most of the start-up time, and is paid before the limits hold

    from crv.verify import algebra

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF's default action ends the process, in C code too
        verdict = algebra.compare(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(verdict) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
