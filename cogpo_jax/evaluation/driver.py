"""Runs inside the sandbox: a model's program as a module, then the tests that call it. Standard library only.

Standard input is one JSON object {program, token, code} (Python with asserts) or {program, token, function, arguments}
(JSON texts). The token is written when all asserts held; of a function the token and its result as JSON. The program
finds neither in a file, and its own standard input is empty.
"""

import ast
import builtins
import importlib
import json
import os
import re
import sys
import types
from typing import Any

# What LeetCode, and LiveCodeBench after it, put in reach of a solution.
_IN_REACH = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
_COMPARES = re.compile("__(?:eq|ne|lt|le|gt|ge|r?sub|abs|contains|bool|len|float|int|index)__")


def main() -> None:
    """Reads the job, runs the program, calls it, and ends without waiting for what the program left running."""
    job = json.load(sys.stdin)
    program, dumps = types.ModuleType("program"), json.dumps
    sys.modules["program"] = program
    for name in _IN_REACH if "function" in job else ["typing"]:
        module = importlib.import_module(name)
        public = {k: v for k, v in vars(module).items() if not k.startswith("_") and not hasattr(builtins, k)}
        vars(program).update({**public, name: module})
    exec(compile(job["program"], "program.py", "exec"), vars(program))
    said = "" if "code" in job else dumps(_call(program, job["function"], job["arguments"]))
    if "code" in job:
        _check(program, job["code"])
    sys.stdout.flush()
    os.write(1, f"\n{job['token']}{said}\n".encode())
    os._exit(0)


def _call(program: types.ModuleType, name: str, arguments: list[str]) -> Any:
    of = program.Solution() if hasattr(program, "Solution") else program
    return getattr(of, name)(*map(json.loads, arguments))


def _check(program: types.ModuleType, code: str) -> None:
    """Runs the asserts. A result of a class of the program's own that says itself what it equals proves nothing."""
    tree = ast.parse(code)
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    def result(value: Any) -> Any:
        left = [value]
        while left:
            one = left.pop()
            if type(one) in (list, tuple, set, frozenset, dict):
                left += [*one, *one.values()] if type(one) is dict else one
            elif _compares_itself(type(one)) and type(one).__name__ not in named:
                raise AssertionError(f"the result is of the program's own class {type(one).__name__}")
        return value

    class Watched(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.Call:
            self.generic_visit(node)
            return ast.Call(ast.Name("_result", ast.Load()), [node], [])

    vars(program)["_result"] = result
    exec(compile(ast.fix_missing_locations(Watched().visit(tree)), "tests.py", "exec"), vars(program))


def _compares_itself(kind: type) -> bool:
    return any(
        k.__module__ not in sys.stdlib_module_names and any(map(_COMPARES.fullmatch, vars(k))) for k in kind.__mro__
    )


if __name__ == "__main__":
    main()
