"""The mutation lane: breaks the code on purpose, one fault at a time, and sees a named test fail (`make test-mutants`).

    python tests/mutants/run.py [--only=WORDS] [--jobs=2]

Every file of this folder that has a list MUTANTS is read: (name, file, old text, new text, test). The old text must
occur exactly once. Each fault is put into a copy of the tree, its test runs there, and the fault is taken out again.
Exit code 1 where a test stays green, or a mutant does not fit the code any more. An untouched copy runs every test
first: a test that fails anyway proves nothing. Tests run in forks of one process that has imported jax already, and
share what they compile.
"""

import argparse
import atexit
import multiprocessing
import os
import queue
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FORKS = multiprocessing.get_context("forkserver")


def mutants() -> list[tuple[str, str, str, str, str]]:
    """All mutants of the folder, in order of their files."""
    found = []
    for path in sorted(HERE.glob("*.py")):
        if path.name != "run.py":
            found += runpy.run_path(str(path)).get("MUTANTS", [])
    return found


def copy_tree(folder: Path) -> None:
    """The files that git knows, links as links."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in filter(None, names):
        target = folder / name
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)


def misfits(chosen: list[tuple[str, str, str, str, str]]) -> list[str]:
    """What does not fit the code any more: an old text that is not there once, a test that is gone. Runs nothing."""
    found = []
    for title, file, old, _, test in chosen:
        path, (test_file, _, name) = ROOT / file, test.partition("::")
        count = path.read_text(encoding="utf-8").count(old) if path.is_file() else 0
        if count != 1:
            found.append(f"{title}: {file} has the old text {count} times, not once")
        function = name.partition("[")[0].split("::")[-1]
        if not (ROOT / test_file).is_file() or f"def {function}(" not in (ROOT / test_file).read_text(encoding="utf-8"):
            found.append(f"{title}: {test}: no such test")
    return found


def _pytest(folder: str, tests: list[str], output: str) -> None:
    """In a process of its own: the tests of a copy, which stands before anything installed."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    import pytest

    sys.exit(int(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests])))


def run_tests(folder: Path, tests: list[str], seconds: float) -> tuple[int | None, str]:
    """(exit code of pytest, what it printed); None where it took longer than so many seconds."""
    output = folder / ".pytest-output"
    process = FORKS.Process(target=_pytest, args=(str(folder), tests, str(output)))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None, output.read_text(encoding="utf-8", errors="replace")
    return process.exitcode, output.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name or file holds these words")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree that run at a time")
    options = parser.parse_args()
    chosen = [m for m in mutants() if options.only in m[0] or options.only in m[1]]
    if unfit := misfits(chosen):
        print(*unfit, sep="\n")
        return 1
    FORKS.set_forkserver_preload(["jax", "flax.nnx", "optax", "orbax.checkpoint", "transformers", "sympy", "pytest"])
    waiting: queue.Queue[tuple[str, str, str, str, str]] = queue.Queue()
    for mutant in chosen:
        waiting.put(mutant)
    faults: list[str] = []

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="mutants-") as name:
            copy_tree(folder := Path(name))
            while True:
                try:
                    title, file, old, new, test = waiting.get_nowait()
                except queue.Empty:
                    return
                path = folder / file
                whole = path.read_text(encoding="utf-8")
                path.write_text(whole.replace(old, new), encoding="utf-8")
                code, _ = run_tests(folder, [test], 900)
                path.write_text(whole, encoding="utf-8")
                if code == 1:
                    print(f"killed: {title}", flush=True)
                else:
                    how = "survived" if code == 0 else f"not run (pytest exit code {code})"
                    faults.append(f"{title}: {how}: {test}")
                    print(f"{how.upper()}: {title}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy_tree(Path(name))
        tests = sorted({m[4] for m in chosen})
        code, output = run_tests(Path(name), tests, 900 + 60 * len(tests))
        if code != 0:
            print(output[-3000:], f"the tests fail on the untouched tree (pytest exit code {code})", sep="\n")
            return 1
    print(f"{len(chosen)} mutants; the tests pass on the untouched tree", flush=True)
    threads = [threading.Thread(target=work) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(chosen) - len(faults)} of {len(chosen)} killed", *faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    # Before jax is imported; tests/conftest.py keeps a cache folder that is given.
    compiled = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1", "JAX_COMPILATION_CACHE_DIR": compiled}
    os.environ |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8",
    }
    sys.exit(main())
