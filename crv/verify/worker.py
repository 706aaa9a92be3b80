"""The child process of `workers`: reads {gold, answer} lines, writes [verdict, rule] lines, under hard limits.

Run as `python -m crv.verify.worker MEGABYTES`; it ends with its standard input.
"""

import json
import os
import resource
import sys


def main() -> None:
    """Serves comparisons until end of input."""
    limit = int(sys.argv[1]) << 20
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not become a verdict
    import sympy  # noqa: F401 - the import is most of the start-up time, and is paid before the limits hold

    from crv.verify import algebra

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        out.write(json.dumps(algebra.compare(request["gold"], request["answer"])) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
