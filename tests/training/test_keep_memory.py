"""A small student's freed memory stays with the process, and nothing else changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cogpo_jax.student.config import StudentConfig
from cogpo_jax.training.setup import keep_freed_memory

TINY = json.loads(Path("configs/models/tiny.json").read_text())
FAULTS = """
import json, resource, sys
from cogpo_jax.heap import one_heap
if sys.argv[1] == "keep":
    assert one_heap()
import jax, jax.numpy as jnp
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.training.setup import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(StudentConfig.from_hf(json.load(open("configs/models/tiny.json"))))
step = jax.jit(lambda x: (jnp.exp(x) @ x).sum())
x = jnp.ones((3000, 3000))
first = float(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    assert float(step(x)) == first
print(json.dumps([first, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def test_steps_of_a_small_student_map_no_new_pages_and_give_the_same_bits():
    run = lambda how: json.loads(subprocess.check_output([sys.executable, "-c", FAULTS, how]).splitlines()[-1])  # noqa: E731
    (kept, few), (given_back, many) = run("keep"), run("give back")
    assert kept == given_back
    assert few * 3 < many


def test_a_large_student_leaves_the_c_library_alone():
    assert not keep_freed_memory(StudentConfig.from_hf({**TINY, "vocab_size": 2_000_000}))


THREADS = """
import ctypes, json, resource, sys, threading
from cogpo_jax import cli
from cogpo_jax.heap import keep_freed

def main():
    assert keep_freed(1)
    malloc, memset, free = (ctypes.CDLL(None)[name] for name in ("malloc", "memset", "free"))
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    memset.argtypes, free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

    def steps(count):
        for _ in range(count):
            buffers = [malloc(20_000_000) for _ in range(6)]  # a heap of a thread's own holds three
            for buffer in buffers:
                memset(buffer, 1, 20_000_000)
            for buffer in reversed(buffers):
                free(buffer)

    def thread():
        steps(2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        steps(5)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()

cli.run(main, ["script"])
"""


@pytest.mark.parametrize(("platform", "kept"), [("cpu", True), ("tpu,cpu", False)])
def test_threads_of_a_command_on_a_cpu_share_one_heap(platform, kept):
    """XLA's threads hold a step's buffers; heaps of their own would be unmapped after every step."""
    run = [sys.executable, "-c", THREADS]
    faults = json.loads(subprocess.check_output(run, env={**os.environ, "JAX_PLATFORMS": platform}))
    assert (faults < 5000) == kept, f"{faults} page faults in five steps of 120 MB"
