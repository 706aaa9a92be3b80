"""The C library's heap on a CPU: freed memory stays with the process for the next step.

XLA takes its buffers from malloc, anew for every call, and glibc gives them back after it: the kernel then clears every
page of every step (a quarter of the CPU time of a student of 0.3 M parameters, a sixth of one of 1.6 M). No result
changes.
"""

import ctypes
import os

_SMALL = 200_000_000  # parameters: what is kept of a larger student could break up its memory
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def one_heap() -> bool:
    """One heap for all threads, if jax is told to run on a CPU; whether it is so. To be called before threads start.

    The heaps of their own that threads otherwise get are unmapped whenever they are empty: after each step.
    """
    return os.environ.get("JAX_PLATFORMS") == "cpu" and _set({_ARENA_MAX: 1})


def keep_freed(parameters: int) -> bool:
    """Nothing that is freed goes back to the system, for a student of few parameters; whether it is so."""
    return parameters <= _SMALL and _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def _set(options: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return all(mallopt(option, value) for option, value in options.items())
