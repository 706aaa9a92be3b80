"""A small student's freed memory stays with the process, and nothing else changes."""

import json
import subprocess
import sys
from pathlib import Path

from cogpo_jax.student.config import StudentConfig
from cogpo_jax.training.log import keep_freed_memory

TINY = json.loads(Path("configs/models/tiny.json").read_text())
FAULTS = """
import json, resource, sys
import jax, jax.numpy as jnp
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.training.log import keep_freed_memory
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
