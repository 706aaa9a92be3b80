"""Programs of a model harm themselves only: each of these costs its own sample, and nothing outside it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation.grading import Grader, find_program, run_program
from cogpo_jax.evaluation.tasks import load_task, make_problems

HOSTILE = {
    "loop": ("while True: pass", "time limit"),
    "fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "time limit"),
    "memory": ("x = bytearray(10 << 30)", "memory limit"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "unreachable"),
    "flood": ("while True: print('x' * 1000)", "output limit"),
    "outlives": ("import os, time\nif os.fork() == 0: time.sleep(1000)", "time limit"),
    "disk": ("f = open('/box/a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "space|large"),
    "kills": ("import os\nos.kill(1, 9); os.kill(-1, 9)", "not permitted|No such process"),
}


def test_hostile_programs_end_with_a_reason() -> None:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(run_program(code, [""], 0.5, 256) for code, _ in HOSTILE.values()))

    for (name, (_, reason)), outcomes in zip(HOSTILE.items(), asyncio.run(all_of_them()), strict=True):
        assert outcomes is not None, name
        assert any(part in outcomes[0]["error"] for part in reason.split("|")), (name, outcomes)


def test_a_program_sees_and_writes_nothing_outside_its_box(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    program = f"""
import os, shutil
for path in ({str(tmp_path)!r}, {str(Path.home())!r}, os.path.expanduser("~"), "/etc", "/usr/bin"):
    shutil.rmtree(path, ignore_errors=True)
for path in ({str(precious)!r}, "/usr/x", "/etc/x", "/x"):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError:
        pass
print(sorted(os.listdir("/")), os.path.exists("/proc/self"), os.getuid() != 0)
"""
    outcomes = asyncio.run(run_program(program, [""]))
    assert outcomes is not None
    assert "wrote" not in outcomes[0]["stdout"]
    assert outcomes[0]["stdout"].endswith("False True\n"), outcomes
    assert precious.read_text() == "kept"
    assert Path.home().is_dir()
    assert Path("/usr/bin/env").is_file()


TESTS = {
    "stdin": [{"input": "2 3", "output": "5"}, {"input": "1 1", "output": "2\n"}],
    "function": [{"input": "2\n3", "output": "5", "function": "add"}],
    "asserts": ["assert add(2, 3) == 5"],
}
PROGRAMS = {
    "stdin": "a, b = map(int, input().split())\nprint(a {op} b)",
    "function": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a {op} b",
    "asserts": "def add(a, b):\n    return a {op} b",
}


def grade(kind: str, response: str, allow_code: bool = True) -> Any:
    (problem,) = make_problems(load_task("code"), [{"problem": "q", "tests": TESTS[kind]}], "rows", 0)

    async def graded() -> Any:
        async with Grader(allow_code=allow_code) as grader:
            return await grader.grade("code", problem, response)

    return asyncio.run(graded())


@pytest.mark.parametrize("kind", list(TESTS))
def test_programs_are_judged_by_their_tests(kind: str) -> None:
    fenced = "Here:\n```python\n{}\n```\nDone."
    right = grade(kind, fenced.format(PROGRAMS[kind].replace("{op}", "+")))
    wrong = grade(kind, fenced.format(PROGRAMS[kind].replace("{op}", "*")))
    assert (right.verdict, wrong.verdict) == ("correct", "incorrect"), (right, wrong)
    assert wrong.reason.startswith("test 1: ")


ADD = "def add(a, b):\n    return a + b"
WRONG = "def add(a, b):\n    return 9"
EQUAL = "class E(int):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return [E(9)][0]"
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n" + ADD
OWN = "class P:\n    def __init__(self, a): self.a = a\n    def __eq__(self, o): return self.a == o.a"
CHEATS = {
    "leaves early": ("asserts", "import sys\nsys.exit(0)", "incorrect"),
    "leaves at once": ("asserts", "import os\nos._exit(0)", "incorrect"),
    "equals all": ("asserts", EQUAL, "incorrect"),
    "equals all, deep": ("deep", EQUAL.replace("[E(9)][0]", "[E(9)]"), "incorrect"),
    "looks for the tests": ("asserts", "import sys\nprint(open(sys.argv[0]).read(), sys.stdin.read())", "incorrect"),
    "ends by hook": ("asserts", f"import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n{WRONG}", "incorrect"),
    "patches json": ("function", f"import json\njson.dumps = lambda *a, **k: '5'\n{WRONG}", "incorrect"),
    "a thread stays": ("asserts", THREAD, "correct"),
    "future": ("function", f"from __future__ import annotations\n{ADD}", "correct"),
    "main reads": ("asserts", f"{ADD}\nif __name__ == '__main__':\n    print(add(int(input()), 1))", "correct"),
    "names in reach": ("asserts", "def add(a: int, b: Optional[int]) -> int:\n    return a + b", "correct"),
    "nearly": ("function", f"{ADD} + 1e-15", "correct"),
    "own classes": ("classes", OWN, "correct"),
}  # fmt: skip
TESTS |= {"deep": ["assert add(2, 3) == [5]"], "classes": ["assert P(3) == P(3)"]}


def test_a_program_passes_by_what_it_computes_alone() -> None:
    async def all_of_them() -> list[Any]:
        async with Grader(allow_code=True) as grader:
            problems = {
                kind: make_problems(load_task("code"), [{"problem": "q", "tests": tests}], "rows", 0)[0]
                for kind, tests in TESTS.items()
            }
            return await asyncio.gather(
                *(grader.grade("code", problems[k], f"```python\n{program}\n```") for k, program, _ in CHEATS.values())
            )

    verdicts = dict(zip(CHEATS, asyncio.run(all_of_them()), strict=True))
    assert {name: v.verdict for name, v in verdicts.items()} == {n: w for n, (_, _, w) in CHEATS.items()}, verdicts


BLOCKS = {
    "tildes": "~~~python\nA\n~~~",
    "longer": "````python\nA\n````",
    "cut off": "Sure:\n```python\nA",
    "windows": "```python\r\nA\r\n```\r\n",
    "indented": "1. Code:\n   ```python\n   A\n   ```",
    "version": "```python3.11\nA\n```",
    "its output follows": "```python\nA\n```\nOutput:\n```\n5\n```",
    "how to run it follows": "```python\nA\n```\n```bash\npython a.py\n```",
    "an example follows": "```python\nA\n```\n```python\nprint(add(2, 3))\n```",
    "without a language": "```\nA\n```\nOutput:\n```\n5\n```",
    "an older version comes first": f"```python\n{WRONG}\n```\nBetter:\n```py\nA\n```",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_program_is_found_among_the_blocks(name: str) -> None:
    found = find_program(
        BLOCKS[name].replace("A", ADD.replace("\n", "\n   ") if name == "indented" else ADD), TESTS["function"]
    )
    assert found == ADD


def test_without_a_code_block_the_verdict_is_unknown() -> None:
    assert grade("stdin", "print(5)").verdict == "unknown"


def test_programs_are_only_run_when_that_is_allowed() -> None:
    with pytest.raises(UserError, match="--allow_code"):
        grade("stdin", "```python\nprint(5)\n```", allow_code=False)
